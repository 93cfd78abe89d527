"""Safetensors files: their headers, completeness and identity, without loading a tensor.

Headers are parsed here because `safetensors.safe_open` does not give the offsets, which checking a
file against its size and reading tensors piece by piece need.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.files import read_object

_INDEX = "model.safetensors.index.json"

LLAMA_CPP = "this is a model for llama.cpp (GGML/GGUF), which cannot be trained"

LLAMA_CPP_FIX = "name the original model that it was made from, with safetensors weights"

# Reading 64 MB takes well under a second; for larger files, samples distinguish models.
_HASH_WHOLE = 64 * 2**20

_SAMPLES, _SAMPLE = 64, 64 * 2**10


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, each checked to be complete.

    Raises:
        UserError: there are none, one is missing, or one is truncated.
    """
    index = folder / _INDEX
    if index.is_file():
        shards = set(read_object(index).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise UserError(
                f"{len(missing)} of {len(shards)} weight files are missing, such as {missing[0]}",
                where=str(folder),
                fix="download or copy the model again",
            )
        weights = sorted(folder / shard for shard in shards)
    else:
        weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise _no_weights(folder)
    for path in weights:
        safetensors_header(path)
    return weights


def _no_weights(folder: Path) -> UserError:
    if list(folder.glob("*.gguf")) or list(folder.glob("*ggml*")):
        return UserError(LLAMA_CPP, where=str(folder), fix=LLAMA_CPP_FIX)
    if any(list(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth")):
        return UserError(
            "only pickled weights (.bin), which may run code when loaded",
            where=str(folder),
            fix="choose a revision with safetensors, or convert them: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(folder)",
        )
    return UserError(
        "no safetensors weights", where=str(folder), fix="name a model with model.safetensors"
    )


def safetensors_header(path: Path) -> dict[str, Any]:
    """Tensor names with dtype, shape and offsets, checked against the size of the file.

    Raises:
        UserError: the file is truncated or not a safetensors file.
    """
    return safetensors_parts(path)[0]


def safetensors_parts(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The result of `safetensors_header`, and the file's metadata.

    Format: 8 bytes little-endian header length, JSON header, data
    (https://huggingface.co/docs/safetensors).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start.ljust(8, b"\xff"))
        header = file.read(length) if length <= size - 8 else b""
    try:
        tensors = json.loads(header)
        metadata = tensors.pop("__metadata__", None) or {}
        # The format allows only strings as metadata.
        whole = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _damaged(path) from None
    for name, tensor in tensors.items():
        if not _described(tensor):
            raise _damaged(path, f": invalid dtype, shape or data_offsets for {name}")
    end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if not whole or 8 + length + end != size:
        raise _damaged(path)
    return tensors, metadata


def _described(tensor: Any) -> bool:
    """Whether a tensor's entry has the form that the format requires."""
    match tensor:
        case {"dtype": str(), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            return 0 <= begin <= end and all(type(one) is int and one >= 0 for one in shape)
    return False


def _damaged(path: Path, more: str = "") -> UserError:
    return UserError(
        f"damaged or incomplete safetensors file{more}",
        where=str(path),
        fix="download or copy it again",
    )


def sampled_sha256(path: Path) -> str:
    """Hex digest of a weight file.

    A small file is read completely. Of a large one, the first 64 KiB (the header) and samples
    spread over it are read: any full fine-tuning changes nearly every weight, so samples
    distinguish two models of the same shape, in milliseconds instead of minutes. This does not
    protect against deliberate changes of single weights.
    """
    size = path.stat().st_size
    if size <= _HASH_WHOLE:
        return files.file_sha256(path)
    part = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            part.update(file.read(_SAMPLE))
    return part.hexdigest()
