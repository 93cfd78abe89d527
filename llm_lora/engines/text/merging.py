"""Merging of an adapter into its base, tensor by tensor: the model is never in memory as a whole.

Two merges are sound. The adapter was trained on the base in NF4, so adding it to the dequantised
NF4 weights (`dequantised`) gives exactly the model that was trained; adding it to the published
weights (`original`) gives a close one. Rounding the sum to 4 bits again would destroy the adapter:
its changes are smaller than the steps of NF4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers import AutoHfQuantizer

from llm_lora.adapter import Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.base import Base
from llm_lora.engines.shared import loading
from llm_lora.errors import UserError
from llm_lora.progress import Listener, Progress, silent
from llm_lora.weights import Tensor, tensors

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SCALES_BLOCK = 256
"""Number of scales that share a second-level scale, with double quantisation (`quantize_4bit`)."""
_PART = 2**22
"""Number of weights processed at once."""


@dataclass(frozen=True)
class _Update:
    """The update of one weight: `scale` · B · A."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class _Outline:
    """Facts from the model's code: which weights NF4 quantises, and which are tied to another."""

    quantised: frozenset[str]
    tied: Mapping[str, str]


def merge(
    base: Base,
    adapter: Adapter,
    folder: Path,
    *,
    into: str,
    precision: str,
    shard_bytes: int,
    listener: Listener = silent,
) -> bool:
    """Write the merged weights of a model as safetensors; every tensor keeps its dtype.

    Args:
        base: the base that the adapter was trained on.
        adapter: a verified adapter.
        folder: an existing folder.
        into: "dequantised" or "original".
        precision: the recipe's `train.precision`: NF4 is quantised from weights of that type.
        shard_bytes: the largest size of a file.
        listener: called after each tensor.

    Returns:
        whether a tied output embedding had to be untied.

    Raises:
        UserError: an adapted module has no weight of its own in the base's files, or the disk is
            full.
    """
    loading.give_back_freed_memory()
    compute, _ = loading.compute_dtype(precision)
    nf4 = loading.quantisation(compute) if into == "dequantised" else None
    outline = _outline(base, loading.quantisation(compute))
    source = tensors.of_model(base.path)
    updates = _updates(adapter)
    untied = {name: outline.tied[name] for name in updates if name in outline.tied}
    for name, twin in untied.items():
        source[name] = replace(source[twin], name=name)
    _require_weights(base, source, updates, outline.quantised if nf4 else frozenset())
    done = 0

    def content(tensor: Tensor) -> Iterable[bytes]:
        nonlocal done
        packed = nf4 if tensor.name in outline.quantised else None
        update = updates.get(tensor.name)
        if packed is None and update is None:
            yield from tensor.pieces()
        else:
            yield from tensors.cut(_merged(tensor, update, packed, compute))
        done += 1
        listener(Progress(stage="merging", done=done, total=len(source)))

    tensors.write_model(folder, list(source.values()), content, shard_bytes)
    return bool(untied)


def _updates(adapter: Adapter) -> dict[str, _Update]:
    """The update of each adapted weight, by name."""
    scale = adapters.scale(adapter)
    halves = tensors.of_file(adapter.path / adapters.WEIGHTS)
    return {
        f"{module}.weight": _Update(
            halves[f"base_model.model.{module}.lora_A.weight"],
            halves[f"base_model.model.{module}.lora_B.weight"],
            scale,
        )
        for module in adapter.modules
    }


def _outline(base: Base, nf4: BitsAndBytesConfig) -> _Outline:
    """Build the model without weights, and let transformers decide what it would quantise."""
    config = AutoConfig.from_pretrained(base.path, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    AutoHfQuantizer.from_config(nf4, pre_quantized=False).preprocess_model(model, device_map=None)
    packed = (name for name, module in model.named_modules() if isinstance(module, Linear4bit))
    return _Outline(frozenset(f"{name}.weight" for name in packed), model.all_tied_weights_keys)


def _require_weights(
    base: Base, source: Mapping[str, Tensor], updates: Mapping[str, _Update], needed: Iterable[str]
) -> None:
    """Refuse to skip an adapted module, or one that training had in 4 bits.

    Raises:
        UserError: a module has no weight in the base's files, or one of another shape or dtype.
    """
    wanted = {*updates, *needed}
    for name in sorted(wanted):
        tensor = source.get(name)
        if tensor is None:
            raise UserError(
                f"{name} is not a separate tensor in the base's files",
                where=str(base.path),
                fix="this architecture cannot be merged tensor by tensor; serve the adapter",
            )
        if tensor.dtype not in _DTYPES:
            raise UserError(
                f"{name} has dtype {tensor.dtype}; only {', '.join(_DTYPES)} can be merged",
                where=str(tensor.file),
                fix="name the unquantised original as base",
            )
        if name in updates:
            update = updates[name]
            halves = (update.b.shape[0], update.a.shape[1])
            if tensor.shape != halves:
                raise UserError(
                    f"{name} has shape {tensor.shape}, but the adapter's factors give {halves}",
                    where=str(update.a.file),
                    fix="merge it into the base it was trained on",
                )


def _load(tensor: Tensor) -> torch.Tensor:
    data = torch.frombuffer(tensor.read(), dtype=_DTYPES[tensor.dtype])
    return data.view(tensor.shape)


def _merged(
    tensor: Tensor, update: _Update | None, nf4: BitsAndBytesConfig | None, compute: torch.dtype
) -> memoryview:
    """The bytes of one merged weight, computed in fp32 and rounded once to its own dtype."""
    weight = _load(tensor)
    where = loading.device()
    if nf4 is not None:
        # NF4 dequantised in fp32 has more digits than a 16-bit file can hold.
        weight = weight.to(torch.promote_types(weight.dtype, compute))
        _through_nf4(weight, nf4, compute, where)
    if update is not None:
        a, b = (_load(half).to(where, torch.float32) for half in (update.a, update.b))
        rows = max(1, _PART // weight.shape[1])
        for part, factor in zip(weight.split(rows), b.split(rows), strict=True):
            delta = (factor @ a) * update.scale
            part.copy_(part.to(where, torch.float32).add_(delta))
    own = weight.to(_DTYPES[tensor.dtype])
    return own.view(-1).view(torch.uint8).numpy().data


def _through_nf4(
    weight: torch.Tensor, nf4: BitsAndBytesConfig, compute: torch.dtype, where: torch.device
) -> None:
    """Replace `weight` by its dequantised NF4 values, bit for bit as `Linear4bit` would.

    bitsandbytes does this for a whole tensor, with buffers of ten times its size; here it is done
    in parts, each of which starts at a block boundary.
    """
    kind = nf4.bnb_4bit_quant_type
    options = {"blocksize": loading.NF4_BLOCK, "quant_type": kind}
    parts = weight.view(-1).split(_PART)
    packed = [bnb.quantize_4bit(part.to(where, compute), **options) for part in parts]
    scales = torch.cat([state.absmax for _, state in packed])
    if nf4.bnb_4bit_use_double_quant:
        mean = scales.mean()
        scales = bnb.dequantize_blockwise(
            *bnb.quantize_blockwise(scales - mean, blocksize=_SCALES_BLOCK)
        )
        scales += mean
    each = scales.split(_PART // loading.NF4_BLOCK)
    for part, (numbers, state), own in zip(parts, packed, each, strict=True):
        state.absmax = own.contiguous()
        part.copy_(bnb.dequantize_4bit(numbers, state).reshape(-1))
