"""The effect of an adapter for pictures on a base, derived from files alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from llm_lora.adapter import CONFIG, WEIGHTS, Adapter, more_than_products
from llm_lora.base import read_object, safetensors_header
from llm_lora.errors import Problem
from llm_lora.picture_base import PictureBase
from llm_lora.webui import stem

_OTHERWISE = ("fan_in_fan_out",)
"""Settings of PEFT that painting does not support, beside those of all tasks."""

_TEXT = "text_model."


def configured(adapter: Adapter) -> Iterator[Problem]:
    """Settings of the configuration that painting ignores."""
    path = adapter.path / CONFIG
    config = read_object(path)
    asked = [*more_than_products(config), *(key for key in _OTHERWISE if config.get(key))]
    for key in asked:
        yield Problem(
            f"{key}={config[key]!r}: pictures are painted with plain LoRA weights alone",
            str(path),
            "train again without it",
        )
    if adapter.alpha == 0:
        yield Problem(
            "lora_alpha is 0, so it paints like the base", str(path), "train again with an alpha"
        )


def mapped(
    adapter: Adapter, base: PictureBase, tensors: Mapping[str, Mapping[str, Any]]
) -> Iterator[Problem]:
    """Modules that the base does not have, or has in another shape.

    For a base in one file only the names are known here: its layout is the original one, so shapes
    are compared when the adapter is loaded.

    Args:
        adapter: the adapter.
        base: the base that it will be applied to.
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
    total, where = len(adapter.modules), str(adapter.path / WEIGHTS)
    fix = f"use it with {adapter.base_name}, the base it was trained on"
    if missing:
        yield Problem(
            f"{len(missing)} of {total} adapted modules are not in {base.name}, "
            f"the first: {missing[0]}",
            where,
            fix,
        )
    if unlike:
        yield Problem(
            f"{len(unlike)} of {total} adapted modules have another shape in {base.name}, "
            f"the first: {unlike[0]}",
            where,
            fix,
        )


def _of_family(module: str, base: PictureBase) -> bool:
    try:
        stem(module, base.family)
    except ValueError:
        return False
    return True


def _weights(base: PictureBase) -> dict[str, list[int]]:
    """Shape of every weight that an adapter may be added to, by module."""
    found: dict[str, list[int]] = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for path in sorted((base.path / part).glob("*.safetensors")):
            for name, tensor in safetensors_header(path).items():
                if name.endswith(".weight") and len(tensor["shape"]) in (2, 4):
                    module = name.removesuffix(".weight")
                    # transformers omits the part in the names of one of its text models.
                    if part != "unet" and not module.startswith(_TEXT):
                        module = _TEXT + module
                    found[f"{part}.{module}"] = tensor["shape"]
    return found
