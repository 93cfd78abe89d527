"""Adapters: LoRA folders, the base they belong to, and the LoRA files of other programs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
