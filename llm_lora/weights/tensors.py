"""Safetensors, one tensor at a time: a model of any size is read and written in little memory."""

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
"""Bytes that are copied at once."""

_WIDTHS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1)
_WIDTHS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 2)
_WIDTHS |= dict.fromkeys(("U32", "I32", "F32"), 4) | dict.fromkeys(("U64", "I64", "F64"), 8)
"""Bytes of a number, by dtype; types that are not among them are seldom and not looked into."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `size` bytes from `start` in `file`; `dtype` as safetensors names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int

    def read(self) -> bytearray:
        """All its bytes, in memory of their own: a mapped file would count whole."""
        data = bytearray(self.size)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            view = memoryview(data)
            while view and (count := file.readinto(view)):
                view = view[count:]
        return data

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, a few at a time."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            for done in range(0, self.size, _PIECE):
                yield file.read(min(_PIECE, self.size - done))


Content = Callable[[Tensor], Iterable[bytes]]
"""Gives the bytes of a tensor that is being written."""


def cut(data: memoryview) -> Iterator[bytes]:
    """The bytes of a buffer, a few at a time."""
    for begin in range(0, len(data), _PIECE):
        yield bytes(data[begin : begin + _PIECE])


def of_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, in the order of their data.

    Raises:
        UserError: the file is cut off or no safetensors file, or a shape does not fit its bytes.
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
    """The tensors of a model's folder, sharded or not; as transformers chooses its files.

    Raises:
        UserError: weights are missing or damaged.
    """
    paths = weight_files(folder)
    if not (folder / INDEX).is_file() and folder / WEIGHTS in paths:
        paths = [folder / WEIGHTS]
    return {name: tensor for path in paths for name, tensor in of_file(path).items()}


def shards(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """Tensors in files of at most `limit` bytes; one that is larger has a file of its own."""
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
        folder: an existing one.
        tensors: name, dtype, shape and size of what is written; their places do not matter.
        content: called once for each tensor, in order.
        limit: bytes of a shard.

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
    # transformers asks for the format in the metadata.
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
    # Readers map the data, which must begin at a multiple of eight.
    text = text.ljust(-(-len(text) // 8) * 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors:
        written = 0
        for piece in content(tensor):
            written += len(piece)
            yield piece
        if written != tensor.size:
            raise AssertionError(f"{tensor.name}: {written} bytes instead of {tensor.size}")
