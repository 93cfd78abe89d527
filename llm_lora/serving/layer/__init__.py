"""The ASGI layer around a running server: routes, keys, adapters, verdicts."""
