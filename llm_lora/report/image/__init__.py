"""Reports of image adapters."""
