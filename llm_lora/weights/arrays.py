"""Safetensors files as numpy arrays: small ones (adapters, caches), read and written whole.

Equal arrays and metadata give equal bytes, which the safetensors library does not promise: it
writes metadata in no fixed order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.weights import tensors
from llm_lora.weights.header import safetensors_parts

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_KINDS = {name: kind for kind, name in _NAMES.items()}
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


def read(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read arrays and metadata of a file; bf16, which numpy lacks, becomes float32 of equal values.

    Raises:
        UserError: the file does not exist, is pickled, or is not a complete safetensors file.
    """
    # Importing numpy takes 0.1 s, which commands that read no arrays should not pay.
    import numpy as np

    if path.suffix in _PICKLED:
        raise UserError(
            "a pickled file, which may run code on loading",
            where=str(path),
            fix="get the same weights as .safetensors",
        )
    if not path.is_file():
        raise UserError("no such file", where=str(path), fix="check the path")
    arrays = {}
    for name, tensor in tensors.of_file(path).items():
        data = tensor.read()
        if tensor.dtype == "BF16":
            # bf16 is the upper half of a float32.
            wide = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
            array = wide.view(np.float32)
        elif tensor.dtype in _KINDS:
            array = np.frombuffer(data, _KINDS[tensor.dtype])
        else:
            raise UserError(
                f"{name} has dtype {tensor.dtype}, which is not supported", where=str(path)
            )
        try:
            arrays[name] = array.reshape(tensor.shape)
        except (
            ValueError,
            OverflowError,
        ):  # For example, an empty one with more dimensions than numpy supports.
            raise UserError(
                f"{name} has the shape {list(tensor.shape)}, which is not supported",
                where=str(path),
            ) from None
    return arrays, metadata(path)


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        UserError: the file is truncated or not a safetensors file.
    """
    return safetensors_parts(path)[1]


def write(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a file atomically.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    files.write_chunks(path, (header(arrays, metadata), body(arrays)))


def header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """The header before the data: its length, and names with types, shapes and offsets."""
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in _order(arrays):
        array = arrays[name]
        begin, end = end, end + array.nbytes
        entries[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    # Readers memory-map the data, which must start at a multiple of eight.
    text = text.ljust(-(-len(text) // 8) * 8)
    return struct.pack("<Q", len(text)) + text


def body(arrays: Mapping[str, Array]) -> bytes:
    """The data of all arrays, little-endian, without gaps."""
    return b"".join(
        arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False).tobytes()
        for name in _order(arrays)
    )


def _order(arrays: Mapping[str, Array]) -> list[str]:
    # Wide types first: every array then starts at a multiple of its item size.
    return sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
