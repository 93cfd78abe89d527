"""Serving: a vLLM server started as a child, with this package's ASGI layer around its routes."""
