"""LoRA files as Stable Diffusion front ends know them."""
