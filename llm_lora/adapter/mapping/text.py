"""The effect of an adapter on a base, derived from files alone, before any server loads it.

vLLM compares only the last part of a module's name with the modules it knows, and reads only some
fields of PEFT's configuration. So an adapter may load silently and change nothing, or something
other than in training. Here every key is mapped onto a weight of the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llm_lora.adapter.base import AnyBase
from llm_lora.adapter.folder import CONFIG, WEIGHTS, Adapter, more_than_products
from llm_lora.adapter.mapping import image as picture_mapping
from llm_lora.adapter.mapping.misfits import misfits
from llm_lora.base import Base, PictureBase
from llm_lora.errors import Problem, UserError
from llm_lora.files import read_object
from llm_lora.weights import safetensors_header, weight_files

SERVER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for its largest LoRA rank."""

_AGAIN = "train again without it"
_MERGE = "merge it into the base: llm-lora merge"

# Input and output embeddings: served for some architectures, refused or left out for others.
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")

# NumPy has no bfloat16, so numbers are read as bits: their width, and the mask of the exponent.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
}


def server_rank(rank: int) -> int:
    """The smallest of `SERVER_RANKS` that holds an adapter of this rank.

    Raises:
        UserError: the rank is above all of them.
    """
    for allowed in SERVER_RANKS:
        if rank <= allowed:
            return allowed
    raise UserError(
        f"rank {rank} is above {SERVER_RANKS[-1]}, the most that vLLM serves",
        fix=f"train with a smaller lora.rank, or {_MERGE}",
    )


def effect(adapter: Adapter, base: AnyBase | None = None) -> None:
    """Check that a server will apply the whole adapter, and that it changes something.

    Without a base, only the adapter itself is checked.

    Raises:
        UserError: all findings: another base, keys without a weight in the base, halves that do
            not fit its shape, weights without effect, features and ranks that vLLM lacks.
    """
    found = problems(adapter, base)
    if found:
        raise UserError(found)


def problems(adapter: Adapter, base: AnyBase | None = None) -> list[Problem]:
    """Every problem that `effect` would raise."""
    path = adapter.path / WEIGHTS
    try:
        with safe_open(path, framework="numpy"):
            tensors = safetensors_header(path)
    except SafetensorError as error:
        return [Problem(f"damaged: {error}", str(path), "copy the whole adapter folder")]
    found = [*_OF_TASK[adapter.task](adapter), *_numbers(adapter, tensors)]
    if base is None:
        return found
    if adapter.base_digest != base.digest:
        found.append(
            Problem(
                f"trained on {adapter.base_name} ({adapter.base_digest[:12]}), "
                f"not on {base.name} ({base.digest[:12]})",
                str(adapter.path),
                _home(adapter),
            )
        )
    if isinstance(base, PictureBase):
        return [*found, *picture_mapping.mapped(adapter, base, tensors)]
    return [*found, *_mapped(adapter, base, tensors)]


def _home(adapter: Adapter) -> str:
    return f"serve it on {adapter.base_name}, the base it was trained on"


def _configured(adapter: Adapter) -> Iterator[Problem]:
    """Settings of the configuration that a server ignores."""
    path = adapter.path / CONFIG
    config = read_object(path)
    for key in more_than_products(config):
        yield Problem(f"{key}={config[key]!r} is not served by vLLM", str(path), _AGAIN)
    if not config.get("target_modules"):
        yield Problem("target_modules is missing", str(path), "copy the whole adapter folder")
    if adapter.rank > SERVER_RANKS[-1]:
        yield Problem(
            f"rank {adapter.rank} is above {SERVER_RANKS[-1]}, the most that vLLM serves",
            str(path),
            f"train with a smaller lora.rank, or {_MERGE}",
        )
    if adapter.alpha == 0:
        yield Problem(
            "lora_alpha is 0, so it answers like the base", str(path), "train again with an alpha"
        )

    yield from _embeddings(adapter)


def _embeddings(adapter: Adapter) -> Iterator[Problem]:
    names = [name for name in adapter.modules if name.rpartition(".")[2] in EMBEDDINGS]
    if names:
        yield Problem(
            f"{', '.join(names)}: vLLM does not apply adapted embeddings for every model",
            str(adapter.path / WEIGHTS),
            "train without them in lora.targets",
        )


_OF_TASK = {"text": _configured, "image": picture_mapping.configured}


def _numbers(adapter: Adapter, tensors: dict[str, Any]) -> Iterator[Problem]:
    """Weights without effect on the base, and weights that are NaN or infinite."""
    path = adapter.path / WEIGHTS
    zero, broken, unknown = set(), [], []
    for key, bits, exponent in _bits(path, tensors):
        if bits is None:
            unknown.append(key)
        # Shifting left drops the sign: -0.0 is zero as well.
        elif not (bits << 1).any():
            zero.add(key.rpartition(".lora_")[0])
        elif ((bits & exponent) == exponent).any():
            broken.append(key)
    if unknown:
        kind = tensors[unknown[0]]["dtype"]
        yield Problem(
            f"{unknown[0]} has numbers of type {kind}, which servers do not load",
            str(path),
            f"save the weights as one of {', '.join(_EXPONENTS)}",
        )
    if len(zero) == len(adapter.modules):
        yield Problem(
            "no effect: in every module lora_A or lora_B is all zero, so it answers like the base",
            str(path),
            "train it (longer, or with a higher learning rate)",
        )
    if broken:
        yield Problem(
            f"{len(broken)} tensors hold NaN or infinity, the first: {broken[0]}",
            str(path),
            "train again with a lower learning rate",
        )


def _bits(path: Path, tensors: dict[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """Each tensor's numbers as unsigned integers (None: unknown type), and its exponent mask."""
    import numpy as np

    data = np.memmap(path, np.uint8, mode="r")
    first = len(data) - max(tensor["data_offsets"][1] for tensor in tensors.values())
    for key, tensor in tensors.items():
        begin, end = tensor["data_offsets"]
        kind, exponent = _EXPONENTS.get(tensor["dtype"], (None, 0))
        yield key, None if kind is None else data[first + begin : first + end].view(kind), exponent


def _mapped(adapter: Adapter, base: Base, tensors: dict[str, Any]) -> Iterator[Problem]:
    """Keys that match no weight of the base, or one of another shape."""
    weights = _linear_weights(base)
    missing, unlike = [], []
    for module in adapter.modules:
        shape = weights.get(_plain(module))
        key = f"base_model.model.{module}.lora_"
        halves = [tensors[f"{key}B.weight"]["shape"][0], tensors[f"{key}A.weight"]["shape"][1]]
        if shape is None:
            missing.append(module)
        elif shape != halves:
            unlike.append(f"{module} ({halves} on {shape})")
    yield from misfits(
        adapter,
        base,
        missing,
        unlike,
        lacking="are not linear weights of",
        effect="; a server would ignore them",
        fix=_home(adapter),
    )


def _linear_weights(base: Base) -> dict[str, list[int]]:
    """Shape (outputs, inputs) of every linear weight of a base, by module."""
    return {
        _plain(name.removesuffix(".weight")): tensor["shape"]
        for path in weight_files(base.path)
        for name, tensor in safetensors_header(path).items()
        if name.endswith(".weight") and len(tensor["shape"]) == 2
    }


def _plain(module: str) -> str:
    """A module's name without the part that marks the text model of a multimodal model.

    Files name it `language_model.model.layers…` or `model.language_model.layers…`, or omit it;
    modules in memory may use a different one of these forms.
    """
    return module.replace("language_model.", "", 1)
