"""Captions by machine: which pictures want one, what is written, and what a person wrote, kept.

Captions go into the folder's list (metadata.csv, or metadata.jsonl where there is one). A hidden
file beside it remembers what a machine wrote for which picture. A caption that is not among that
was written or changed by a person and is never touched, also with `redo`. Both files are written
as the work goes on, so that what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_lora import caption_table, captions, files, picture_files, picture_folder
from llm_lora.caption_table import Row, Table
from llm_lora.errors import Problem, UserError
from llm_lora.formats import Rejected
from llm_lora.picture_files import Unusable

if TYPE_CHECKING:
    from PIL import Image

MEMORY = ".labels.json"
"""What a machine wrote, by picture."""

_SAVE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Label:
    """What a machine says of a picture; `score`, 0 to 1, is how sure it is, where it tells."""

    caption: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a machine says nothing of a picture."""

    reason: str


Labeller = Callable[[Sequence["Image.Image"]], Sequence[Label | Failure]]
"""Looks at some pictures in RGB at once."""


@dataclass(frozen=True, slots=True)
class Written:
    """What machines wrote for a picture: all captions, and of the last one how it came about.

    `sha256` is that of the picture labelled; `settings` identifies everything that decided over
    the caption.
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
    """A picture with its caption, as the folder has it, and what machines wrote for it."""

    name: str
    path: Path
    caption: str
    origin: Origin
    written: Written | None


@dataclass(frozen=True)
class Outcome:
    """What was done: captions written anew, those kept of people and of machines, failures.

    `path` is the list with the captions; `items` are all pictures as they stand now.
    """

    path: Path
    written: int
    people: int
    machine: int
    failed: tuple[Rejected, ...]
    items: tuple[Item, ...]


class Sheet:
    """The captions of a folder, read and written back; a person may edit the list meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Read the folder, its list and what machines wrote.

        Raises:
            UserError: there is no such folder, or its list has rows that could not be written back.
        """
        self.folder = folder
        self.pictures = picture_folder.find(folder).pictures
        self.table = self._read()
        self._memory = _read_memory(folder / MEMORY)

    def items(self) -> tuple[Item, ...]:
        """Every picture with its caption and who wrote it, in the order of names."""
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

        What machines wrote is remembered first: a row that is not yet in the list is asked for
        again after an interruption, and none is ever taken for a person's.

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
            Problem(row.problem, f"{path}:{row.line}", "mend the row first, for it would be lost")
            for row in table.rows
            if row.problem is not None
        ]
        for column in table.doubled:
            what = f"is named {column}" if column else "has no name"
            told = f"more than one column {what}, and values would be lost"
            problems.append(Problem(told, f"{path}:1", "rename or remove one"))
        if problems:
            raise UserError(problems)
        return table

    def _rows(self) -> Iterator[tuple[str | None, Row]]:
        """Rows with their pictures' names made comparable."""
        for row in self.table.rows:
            name = row.values.get(self.table.name)
            yield captions.plain_name(name.strip()) if isinstance(name, str) else None, row

    def _caption(self, row: Row | None) -> str:
        text = row.values.get(self.table.text) if row is not None else None
        return captions.one_line(text) if isinstance(text, str) else ""

    def _beside(self, path: Path) -> str:
        """The caption in a file beside a picture, which only people write."""
        for suffix in captions.TEXT_SUFFIXES:
            text = path.with_suffix(suffix)
            if not text.is_file():
                continue
            try:
                line = captions.one_line(caption_table.decode(text)[0])
            except UserError:
                continue  # No text; the data check tells.
            if line:
                return line
        return ""


@dataclass(frozen=True)
class Order:
    """How to label: what is remembered of the labeller, and what becomes of its captions.

    `details` is all else that decides over captions: candidates, instructions. `trigger` is put
    in front of every caption that lacks it. With `redo`, what a machine labelled under other
    settings is labelled again; a person's captions stay.
    """

    method: str
    model: str
    details: str = ""
    trigger: str | None = None
    redo: bool = False
    batch_size: int = 16

    def settings(self) -> str:
        """Identity of everything that decides over captions."""
        return files.sha256(json.dumps([self.method, self.model, self.details, self.trigger]))[:16]


def label(
    folder: Path,
    make: Callable[[], Labeller],
    order: Order,
    listener: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Write a caption for every picture of a folder that has none.

    Args:
        folder: holds the pictures.
        make: makes the labeller, and is called only where there is something to label.
        order: how to label.
        listener: told how many pictures are done, of how many.

    Raises:
        UserError: the folder cannot be used, or the labeller cannot go on; what was labelled
            until then is kept.
    """
    with _claimed(folder), picture_files.bombs_refused():
        sheet = Sheet(folder)
        items = sheet.items()
        digests, failed = _digests(items)
        todo = [item for item in items if item.name in digests and _wanted(item, digests, order)]
        written = _fill(sheet, todo, digests, make, order, failed, listener) if todo else 0
    again = {item.name for item in todo}
    return Outcome(
        path=sheet.table.path,
        written=written,
        people=sum(item.origin == "person" for item in items),
        machine=sum(item.origin == "machine" and item.name not in again for item in items),
        failed=tuple(failed),
        items=sheet.items(),
    )


def _fill(
    sheet: Sheet,
    todo: Sequence[Item],
    digests: Mapping[str, str],
    make: Callable[[], Labeller],
    order: Order,
    failed: list[Rejected],
    listener: Callable[[int, int], None],
) -> int:
    """Label pictures and save as time goes by; how many got a caption."""
    pending: dict[str, Written] = {}
    written = done = 0
    listener(0, len(todo))
    labeller, saved = make(), time.monotonic()
    queue = iter(todo)
    try:
        while batch := list(islice(queue, order.batch_size)):
            for item, said in _labelled(batch, labeller, failed):
                caption = captions.with_trigger(captions.one_line(said.caption), order.trigger)
                pending[item.name] = Written(
                    sha256=digests[item.name],
                    captions=(caption,),
                    method=order.method,
                    model=order.model,
                    settings=order.settings(),
                    score=said.score,
                )
                written += 1
            done += len(batch)
            listener(done, len(todo))
            if time.monotonic() - saved >= _SAVE_SECONDS:
                sheet.save(pending)
                pending, saved = {}, time.monotonic()
    finally:
        if pending:
            sheet.save(pending)
    return written


def _wanted(item: Item, digests: Mapping[str, str], order: Order) -> bool:
    """Whether a picture wants a caption: it has none, or a machine's that is out of date."""
    if item.origin != "machine" or item.written is None:
        return item.origin == "none"
    current = (
        item.written.settings == order.settings() and item.caption == item.written.captions[-1]
    )
    return item.written.sha256 != digests[item.name] or (order.redo and not current)


def _digests(items: Sequence[Item]) -> tuple[dict[str, str], list[Rejected]]:
    """Digests of the pictures, and those that cannot be looked at."""
    failed = []
    found = {}

    def one(item: Item) -> picture_files.Head | Unusable:
        try:
            return picture_files.head(item.path)
        except Unusable as reason:
            return reason

    with ThreadPoolExecutor() as pool:
        for item, head in zip(items, pool.map(one, items), strict=True):
            if isinstance(head, Unusable):
                failed.append(Rejected(str(item.path), str(head), item.caption))
            else:
                found[item.name] = head.sha256
    return found, failed


def _labelled(
    batch: Sequence[Item], labeller: Labeller, failed: list[Rejected]
) -> Iterator[tuple[Item, Label]]:
    """Pictures with what the labeller says of them; `failed` takes those without."""
    loaded = []
    for item in batch:
        try:
            loaded.append((item, picture_files.load(item.path)))
        except UserError as error:
            failed.append(Rejected(str(item.path), error.problems[0].what, ""))
    if not loaded:
        return
    said = labeller([image for _, image in loaded])
    for (item, _), one in zip(loaded, said, strict=True):
        if isinstance(one, Label) and captions.one_line(one.caption):
            yield item, one
        else:
            reason = one.reason if isinstance(one, Failure) else "the model said nothing"
            failed.append(Rejected(str(item.path), reason, ""))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _read_memory(path: Path) -> dict[str, Written]:
    """What machines wrote before.

    Raises:
        UserError: the file is damaged; without it edits could not be told from labels.
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
            f"what machines wrote here is damaged: {error!r}",
            where=str(path),
            fix="restore it, or remove it: then all captions count as a person's",
        ) from None


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it when the process ends.

    Raises:
        UserError: another process labels it, or there is no such folder.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise UserError(
            "no such folder" if missing else f"cannot open: {error.strerror}",
            where=str(folder),
            fix="name the folder that holds the pictures",
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is labelling this folder", where=str(folder), fix="wait for it"
            ) from None
        yield
    finally:
        os.close(handle)
