"""Machine captions for the pictures of a folder; captions by people are kept.

Captions go into the folder's list (metadata.csv, or metadata.jsonl if there is one). Captions that
a person wrote or changed are never touched, even with `redo`. The list and the record of machine
captions (`sheet`) are saved regularly, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lora import files
from llm_lora.data.image import Unusable, captions
from llm_lora.data.image import files as picture_files
from llm_lora.errors import UserError
from llm_lora.example import Rejected
from llm_lora.label.sheet import Item, Sheet, Written

if TYPE_CHECKING:
    from PIL import Image

_SAVE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Label:
    """A machine caption; `score`, 0 to 1, is its confidence, if known."""

    caption: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a picture got no machine caption."""

    reason: str


Labeller = Callable[[Sequence["Image.Image"]], Sequence[Label | Failure]]
"""Labels a batch of RGB pictures."""


@dataclass(frozen=True)
class Outcome:
    """Result of labelling: new captions, those kept of people and of machines, failures.

    `path` is the list with the captions; `items` are all pictures in their present state.
    """

    path: Path
    written: int
    people: int
    machine: int
    failed: tuple[Rejected, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Order:
    """Labelling settings.

    `details` is everything else that captions depend on: candidates, instructions. `trigger` is
    prepended to every caption that lacks it. With `redo`, machine captions from other settings are
    replaced; captions by people stay.
    """

    method: str
    model: str
    details: str = ""
    trigger: str | None = None
    redo: bool = False
    batch_size: int = 16

    def settings(self) -> str:
        """Digest of everything that captions depend on."""
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
        make: makes the labeller; called only if there is something to label.
        order: the labelling settings.
        listener: receives the number of pictures done and the total.

    Raises:
        UserError: the folder cannot be used, or the labeller cannot continue; captions made until
            then are kept.
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
    """Label pictures and save regularly; returns the number of captions written."""
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
    """Whether a picture needs a caption: it has none, or an outdated machine caption."""
    if item.origin != "machine" or item.written is None:
        return item.origin == "none"
    current = (
        item.written.settings == order.settings() and item.caption == item.written.captions[-1]
    )
    return item.written.sha256 != digests[item.name] or (order.redo and not current)


def _digests(items: Sequence[Item]) -> tuple[dict[str, str], list[Rejected]]:
    """Digests of the pictures, and the unusable ones."""
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
    """Pictures with their labels; pictures without one are added to `failed`."""
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
            reason = one.reason if isinstance(one, Failure) else "the model returned no caption"
            failed.append(Rejected(str(item.path), reason, ""))


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the system releases the lock when the process ends.

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
