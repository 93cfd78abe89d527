"""Mapping of an image adapter onto a base, checked from files alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from llm_lora.adapter.folder import CONFIG, Adapter, more_than_products
from llm_lora.adapter.mapping.misfits import misfits
from llm_lora.adapter.webui import stem
from llm_lora.base import PictureBase
from llm_lora.errors import Problem
from llm_lora.files import read_object
from llm_lora.weights import safetensors_header

_OTHERWISE = ("fan_in_fan_out",)
"""PEFT settings that generation does not support, besides those of all tasks."""

_TEXT = "text_model."


def configured(adapter: Adapter) -> Iterator[Problem]:
    """Settings of the configuration that generation does not support."""
    path = adapter.path / CONFIG
    config = read_object(path)
    asked = [*more_than_products(config), *(key for key in _OTHERWISE if config.get(key))]
    for key in asked:
        yield Problem(
            f"{key}={config[key]!r}: pictures are generated with plain LoRA weights only",
            str(path),
            "train again without it",
        )
    if adapter.alpha == 0:
        yield Problem(
            "lora_alpha is 0, so the adapter has no effect", str(path), "train again with an alpha"
        )


def mapped(
    adapter: Adapter, base: PictureBase, tensors: Mapping[str, Mapping[str, Any]]
) -> Iterator[Problem]:
    """Adapted modules that the base lacks, or has in another shape.

    For a single-file base only names are checked, because its layout is the original one; shapes
    are compared when the adapter is loaded.

    Args:
        adapter: the adapter.
        base: the base to apply it to.
        tensors: the header of the adapter's weights.
    """
    weights = None if base.single_file else _weights(base)
    missing, unlike = [], []
    for module in adapter.modules:
        down = tensors[f"{module}.lora_A.weight"]["shape"]
        up = tensors[f"{module}.lora_B.weight"]["shape"]
        own = [up[0], math.prod(down[1:])]
        if weights is None:
            if not _of_family(module, base):
                missing.append(module)
        elif (shape := weights.get(module)) is None:
            missing.append(module)
        elif own != [shape[0], math.prod(shape[1:])]:
            unlike.append(f"{module} ({own} on {shape})")
    yield from misfits(
        adapter,
        base,
        missing,
        unlike,
        lacking="are not in",
        fix=f"use it with {adapter.base_name}, the base it was trained on",
    )


def _of_family(module: str, base: PictureBase) -> bool:
    try:
        stem(module, base.family)
    except ValueError:
        return False
    return True


def _weights(base: PictureBase) -> dict[str, list[int]]:
    """Shape of every weight that an adapter can change, by module."""
    found: dict[str, list[int]] = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for path in sorted((base.path / part).glob("*.safetensors")):
            for name, tensor in safetensors_header(path).items():
                if name.endswith(".weight") and len(tensor["shape"]) in (2, 4):
                    module = name.removesuffix(".weight")
                    # transformers omits the component from the names of one of its text models.
                    if part != "unet" and not module.startswith(_TEXT):
                        module = _TEXT + module
                    found[f"{part}.{module}"] = tensor["shape"]
    return found
