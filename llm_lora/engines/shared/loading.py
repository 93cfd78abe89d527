"""Loading a base: NF4 with double quantisation, also on a CPU, or 16 bit; decisions are told."""

from __future__ import annotations

import ctypes
import gc
import resource
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers import logging as transformers_logging

from llm_lora.base import Base
from llm_lora.errors import UserError

NF4_BLOCK = 64
"""Weights that share a scale in NF4: what `Linear4bit` leaves at its default."""


@dataclass(frozen=True)
class Loaded:
    """A base ready for training or answering, and what was decided on the way."""

    model: Any
    device: torch.device
    compute: torch.dtype
    decisions: tuple[str, ...]


def device() -> torch.device:
    """The device that everything runs on: the first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(precision: str) -> tuple[torch.dtype, str]:
    """bf16 where the machine multiplies it fast, else fp32; with the reason.

    On a CPU without bf16 instructions torch emulates bf16 products, slower than fp32.

    Raises:
        UserError: bf16 was demanded and is not there.
    """
    if torch.cuda.is_available():
        has_bf16, what = torch.cuda.is_bf16_supported(), torch.cuda.get_device_name(0)
    else:
        has_bf16, what = _cpu_has("avx512_bf16", "amx_bf16"), "this CPU"
    if precision == "fp32" or (precision == "auto" and not has_bf16):
        reason = "as the recipe says" if precision == "fp32" else f"{what} has no bf16 instructions"
        return torch.float32, f"computing in fp32: {reason}"
    if not has_bf16:
        raise UserError(
            f"train.precision is bf16, but {what} has no bf16 instructions",
            fix="set train.precision to auto or fp32",
        )
    return torch.bfloat16, f"computing in bf16: {what} supports it"


def _cpu_has(*flags: str) -> bool:
    info = Path("/proc/cpuinfo")
    words = info.read_text(errors="replace").split() if info.is_file() else []
    return any(flag in words for flag in flags)


def peak_memory_bytes() -> int:
    """Peak so far: allocated device memory on a GPU, resident memory of this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory() -> None:
    """Give back what nothing refers to any more, also in circles, and the GPU's cached pages."""
    gc.collect()
    torch.cuda.empty_cache()  # Does nothing where there is no GPU.


def give_back_freed_memory() -> None:
    """Let glibc map blocks of a megabyte and more, and hand them back as soon as they are freed.

    A walk over large tensors needs it. Training leaves glibc as it is, which maps blocks above
    32 MB: kept on the heap, freed logits stay resident for as long as anything lies above them,
    and batches of varied lengths leave ever more such holes.
    """
    trim_threshold, mmap_threshold = -1, -3  # Numbers of mallopt(3); no other libc has it.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 2**20)
        mallopt(mmap_threshold, 2**20)


def quantisation(compute: torch.dtype) -> BitsAndBytesConfig:
    """How a base is quantised for training: NF4 with double quantisation (arXiv 2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def load_base(base: Base, *, bits: int, precision: str) -> Loaded:
    """Load the frozen model.

    Args:
        base: where it lies.
        bits: 4 for NF4 as `quantisation` says, 16 for none.
        precision: the recipe's `train.precision`.

    Raises:
        UserError: memory ran out, the files cannot be read, or quantisation did not happen.
    """
    compute, reason = compute_dtype(precision)
    where = device()
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {}
    if bits == 4:
        options["quantization_config"] = quantisation(compute)
    try:
        with warnings.catch_warnings():
            # bitsandbytes speaks of a faster single-token path that CPU users cannot get.
            warnings.filterwarnings("ignore", message=".*kernels.*")
            model = AutoModelForCausalLM.from_pretrained(
                base.path,
                dtype=compute,
                device_map={"": where},
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                **options,
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot load the base: {str(error).splitlines()[0]}",
            where=str(base.path),
            fix="check that the folder is a whole transformers model",
        ) from error
    _leave_weights_alone(model)
    decisions = [reason, _weights_decision(model, bits)]
    if where.type == "cpu":
        _require_whole_blocks(model)
    return Loaded(model, where, compute, tuple(decisions))


def _leave_weights_alone(model: Any) -> None:
    """Keep bitsandbytes from repacking NF4 weights when a model answers on a CPU with bf16.

    It rounds the quantisation constants in place, so that after the first evaluation the base is no
    longer the one that training began with, nor the one that a resumed run loads
    (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _require_whole_blocks(model: Any) -> None:
    """Refuse NF4 on a CPU where blocks of weights reach over the ends of rows.

    bitsandbytes 0.50 silently unpacks them wrongly on a CPU with AVX-512: it assumes that each row
    begins a new block, although packing does not. Refused on every CPU, since the adapter may be
    used on another one.

    Raises:
        UserError: a layer has such rows.
    """
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit) and module.in_features % NF4_BLOCK:
            raise UserError(
                f"{name} has {module.in_features} inputs, no multiple of {NF4_BLOCK}: "
                "bitsandbytes reads such NF4 weights wrongly on a CPU",
                where=model.config._name_or_path,
                fix="set lora.bits to 16, or choose another base",
            )


def _weights_decision(model: Any, bits: int) -> str:
    if bits == 16:
        return "base in 16 bit, as the recipe says (lora.bits: 16)"
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    nested = [layer for layer in layers if getattr(layer.weight.quant_state, "nested", False)]
    if not layers or len(nested) != len(layers):
        raise UserError(
            f"only {len(nested)} of {len(layers)} linear layers could be quantised to NF4",
            where=model.config._name_or_path,
            fix="set lora.bits to 16, or choose another base",
        )
    megabytes = model.get_memory_footprint() / 1e6
    return f"base in NF4 with double quantisation: {len(layers)} linear layers, {megabytes:.1f} MB"
