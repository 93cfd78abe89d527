"""Safetensors files, one tensor at a time: models of any size in little memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.weights.header import safetensors_header, weight_files

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PIECE = 16 * 2**20
"""Number of bytes copied at once."""

_WIDTHS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1)
_WIDTHS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 2)
_WIDTHS |= dict.fromkeys(("U32", "I32", "F32"), 4) | dict.fromkeys(("U64", "I64", "F64"), 8)
"""Bytes of a number, by dtype; rarer types are not checked."""


@dataclass(frozen=True)
class Tensor:
    """Location of a tensor: `size` bytes from `start` in `file`; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int

    def read(self) -> bytearray:
        """All its bytes, copied: a mapped file would count fully as used memory."""
        data = bytearray(self.size)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            view = memoryview(data)
            while view and (count := file.readinto(view)):
                view = view[count:]
        return data

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, in pieces."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            for done in range(0, self.size, _PIECE):
                yield file.read(min(_PIECE, self.size - done))


Content = Callable[[Tensor], Iterable[bytes]]
"""Returns the bytes of a tensor to write."""


def cut(data: memoryview) -> Iterator[bytes]:
    """The bytes of a buffer, in pieces."""
    for begin in range(0, len(data), _PIECE):
        yield bytes(data[begin : begin + _PIECE])


def of_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, in the order of their data.

    Raises:
        UserError: the file is truncated or not safetensors, or a shape does not fit its bytes.
    """
    header = safetensors_header(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    found = [
        Tensor(
            name,
            entry["dtype"],
            tuple(entry["shape"]),
            path,
            8 + length + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    ]
    for one in found:
        width = _WIDTHS.get(one.dtype)
        if width is not None and math.prod(one.shape) * width != one.size:
            raise UserError(
                f"damaged safetensors file: {one.name} has {one.size} bytes, "
                f"but is {one.dtype} of shape {list(one.shape)}",
                where=str(path),
                fix="download or copy it again",
            )
    return {tensor.name: tensor for tensor in sorted(found, key=lambda one: one.start)}


def of_model(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model's folder, sharded or not; files are chosen as by transformers.

    Raises:
        UserError: weights are missing or damaged.
    """
    paths = weight_files(folder)
    if not (folder / INDEX).is_file() and folder / WEIGHTS in paths:
        paths = [folder / WEIGHTS]
    return {name: tensor for path in paths for name, tensor in of_file(path).items()}


def shards(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """Group tensors into files of at most `limit` bytes; a larger one gets its own file."""
    result: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not result or tensor.size > room:
            result.append([])
            room = limit
        result[-1].append(tensor)
        room -= tensor.size
    return result


def write_model(folder: Path, tensors: Sequence[Tensor], content: Content, limit: int) -> None:
    """Write weights as transformers reads them: one file, or shards with an index.

    Args:
        folder: an existing folder.
        tensors: name, dtype, shape and size of the weights; their locations are ignored.
        content: called once for each tensor, in order.
        limit: the largest size of a shard in bytes.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    parts = shards(tensors, limit)
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    if len(parts) == 1:
        names = [WEIGHTS]
    for name, part in zip(names, parts, strict=True):
        files.write_chunks(folder / name, _chunks(part, content))
    if len(parts) > 1:
        weight_map: Mapping[str, str] = {
            tensor.name: name for name, part in zip(names, parts, strict=True) for tensor in part
        }
        total = sum(tensor.size for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.write_json(folder / INDEX, index)


def _chunks(tensors: Sequence[Tensor], content: Content) -> Iterator[bytes]:
    # transformers requires the format in the metadata.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # Readers memory-map the data, which must start at a multiple of eight.
    text = text.ljust(-(-len(text) // 8) * 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors:
        written = 0
        for piece in content(tensor):
            written += len(piece)
            yield piece
        if written != tensor.size:
            raise AssertionError(f"{tensor.name}: {written} bytes instead of {tensor.size}")
