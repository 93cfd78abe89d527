"""Serving adapters behind an OpenAI-compatible endpoint."""
