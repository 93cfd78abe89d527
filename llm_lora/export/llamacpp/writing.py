"""Writing of GGUF files, tensor by tensor, and their verification by reading back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_lora import files
from llm_lora.adapter import Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.base import Chat
from llm_lora.base import text as bases
from llm_lora.errors import UserError
from llm_lora.export.llamacpp import vocabulary
from llm_lora.export.llamacpp.family import OUTPUT, ROPE_FACTORS, Family, package, refuse
from llm_lora.export.llamacpp.vocabulary import Vocabulary
from llm_lora.weights import Tensor, tensors

SCHEMA_KEY = "llm_lora.answer_schema"
ADAPTER_KEY = "llm_lora.adapter_digest"

# NumPy has no bfloat16: such numbers are copied as 16 bits.
_KINDS = {"F32": ("<f4", "F32"), "F16": ("<f2", "F16"), "BF16": ("<u2", "BF16")}
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file: its GGUF type, its shape, and a reader of its numbers."""

    name: str
    kind: str
    shape: tuple[int, ...]
    numbers: Callable[[], npt.NDArray[Any]]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * (4 if self.kind == "F32" else 2)


def require(folder: Path, chat: Chat, texts: Iterable[str]) -> None:
    """Refuse, before any work, a model folder that cannot be written.

    Raises:
        UserError: an unsupported architecture or tokenizer.
    """
    family = Family.of(bases.read_config(folder), str(folder / bases.CONFIG))
    vocabulary.read(folder, family.vocabulary, chat, texts)


def write_model(
    folder: Path,
    path: Path,
    *,
    name: str,
    chat: Chat,
    texts: Iterable[str],
    notes: Mapping[str, str],
) -> Vocabulary:
    """Write a model folder as GGUF: matrices unchanged, vectors in fp32.

    Args:
        folder: config, tokenizer and safetensors.
        path: the file to write.
        name: the name of the model.
        chat: its tokenizer and template.
        texts: texts that verify the tokenizer (`vocabulary.read`).
        notes: further metadata, text by key.

    Returns:
        the vocabulary as written.

    Raises:
        UserError: an unsupported architecture or tokenizer, or a full disk.
    """
    where = str(folder / bases.CONFIG)
    family = Family.of(bases.read_config(folder), where)
    words = vocabulary.read(folder, family.vocabulary, chat, texts)
    source = tensors.of_model(folder)
    entries = [
        _entry(tensor, family, where)
        for name, tensor in source.items()
        if not family.left_out(name)
    ]
    factors = family.rope_factors()
    if factors is not None:
        entries.append(_Entry(ROPE_FACTORS, "F32", factors.shape, lambda: factors))
    kinds = {entry.kind for entry in entries if len(entry.shape) > 1}
    if len(kinds) > 1:
        raise refuse(f"its matrices have several types ({', '.join(sorted(kinds))})", where)

    gguf = package()
    writer = gguf.GGUFWriter(None, family.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kinds.pop()]])
    family.describe(writer)
    words.describe(writer)
    for key, text in notes.items():
        writer.add_string(key, text)
    _write(writer, path, entries)
    return words


def write_adapter(
    adapter: Adapter, base: Path, path: Path, *, name: str, notes: Mapping[str, str]
) -> None:
    """Write an adapter as a GGUF LoRA, for a GGUF file of its base.

    Raises:
        UserError: an unsupported architecture, or a full disk.
    """
    where = str(base / bases.CONFIG)
    family = Family.of(bases.read_config(base), where)
    halves = tensors.of_file(adapter.path / adapters.WEIGHTS)
    entries = []
    for module in adapter.modules:
        weight = f"{module}.weight"
        if weight == OUTPUT:
            raise refuse("the adapter changes the output embedding", str(adapter.path))
        target = family.rename(weight, where)
        a, b = (halves[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        entries += [
            _Entry(f"{target}.lora_a", _kind(a), a.shape, _reader(a)),
            _Entry(f"{target}.lora_b", _kind(b), b.shape, _reader(b, family, weight)),
        ]
    gguf = package()
    writer = gguf.GGUFWriter(None, family.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp divides by the rank.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapters.scale(adapter) * adapter.rank)
    writer.add_name(name)
    for key, text in notes.items():
        writer.add_string(key, text)
    _write(writer, path, entries)


def _entry(tensor: Tensor, family: Family, where: str) -> _Entry:
    """A model's tensor; llama.cpp requires vectors (norms and biases) in fp32."""
    name = family.rename(tensor.name, where)
    read = _reader(tensor, family, tensor.name)
    if len(tensor.shape) > 1:
        return _Entry(name, _kind(tensor), tensor.shape, read)
    return _Entry(name, "F32", tensor.shape, lambda: _as_fp32(read()))


def _kind(tensor: Tensor) -> str:
    """The GGUF type of a tensor.

    Raises:
        UserError: numbers of another type.
    """
    if tensor.dtype not in _KINDS:
        raise refuse(f"{tensor.name} holds numbers of type {tensor.dtype}", str(tensor.file))
    return _KINDS[tensor.dtype][1]


def _reader(
    tensor: Tensor, family: Family | None = None, name: str = ""
) -> Callable[[], npt.NDArray[Any]]:
    kind = _KINDS[_kind(tensor)][0]

    def read() -> npt.NDArray[Any]:
        rows = np.frombuffer(tensor.read(), kind).reshape(tensor.shape)
        return rows if family is None else family.reorder(name, rows)

    return read


def _as_fp32(numbers: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if numbers.dtype == np.uint16:
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32)


def _write(writer: Any, path: Path, entries: list[_Entry]) -> None:
    """Write the file, one tensor in memory at a time, then read it back.

    Raises:
        UserError: the disk is full, or the file differs from what was written.
    """
    kinds = package().GGMLQuantizationType
    for entry in entries:
        dtype = np.dtype(np.float32 if entry.kind == "F32" else np.uint16)
        writer.add_tensor_info(entry.name, entry.shape, dtype, entry.size, kinds[entry.kind])
    fields = {key: value.value for key, value in writer.kv_data[0].items()}
    digests: dict[str, str] = {}
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            numbers = entry.numbers()
            digests[entry.name] = _digest(numbers)
            writer.write_tensor_data(numbers)
        writer.close()
    except OSError as error:
        raise files.write_error(error, path) from error
    _require_written(path, fields, entries, digests)


def _require_written(
    path: Path, fields: Mapping[str, Any], entries: list[_Entry], digests: Mapping[str, str]
) -> None:
    """Compare a file, read by `gguf`'s reader, with the intended content.

    Raises:
        UserError: metadata, a shape or a number differs.
    """
    reader = package().GGUFReader(path)
    read = {key: field.contents() for key, field in reader.fields.items()}
    wrong = [key for key, value in fields.items() if not _same(read.get(key), value)]
    found = {tensor.name: tensor for tensor in reader.tensors}
    for entry in entries:
        tensor = found.pop(entry.name, None)
        # GGUF lists dimensions from the last.
        as_meant = (
            tensor is not None
            and tensor.tensor_type.name == entry.kind
            and tuple(tensor.shape.tolist()) == entry.shape[::-1]
            and _digest(tensor.data) == digests[entry.name]
        )
        wrong += [] if as_meant else [entry.name]
    wrong += found
    if wrong:
        raise UserError(
            f"the file differs from what was written: {', '.join(wrong[:3])}",
            where=str(path),
            fix="check the disk, and run the command again",
        )


def _same(read: Any, meant: Any) -> bool:
    if isinstance(meant, float):
        return read is not None and bool(np.float32(read) == np.float32(meant))
    return bool(read == meant)


def _digest(numbers: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(numbers).view(np.uint8).data).hexdigest()
