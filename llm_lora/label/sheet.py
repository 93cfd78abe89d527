"""The caption list of a folder, with a record of which captions machines wrote.

A hidden file beside the list records what machines wrote for each picture. Any other caption was
written or changed by a person.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llm_lora import files
from llm_lora.data.image import Row, Table, caption_table, captions
from llm_lora.data.image import folder as picture_folder
from llm_lora.errors import Problem, UserError

MEMORY = ".labels.json"
"""Name of the record of machine captions, by picture."""


@dataclass(frozen=True, slots=True)
class Written:
    """Machine captions of a picture: all texts, and the origin of the last one.

    `sha256` is that of the labelled picture; `settings` identifies everything that the caption
    depended on.
    """

    sha256: str
    captions: tuple[str, ...]
    method: str
    model: str
    settings: str
    score: float | None


Origin = Literal["machine", "person", "none"]


@dataclass(frozen=True, slots=True)
class Item:
    """A picture with its present caption, and its machine captions."""

    name: str
    path: Path
    caption: str
    origin: Origin
    written: Written | None


class Sheet:
    """The captions of a folder, read and written back; people may edit the list meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Read the folder, its list and the record of machine captions.

        Raises:
            UserError: there is no such folder, or its list has rows that could not be written back.
        """
        self.folder = folder
        self.pictures = picture_folder.find(folder).pictures
        self.table = self._read()
        self._memory = _read_memory(folder / MEMORY)

    def items(self) -> tuple[Item, ...]:
        """Every picture with its caption and the caption's author, sorted by name."""
        listed: dict[str | None, Row] = {}
        for plain, row in self._rows():
            listed.setdefault(plain, row)
        found = []
        for name, path in self.pictures.items():
            caption = self._caption(listed.get(_plain(name)))
            beside = "" if caption else self._beside(path)
            written = self._memory.get(name)
            origin: Origin = "person" if caption or beside else "none"
            if caption and written is not None and caption in written.captions:
                origin = "machine"
            found.append(Item(name, path, caption or beside, origin, written))
        return tuple(found)

    def save(self, labels: Mapping[str, Written]) -> None:
        """Write captions into the list, unless a person wrote one there meanwhile.

        The record of machine captions is written before the list: after an interruption a missing
        row is labelled again, and no machine caption is ever mistaken for a person's.

        Raises:
            UserError: the disk is full, or the list was damaged meanwhile.
        """
        for name, written in labels.items():
            before = self._memory[name].captions if name in self._memory else ()
            every = tuple(dict.fromkeys((*before, *written.captions)))
            self._memory[name] = replace(written, captions=every)
        memory = {name: asdict(written) for name, written in sorted(self._memory.items())}
        files.write_json(self.folder / MEMORY, {"format": 1, "pictures": memory})
        self.table = self._read()
        rows = list(self.table.rows)
        places = {name: place for place, (name, _) in reversed(list(enumerate(self._rows())))}
        for name, written in labels.items():
            place = places.get(_plain(name))
            caption = written.captions[-1]
            if place is None:
                values = {self.table.name: name, self.table.text: caption}
                rows.append(Row(0, values))
            elif not (old := self._caption(rows[place])) or old in self._memory[name].captions:
                values = {**rows[place].values, self.table.text: caption}
                rows[place] = replace(rows[place], values=values)
        self.table = replace(self.table, rows=tuple(rows))
        caption_table.write(self.table)

    def _read(self) -> Table:
        path = captions.find_list(self.folder)
        if path is None:
            return caption_table.empty(self.folder / captions.LISTS[0])
        table = caption_table.read(path)
        problems = [
            Problem(row.problem, f"{path}:{row.line}", "fix the row first; it would be lost")
            for row in table.rows
            if row.problem is not None
        ]
        for column in table.doubled:
            what = f"is named {column}" if column else "has no name"
            told = f"more than one column {what}; values would be lost"
            problems.append(Problem(told, f"{path}:1", "rename or remove one"))
        if problems:
            raise UserError(problems)
        return table

    def _rows(self) -> Iterator[tuple[str | None, Row]]:
        """Rows with their pictures' normalised names."""
        for row in self.table.rows:
            name = row.values.get(self.table.name)
            yield captions.plain_name(name.strip()) if isinstance(name, str) else None, row

    def _caption(self, row: Row | None) -> str:
        text = row.values.get(self.table.text) if row is not None else None
        return captions.one_line(text) if isinstance(text, str) else ""

    def _beside(self, path: Path) -> str:
        """The caption in a file beside a picture; only people write those."""
        for suffix in captions.TEXT_SUFFIXES:
            text = path.with_suffix(suffix)
            if not text.is_file():
                continue
            try:
                line = captions.one_line(caption_table.decode(text)[0])
            except UserError:
                continue  # Not text; the data check reports it.
            if line:
                return line
        return ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _read_memory(path: Path) -> dict[str, Written]:
    """Read the record of machine captions.

    Raises:
        UserError: the file is damaged; without it, edits and labels are indistinguishable.
    """
    if not path.is_file():
        return {}
    try:
        document: dict[str, Any] = json.loads(files.read_text(path))
        return {
            name: Written(**{**row, "captions": tuple(row["captions"])})
            for name, row in document["pictures"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the record of machine captions is damaged: {error!r}",
            where=str(path),
            fix="restore it, or remove it: then all captions count as written by people",
        ) from None
