"""LoRA files for Stable Diffusion front ends."""
