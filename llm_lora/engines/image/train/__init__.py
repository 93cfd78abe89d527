"""The training loop of the image engine."""
