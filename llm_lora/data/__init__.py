"""Training data: read, checked, split."""
