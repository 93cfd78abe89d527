"""Adapters and merged models written for other programs."""
