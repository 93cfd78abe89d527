"""The text engine: QLoRA training, constrained answers, merging."""
