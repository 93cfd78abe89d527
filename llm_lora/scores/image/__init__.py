"""Figures and gates of image adapters."""
