"""Captions of pictures: read from a folder, and varied while training."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from llm_lora.data.finding import Finding
from llm_lora.data.image import caption_table
from llm_lora.data.image.caption_table import Table
from llm_lora.errors import UserError
from llm_lora.example import RAW_LIMIT, Rejected

LISTS = ("metadata.csv", "metadata.jsonl")
"""Names of a folder's list of captions; one of them, not both."""

TEXT_SUFFIXES = (".txt", ".caption")
"""Suffixes of caption files beside pictures: a.txt for a.png."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption, in one line, and where it was read from ("metadata.csv:3", "a.txt")."""

    text: str
    where: str


@dataclass(frozen=True)
class Captions:
    """Captions by the picture's path below the folder, with slashes; unused rows with reasons."""

    by_name: Mapping[str, Caption]
    rejected: tuple[Rejected, ...]
    findings: tuple[Finding, ...]


def read(folder: Path, pictures: Collection[str], *, listed: Path | None = None) -> Captions:
    """The captions of a folder's pictures.

    They come from metadata.csv or metadata.jsonl; a picture that is not in the list can have
    NAME.txt or NAME.caption beside it.

    Args:
        folder: where the pictures are.
        pictures: their paths below it, with slashes.
        listed: the list, if it is elsewhere or has another name.

    Raises:
        UserError: there are two lists, or the list cannot be read.
    """
    path = listed if listed is not None else find_list(folder)
    table = caption_table.read(path) if path is not None else None
    reader = _Reader(folder, pictures)
    if table is not None:
        reader.take(table)
    reader.take_texts()
    notes = table.notes if table is not None else ()
    return Captions(reader.found, tuple(reader.rejected), (*notes, *reader.findings()))


def find_list(folder: Path) -> Path | None:
    """The list of captions in a folder.

    Raises:
        UserError: there are two.
    """
    found = [folder / name for name in LISTS if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(
            f"two lists of captions: {' and '.join(LISTS)}", where=str(folder), fix="keep one"
        )
    return found[0] if found else None


def plain_name(name: str) -> str | None:
    """Normalise a picture's path from a list; None if it leads out of the folder.

    >>> plain_name("sub\\\\a.png"), plain_name("./a.png"), plain_name("../a.png")
    ('sub/a.png', 'a.png', None)
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        return None
    return unicodedata.normalize("NFC", str(path))


class _Reader:
    """Matches captions with pictures, and records what did not match."""

    def __init__(self, folder: Path, pictures: Collection[str]) -> None:
        self.found: dict[str, Caption] = {}
        self.rejected: list[Rejected] = []
        self._folder = folder
        # macOS stores file names decomposed (letter and accent apart); lists rarely do.
        self._pictures = {unicodedata.normalize("NFC", name): name for name in pictures}
        self._unused: list[str] = []
        self._foreign: list[str] = []

    def take(self, table: Table) -> None:
        """Read the rows of a list."""
        for row in table.rows:
            where = f"{table.path}:{row.line}"
            name, text = row.values.get(table.name), row.values.get(table.text)
            raw = ", ".join(map(str, row.values.values()))[:RAW_LIMIT]
            reason = row.problem or self._add(name, text, where)
            if reason is not None:
                self.rejected.append(Rejected(where, reason, raw))

    def _add(self, name: object, text: object, where: str) -> str | None:
        """Add a caption; returns the reason if it cannot be used."""
        if not isinstance(name, str) or not name.strip():
            return "a row without the name of a picture"
        plain = plain_name(name.strip())
        if plain is None:
            return f"the path leads out of the folder: {name}"
        picture = self._pictures.get(plain)
        if picture is None:
            return f"no such picture: {name}"
        if picture in self.found:
            return f"a second caption for a picture: {name}, first in {self.found[picture].where}"
        line = one_line(text) if isinstance(text, str) else ""
        if not line:
            return f"the caption is empty: {name}"
        self.found[picture] = Caption(line, where)
        return None

    def take_texts(self) -> None:
        """Read the caption files beside pictures."""
        for name in sorted(self._pictures.values()):
            for suffix in TEXT_SUFFIXES:
                path = (self._folder / name).with_suffix(suffix)
                if path.is_symlink() or not path.is_file():
                    continue
                try:
                    text, encoding = caption_table.decode(path)
                except UserError as error:
                    reason = f"the caption cannot be read: {error.problems[0].what}"
                    self.rejected.append(Rejected(str(path), reason, ""))
                    continue
                line = one_line(text)
                if name in self.found:
                    if line != self.found[name].text:
                        self._unused.append(str(path))
                    continue
                if encoding is not None:
                    self._foreign.append(str(path))
                if line:
                    self.found[name] = Caption(line, str(path))

    def findings(self) -> Iterator[Finding]:
        """Findings of the reading."""
        if self._unused:
            message = "caption files were not used, because their pictures have another caption"
            yield Finding("unused_captions", message, len(self._unused), self._unused[0])
        if self._foreign:
            message = "caption files are not UTF-8; their encoding was guessed"
            yield Finding("encoding", message, len(self._foreign), self._foreign[0])


def one_line(text: str) -> str:
    """A text with every run of white space collapsed to one space, and none at its ends."""
    return " ".join(text.split())


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether a caption contains the trigger, as whole words, ignoring case."""
    words = re.escape(one_line(trigger))
    return re.search(rf"(?<!\w){words}(?!\w)", caption, re.IGNORECASE) is not None


def with_trigger(caption: str, trigger: str | None) -> str:
    """The caption with the trigger in front, unless it contains it already.

    >>> with_trigger("a cat", "ohwx style")
    'ohwx style, a cat'
    """
    if trigger is None or has_trigger(caption, trigger):
        return caption
    return ", ".join(part for part in (one_line(trigger), caption) if part)


def without_trigger(caption: str, trigger: str | None) -> str:
    """The caption without the trigger.

    >>> without_trigger("ohwx style, a cat", "ohwx style")
    'a cat'
    """
    if trigger is None:
        return caption
    words = re.escape(one_line(trigger))
    rest = re.sub(rf"(?<!\w){words}(?!\w)\s*,?", "", caption, flags=re.IGNORECASE)
    return one_line(rest).strip(" ,")


def tags(caption: str) -> list[str]:
    """The parts of a caption between commas, without empty ones."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def vary(
    caption: str, rng: random.Random, *, dropout: float = 0.0, shuffle: bool = False, keep: int = 0
) -> str:
    """A caption for one showing: "" with probability `dropout`, else its tags, possibly reordered.

    Args:
        rng: `chance.dice("caption", seed, view.picture, view.turn)`, which repeats.
        dropout: share of showings without a caption, as guidance needs (arXiv 2207.12598).
        shuffle: put the tags (parts between commas) in a random order.
        keep: the number of leading tags that keep their place.
    """
    if rng.random() < dropout:
        return ""
    if not shuffle:
        return caption
    parts = tags(caption)
    rest = parts[keep:]
    rng.shuffle(rest)
    return ", ".join(parts[:keep] + rest)
