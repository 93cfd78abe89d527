"""Training data: read, checked, split and fingerprinted."""
