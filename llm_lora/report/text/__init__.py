"""Reports of text adapters."""
