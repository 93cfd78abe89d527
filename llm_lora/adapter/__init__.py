"""Adapters: LoRA folders, the base they belong to, and the LoRA files of other programs."""
