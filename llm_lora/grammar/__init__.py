"""Constrained decoding: what a decoder enforces of a schema, and how well data fit it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
