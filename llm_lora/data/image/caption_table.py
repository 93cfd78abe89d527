"""Lists of captions: metadata.csv and metadata.jsonl, one row for each picture.

People write them by hand and in spreadsheets, so obvious intentions are accepted and reported:
other encodings, semicolons or tabs between columns, captions with commas but without quotes,
unclosed quotes.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.data import rows
from llm_lora.data.finding import Finding
from llm_lora.errors import UserError

NAMES = ("file_name", "filename", "image")
TEXTS = ("text", "prompt", "caption")
"""Column names, in any case; the first of each is the one written (Hugging Face's imagefolder)."""

_GB2312 = re.compile(rb"(?:[\x00-\x7f]|[\xa1-\xf7][\xa1-\xfe])*")
_FIX = f"put {NAMES[0]},{TEXTS[0]} on the first line, above the pictures and their captions"


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its line, its values by key, and the problem that makes it unusable, if any."""

    line: int
    values: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """A list of captions as stored in its file.

    `columns` are the keys in their order; `name` and `text` are those of picture and caption;
    `notes` report the repairs made while reading.
    """

    path: Path
    columns: tuple[str, ...]
    name: str
    text: str
    rows: tuple[Row, ...]
    notes: tuple[Finding, ...] = ()

    @property
    def doubled(self) -> tuple[str, ...]:
        """Duplicate column names; a row keeps only the last of their values."""
        return tuple(name for name, count in Counter(self.columns).items() if count > 1)


def empty(path: Path) -> Table:
    """A list without rows, for a folder that has none yet."""
    return Table(path, (NAMES[0], TEXTS[0]), NAMES[0], TEXTS[0], ())


def read(path: Path) -> Table:
    """Read a list of captions: JSON Lines if the suffix is .jsonl, else CSV.

    Raises:
        UserError: it cannot be read, is not text, or its columns are not recognised.
    """
    return _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)


def write(table: Table) -> None:
    """Write a list in its own format, atomically: CSV in UTF-8, quoted if needed, or JSON Lines.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    if table.path.suffix.lower() == ".jsonl":
        files.write_jsonl(table.path, (row.values for row in table.rows))
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([row.values.get(column, "") for column in table.columns])
    files.write_text(table.path, text.getvalue())


def decode(path: Path) -> tuple[str, str | None]:
    """The text of a file, and its encoding if it is not UTF-8.

    UTF-16 is recognised by its byte order mark. Of the others, Chinese bytes always come in pairs,
    which accents in Western text hardly ever do.

    Raises:
        UserError: it cannot be read, or is not text in any of them.
    """
    data = files.read_bytes(path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif _is_utf8(data):
        encoding = "utf-8-sig"
    else:
        encoding = "gb18030" if _GB2312.fullmatch(data) else "cp1252"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError("this is not text", where=str(path), fix="save it as text in UTF-8")
    return text, None if encoding == "utf-8-sig" else encoding


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# JSON Lines


def _read_jsonl(path: Path) -> Table:
    found = list(rows.read(path))
    keys = list(dict.fromkeys(k for row in found if isinstance(row.value, dict) for k in row.value))
    name, text = _chosen(keys, path)
    parsed = [
        Row(row.line, row.value)
        if isinstance(row.value, dict)
        else Row(row.line, {}, row.problem or "not a JSON object")
        for row in found
    ]
    return Table(path, tuple(keys), name, text, tuple(parsed))


def _chosen(keys: Sequence[str], path: Path) -> tuple[str, str]:
    """The keys of picture and caption."""
    found = []
    for what, known in (("picture", NAMES), ("caption", TEXTS)):
        usable = [key for key in keys if key.strip().lower() in known]
        if len(usable) > 1:
            several = " and ".join(usable)
            raise UserError(
                f"more than one column names the {what}: {several}",
                where=f"{path}:1",
                fix="keep one",
            )
        if not usable:
            shown = ", ".join(key.strip()[:30] for key in keys[:6]) or "none"
            raise UserError(
                f"no column names the {what}: expected {', '.join(known)}; found {shown}",
                where=f"{path}:1",
                fix=_FIX,
            )
        found += usable
    return found[0], found[1]


# CSV


def _read_csv(path: Path) -> Table:
    text, encoding = decode(path)
    lines = [f"{line}\n" for line in re.split(r"\r\n|\r|\n", text)]
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise UserError("the file is empty", where=str(path), fix=_FIX)
    delimiter = _delimiter(lines[first])
    records = _records(lines, first, delimiter)
    header = [cell.strip() for cell in next(records).fields]
    name, caption = _chosen(header, path)
    joined: list[int] = []
    broken: list[int] = []
    found = []
    for record in records:
        if not any(cell.strip() for cell in record.fields):
            continue
        fields = _joined(record.fields, len(header), header.index(caption), delimiter)
        if fields is None:
            surplus = f"{len(record.fields)} values for {len(header)} columns"
            problem = f"too many values, quote the caption: {surplus}"
            found.append(Row(record.line, {}, problem))
            continue
        if len(fields) < len(record.fields) and any(record.fields[len(header) :]):
            joined.append(record.line)
        if not record.closed:
            broken.append(record.line)
        values = dict(zip(header, (cell.strip() for cell in fields), strict=False))
        found.append(Row(record.line, values))
    notes = []
    if encoding is not None:
        message = f"the list of captions was read as {encoding}; save it as UTF-8"
        notes.append(Finding("encoding", message, 1, str(path)))
    if joined:
        message = "captions with commas have no quotes; their parts were rejoined"
        notes.append(Finding("unquoted_commas", message, len(joined), f"{path}:{joined[0]}"))
    if broken:
        message = "rows have unclosed quotes; each was read to the end of its line"
        notes.append(Finding("open_quotes", message, len(broken), f"{path}:{broken[0]}"))
    return Table(path, tuple(header), name, caption, tuple(found), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Record:
    line: int
    fields: list[str]
    closed: bool = True


def _delimiter(header: str) -> str:
    """The column delimiter: a comma, or what spreadsheets write instead."""
    known = {*NAMES, *TEXTS}

    def columns(delimiter: str) -> int:
        return sum(cell.strip(' "\n').lower() in known for cell in header.split(delimiter))

    return max((",", ";", "\t"), key=columns)


def _records(lines: Sequence[str], start: int, delimiter: str) -> Iterator[_Record]:
    """The records from a line on; a record with malformed quotes ends with its line."""
    while start < len(lines):
        reader = csv.reader(islice(lines, start, None), delimiter=delimiter, strict=True)
        before = 0
        try:
            for fields in reader:
                raw = lines[start + before : start + reader.line_num]
                yield _Record(start + before + 1, _spaced(fields, raw, delimiter))
                before = reader.line_num
            return
        except csv.Error:
            fields = [_bare(cell) for cell in lines[start + before].split(delimiter)]
            yield _Record(start + before + 1, fields, closed=False)
            start += before + 1


def _bare(cell: str) -> str:
    """A value without its unmatched quote."""
    return cell.replace('"', "", 1) if cell.count('"') % 2 else cell


def _spaced(fields: list[str], raw: Iterable[str], delimiter: str) -> list[str]:
    """Read a record whose quotes follow a space (`a.png, "red, blue"`) as intended."""
    if not any(cell[:1].isspace() and cell.lstrip().startswith('"') for cell in fields):
        return fields
    try:
        reader = csv.reader(raw, delimiter=delimiter, skipinitialspace=True, strict=True)
        (found,) = reader
    except (csv.Error, ValueError):
        return fields
    return found


def _joined(fields: list[str], columns: int, caption: int, delimiter: str) -> list[str] | None:
    """Rejoin a caption that was split at commas; None if that would be a guess.

    It is unambiguous if the caption is the last column, or one of two.
    """
    while len(fields) > columns and not fields[-1].strip():
        fields = fields[:-1]
    surplus = len(fields) - columns
    if surplus <= 0:
        return fields
    if caption != columns - 1 and columns > 2:
        return None
    end = caption + surplus + 1
    return [*fields[:caption], delimiter.join(fields[caption:end]), *fields[end:]]
