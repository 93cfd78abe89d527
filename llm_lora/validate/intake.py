"""Reading of answers from files of any supported format and size, block by block.

Supported are JSON Lines, one JSON array or one JSON document, each plain or compressed with gzip or
zstd, a text column of a Parquet file, and standard input. Only a few blocks are in memory at once.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from llm_lora.data import rows
from llm_lora.errors import UserError
from llm_lora.schema import json_text as jsontext

STDIN = Path("-")
BLOCK = 1 << 20
"""Size of a block in bytes."""

LARGEST = 64 << 20
"""Maximum size of a line, array item or document in bytes."""

RECORD_KEYS = ("answer", "response", "text")
"""Keys for the answer of a record: in answers.jsonl, training data and plain model output."""

_HEAD = 1 << 16
_YOUNG = 8 << 20
_ITEMS = 1000
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")
_TEXT_TYPES = ("string", "binary")


class Readable(Protocol):
    """A source of bytes: a file, a decompressing stream or a pipe."""

    def read(self, size: int = -1, /) -> bytes: ...

    def read1(self, size: int = -1, /) -> bytes: ...


class Block(Protocol):
    """Consecutive answers of a file."""

    @property
    def size(self) -> int:
        """Approximate size in bytes."""

    def read(self) -> Lines | Items:
        """Read the answers."""


@dataclass(frozen=True)
class Lines:
    """Complete lines, each an answer, a record or blank."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self) -> Lines:
        return self


@dataclass(frozen=True)
class Items:
    """Texts with their lines (rows in a Parquet file); `bare` if each is just an answer's text."""

    texts: list[bytes]
    lines: Sequence[int]
    bare: bool

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))

    def read(self) -> Items:
        return self


@dataclass(frozen=True)
class Span:
    """The lines of a plain file that start in a range of bytes; read by the judging process."""

    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def read(self) -> Lines:
        with self.path.open("rb") as file:
            if self.start:
                # Skip the rest of the line that started in the previous span.
                file.seek(self.start - 1)
                file.readline()
            length = self.stop - file.tell()
            if length <= 0:
                return Lines(b"")
            data = file.read(length)
            if not self.start:
                data = data.removeprefix(_MARK)
            rest = b"" if data.endswith(b"\n") else file.readline(LARGEST)
        if len(rest) == LARGEST:
            raise _too_large(self.path, "a line")
        return Lines(data + rest)


def blocks(path: Path, *, column: str | None, arrays: bool) -> Iterator[Block]:
    """The answers of a file, or of standard input (`-`).

    Args:
        path: the file.
        column: the column of a Parquet file that holds the answers; None to choose it by name.
        arrays: whether answers may be arrays, so that a line with an array is one answer.

    Raises:
        UserError: the file cannot be read, or is damaged (with the place, if known).
    """
    try:
        yield from _blocks(path, column, arrays)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), fix="check the path") from None
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{error.object[error.start]:02x}"
        raise UserError(what, where=str(path), fix="save the file as UTF-8") from None
    except (EOFError, zlib.error) as error:
        raise UserError(
            f"damaged: {error}", where=str(path), fix="compress the file again"
        ) from None
    except OSError as error:
        what = f"cannot read: {error.strerror or error}"
        raise UserError(
            what, where=str(path), fix="check that the file is complete and readable"
        ) from None


def _blocks(path: Path, column: str | None, arrays: bool) -> Iterator[Block]:
    with _open(path) as file:
        magic = file.read(4)
        if magic == _PARQUET:
            yield from _column(path, column)
            return
        for sign, what, fix in rows.FOREIGN:
            if magic.startswith(sign):
                raise UserError(f"this is {what}, not UTF-8 text", where=str(path), fix=fix)
        stream = _unpacked(_rewound(magic, file), magic)
        head = _head(stream)
        form = _form(head, arrays)
        stream = _rewound(head.removeprefix(_MARK), stream)
        if form == "array":
            yield from _items(path, io.TextIOWrapper(stream, "utf-8", newline=""))
        elif form == "document":
            yield _document(path, stream.read(LARGEST))
        elif magic[:2] == _GZIP or magic == _ZSTD or not path.is_file():
            yield from _lines(path, stream)
        else:
            size = path.stat().st_size
            yield from (Span(path, at, min(at + BLOCK, size)) for at in range(0, size, BLOCK))


def _open(path: Path) -> AbstractContextManager[Readable]:
    if path != STDIN:
        return path.open("rb")
    if sys.stdin is None:
        raise UserError("standard input is closed", where="-", fix="name a file, or pipe one in")
    return nullcontext(cast(Readable, sys.stdin.buffer))


class _Rewound(io.RawIOBase):
    """A stream that starts again with bytes that were already read from it."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._rest.read1(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def _rewound(head: bytes, rest: Readable) -> io.BufferedReader:
    return io.BufferedReader(_Rewound(head, rest), BLOCK)


def _unpacked(stream: io.BufferedReader, magic: bytes) -> Readable:
    if magic[:2] == _GZIP:
        return gzip.GzipFile(fileobj=stream)
    if magic == _ZSTD:
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream), "zstd"))
    return stream


def _head(stream: Readable) -> bytes:
    """As much of the start of a stream as is needed to detect its format."""
    head = b""
    while len(head) < _HEAD and (piece := stream.read1(_HEAD)):
        head += piece
        first, ended, rest = head.removeprefix(_MARK).lstrip().partition(b"\n")
        if rest.strip() or (ended and not first.startswith(b"[")):
            break
    return head


def _form(head: bytes, arrays: bool) -> Literal["lines", "array", "document"]:
    """Detect the format: an array or a document starts on a line that does not end it.

    A file with a single line that holds an array is an array too.
    """
    first, _, rest = head.removeprefix(_MARK).lstrip().partition(b"\n")
    first, more = first.rstrip(), bool(rest.strip())
    if first == b"{":
        return "document"
    if first.startswith(b"[") and not (first.endswith(b"]") and (more or arrays)):
        return "array"
    return "lines"


def _document(path: Path, text: bytes) -> Items:
    """One answer that spans several lines."""
    if len(text) == LARGEST:
        raise _too_large(path, "a document")
    blank = len(text) - len(text.lstrip())
    return Items([text.strip()], [text.count(b"\n", 0, blank) + 1], bare=False)


def _lines(path: Path, stream: io.BufferedReader) -> Iterator[Lines]:
    """Complete lines; at the start of a stream without delay, as someone may be typing."""
    parts: list[bytes] = []
    total = held = 0
    while piece := (stream.read1(BLOCK) if total < _YOUNG else stream.read(BLOCK)):
        total += len(piece)
        end = piece.rfind(b"\n") + 1
        if end:
            yield Lines(b"".join([*parts, piece[:end]]))
            parts, held = [], 0
        parts.append(piece[end:])
        held += len(piece) - end
        if held > LARGEST:
            raise _too_large(path, "a line")
    if held:
        yield Lines(b"".join(parts))


class _Array:
    """The items of a JSON array, read through a sliding window over the text."""

    def __init__(self, path: Path, text: io.TextIOWrapper) -> None:
        self._path, self._text = path, text
        self._window, self._at, self._ended = "", 0, False
        self._line, self._counted = 1, 0
        self._decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Text and line of each item."""
        self._next("[")
        if self._peek() != "]":
            yield self._item()
            while self._next(",]") == ",":
                yield self._item()
        else:
            self._next("]")
        if rest := self._peek():
            raise self._broken(f"text after the array: {rest}")

    def _more(self) -> bool:
        """Slide and double the window; false at the end of the text."""
        if self._ended:
            return False
        kept = len(self._window) - self._at
        if kept > LARGEST:
            raise self._broken(f"an item is broken, or larger than {LARGEST >> 20} MiB")
        self._count()
        piece = self._text.read(max(BLOCK, kept))
        self._window, self._at, self._counted = self._window[self._at :] + piece, 0, 0
        self._ended = not piece
        return not self._ended

    def _count(self) -> None:
        self._line += self._window.count("\n", self._counted, self._at)
        self._counted = self._at

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._window, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def _next(self, wanted: str) -> str:
        found = self._peek()
        if not found:
            raise self._broken("the array is cut off")
        if found not in wanted:
            expected = " or ".join(wanted)
            raise self._broken(f"expected {expected} after an item, got {jsontext.quote(found)}")
        self._at += 1
        return found

    def _item(self) -> tuple[str, int]:
        self._peek()
        while True:
            try:
                end = self._decoder.raw_decode(self._window, self._at)[1]
            except (ValueError, RecursionError):
                if not self._more():
                    raise self._flawed() from None
                continue
            # A number at the edge of the window may continue beyond it.
            if end < len(self._window) or not self._more():
                break
        self._count()
        text, self._at = self._window[self._at : end], end
        return text, self._line

    def _flawed(self) -> UserError:
        rest = self._window[self._at :]
        try:
            jsontext.parse(rest)
        except jsontext.NotJson as error:
            flaw = error.flaws[0]
            self._at += flaw.position
            return self._broken(f"not JSON: {flaw.message}")
        raise AssertionError("the decoder accepts whatever jsontext does")

    def _broken(self, what: str) -> UserError:
        self._count()
        fix = "correct it, or save one answer per line (JSON Lines): then only that answer is lost"
        return UserError(what, where=f"{self._path}:{self._line}", fix=fix)


def _items(path: Path, text: io.TextIOWrapper) -> Iterator[Items]:
    items = iter(_Array(path, text))
    while batch := list(islice(items, _ITEMS)):
        yield Items([text.encode() for text, _ in batch], [line for _, line in batch], bare=False)


def _column(path: Path, column: str | None) -> Iterator[Items]:
    """A text column of a Parquet file; row numbers count as line numbers."""
    import pyarrow
    from pyarrow import parquet

    if path == STDIN:
        fix = "name the file; reading Parquet needs random access"
        raise UserError("Parquet cannot be read from standard input", fix=fix)
    try:
        with parquet.ParquetFile(path) as file:
            name = _chosen(path, file.schema_arrow, column)
            row = 1
            for batch in file.iter_batches(batch_size=_ITEMS, columns=[name], use_threads=False):
                texts = [_bytes(text) for text in batch.column(0).to_pylist()]
                yield Items(texts, range(row, row + len(texts)), bare=True)
                row += len(texts)
    except pyarrow.ArrowException as error:
        what = f"damaged: {jsontext.excerpt(str(error))}"
        raise UserError(what, where=str(path), fix="write the Parquet file again") from None


def _bytes(text: str | bytes | None) -> bytes:
    return text.encode() if isinstance(text, str) else text or b""


def _chosen(path: Path, schema: Any, column: str | None) -> str:
    """The column to read: the one asked for, or else one with a usual name for answers."""
    texts = [
        field.name for field in schema if str(field.type).removeprefix("large_") in _TEXT_TYPES
    ]
    usual = [name for name in (*RECORD_KEYS, *texts[: len(texts) == 1]) if name in texts]
    chosen = column or next(iter(usual), None)
    if chosen in texts:
        return str(chosen)
    what = f"no text column named {column}" if column else "which column holds the answers?"
    names = ", ".join(texts) or "none"
    raise UserError(what, where=str(path), fix=f"--column NAME; text columns: {names}")


def _too_large(path: Path, what: str) -> UserError:
    fix = "save one answer per line (JSON Lines)"
    return UserError(f"{what} is larger than {LARGEST >> 20} MiB", where=str(path), fix=fix)
