"""The image engine: Stable Diffusion adapters trained, painted with and measured."""
