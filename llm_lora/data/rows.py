"""Rows of a data file (JSON Lines, one JSON array, or plain-text questions and answers), each with
its line number and value or problem.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from llm_lora import files
from llm_lora.data import qa_text
from llm_lora.errors import Problem, UserError
from llm_lora.schema import json_text as jsontext

FOREIGN = (
    (b"\xff\xfe", "UTF-16 text", "save the file as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save the file as UTF-8"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or export it as JSONL"),
)
"""Unsupported file types: first bytes, name, and what to do."""

_FOREIGN = (
    *FOREIGN,
    (b"\x1f\x8b", "compressed with gzip", "unpack it first (gunzip)"),
    (b"PAR1", "a Parquet file", "export it as JSONL"),
)

_HEAD = 4096


class Row(NamedTuple):
    """One row: line number from 1, source text, and value or problem."""

    line: int
    raw: str
    value: object
    problem: str | None = None


def read(path: Path) -> Iterator[Row]:
    """The rows of a file in order; blank lines and a byte order mark are skipped.

    A plain-text question with its answer becomes the row {"question": …, "answer": …}, whether the
    whole file is such text or its JSON strings are.

    Raises:
        UserError: immediately, if the file is missing, empty, not UTF-8 text, or a JSON array with
            a syntax error (after which rows cannot be separated).
    """
    data = files.read_bytes(path)
    for magic, what, fix in _FOREIGN:
        if data.startswith(magic):
            raise UserError(f"this is {what}, not UTF-8 text", where=str(path), fix=fix)
    if b"\0" in data[:4096]:
        raise UserError(
            "this is a binary file or UTF-16 text", where=str(path), fix="save it as UTF-8 JSONL"
        )
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise UserError("the file is empty", where=str(path), fix="write one JSON object per line")
    format = next(one for one in _FORMATS if one.fits(data))
    return format.rows(path, data)


def _is_pairs(data: bytes) -> bool:
    return qa_text.is_pairs(data[:_HEAD].decode(errors="replace"))


def _pairs(text: str) -> Iterator[Row]:
    for pair in qa_text.pairs(text):
        value = {"question": pair.question, "answer": pair.answer}
        problem = None if pair.answer is not None else "a question without an answer"
        yield Row(pair.line, pair.raw, value if problem is None else None, problem)


def _paired(row: Row) -> Row:
    """A row whose string holds a question and its answer, split into both."""
    if not isinstance(row.value, str) or not qa_text.is_pairs(row.value):
        return row
    (found, *more) = _pairs(row.value)
    problem = "several questions in one row" if more else found.problem
    return Row(row.line, row.raw, None if problem else found.value, problem)


def _is_array(data: bytes) -> bool:
    """Whether the file is one JSON array rather than lines that happen to be arrays."""
    text = data.strip()
    if not text.startswith(b"["):
        return False
    line, _, rest = text.partition(b"\n")
    return not rest or not line.rstrip().endswith(b"]")


def _array(path: Path) -> Iterator[Row]:
    text = files.read_text(path)
    _require_json(path, text)
    return _items(text)


def _lines(data: bytes) -> Iterator[Row]:
    start = number = 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        if line := data[start:end].rstrip():
            yield _line(number, line, start)
        start = end + 1


def _line(number: int, line: bytes, start: int) -> Row:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte 0x{line[error.start]:02x} at offset {start + error.start}"
        return Row(number, line.decode("utf-8", "backslashreplace"), None, problem)
    try:
        return Row(number, text, jsontext.parse(text))
    except jsontext.NotJson as error:
        # The row is one line, whose number the caller adds.
        return Row(
            number, text, None, f"not JSON: {error}".replace("at line 1, column", "at column")
        )


def _require_json(path: Path, text: str) -> None:
    try:
        jsontext.parse(text)
    except jsontext.NotJson as error:
        fix = "correct it, or save one JSON object per line: then only that row is set aside"
        raise UserError(
            Problem(
                f"not JSON: {flaw.message}",
                f"{path}:{jsontext.line_column(text, flaw.position)[0]}",
                fix,
            )
            for flaw in error.flaws
        ) from None


def _items(text: str) -> Iterator[Row]:
    """The items of a valid array, each with the line that it starts on."""
    decoder = json.JSONDecoder()
    position, line, counted = _skip(text, text.index("[") + 1), 1, 0
    while text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        value, end = decoder.raw_decode(text, position)
        yield Row(line, text[position:end], value)
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    while text[position].isspace():
        position += 1
    return position


class _Format(NamedTuple):
    """A way to write rows: whether a file's bytes look like it, and how they are read."""

    fits: Callable[[bytes], bool]
    rows: Callable[[Path, bytes], Iterator[Row]]


_FORMATS = (
    _Format(_is_pairs, lambda path, data: _pairs(files.read_text(path))),
    _Format(_is_array, lambda path, data: map(_paired, _array(path))),
    # JSON Lines fit last and always: a file that is nothing else has lines with mistakes.
    _Format(lambda data: True, lambda path, data: map(_paired, _lines(data))),
)
"""The formats of files; the first that fits counts."""
