"""The alias of a name, a small file replaced in one move, and the history beside it.

alias.json      {live, previous, canary, refused, changed}
history.jsonl   one line per event: who, when, why; only ever appended to

The event that changed an alias is in the alias itself, so that a process killed between writing
the two files loses no line: the next writer adds it, and readers see it at once.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.files import Json

ALIAS = "alias.json"
HISTORY = "history.jsonl"
_LONGEST = 1000

Stamp = tuple[int, int, int]
"""Identity of one state of a file, known without reading it."""


@dataclass(frozen=True)
class Event:
    """One line of the history: who did what, when (`at`, UTC) and why.

    `facts` are in the order of the JSON; nearly always `number`, the version, is one of them.
    """

    kind: str
    at: str
    by: str
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def number(self) -> int | None:
        """The version that it is about."""
        number: int | None = self.facts.get("number")
        return number

    @classmethod
    def from_json(cls, document: object) -> Event:
        """An event as `to_json` wrote it.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(document, dict) or not _OF_EVENT.keys() <= document.keys():
            raise ValueError("not an event")
        own = {name: document[key] for key, name in _OF_EVENT.items()}
        facts = {key: value for key, value in document.items() if key not in _OF_EVENT}
        return cls(**own, facts=facts)

    def to_json(self) -> Json:
        """The event as a JSON object."""
        return {**{key: getattr(self, name) for key, name in _OF_EVENT.items()}, **self.facts}


_OF_EVENT = {"event": "kind", "at": "at", "by": "by", "why": "why"}
"""What every event has, by its name in JSON."""


@dataclass(frozen=True)
class Canary:
    """A version on trial: `share` of the requests, more than 0 and less than 1."""

    number: int
    share: float


@dataclass(frozen=True)
class Alias:
    """Which version answers under a name; `previous` is where a rollback goes.

    `refused` holds, by version number, why a server refused a version; `changed` is the event that
    led to this alias (None: nothing was promoted yet).
    """

    live: int | None = None
    previous: int | None = None
    canary: Canary | None = None
    refused: Mapping[int, str] = field(default_factory=dict, hash=False)
    changed: (
        Annotated[Event, PlainValidator(Event.from_json), PlainSerializer(Event.to_json)] | None
    ) = None

    def pick(self, draw: float) -> int | None:
        """The version for one request, given a random number from 0 up to but not including 1."""
        if self.canary is not None and draw < self.canary.share:
            return self.canary.number
        return self.live

    def promoted(self, number: int, changed: Event) -> Alias:
        """The alias with `number` live and no trial; a refusal of `number` is dropped."""
        before = self.previous if self.live in (None, number) else self.live
        return Alias(
            live=number,
            previous=None if before == number else before,
            refused=_without(self.refused, number),
            changed=changed,
        )

    def rolled_back(self, changed: Event) -> Alias:
        """The alias with live and previous version swapped, and no trial."""
        return replace(self, live=self.previous, previous=self.live, canary=None, changed=changed)

    def retired(self, changed: Event) -> Alias:
        """The alias with no version live or on trial; the live one becomes the previous."""
        return replace(self, live=None, previous=self.live, canary=None, changed=changed)

    def trying(self, number: int, share: float, changed: Event) -> Alias:
        """The alias with `number` on trial; a refusal of `number` is dropped."""
        refused = _without(self.refused, number)
        return replace(self, canary=Canary(number, share), refused=refused, changed=changed)

    def tried(self, changed: Event) -> Alias:
        """The alias with no version on trial."""
        return replace(self, canary=None, changed=changed)

    def without(self, number: int, changed: Event, refusal: str | None = None) -> Alias:
        """The alias without `number` in any use; if it was live, the version before it is."""
        live = self.previous if self.live == number else self.live
        previous = None if number in (self.live, self.previous) else self.previous
        canary = None if self.canary and number == self.canary.number else self.canary
        # A trial needs a live version beside it, other than the one on trial.
        if canary is not None and live in (None, canary.number):
            canary = None
        refused = _without(self.refused, number)
        if refusal is not None:
            refused[number] = refusal
        return Alias(live, previous, canary, refused, changed)


def _without(refused: Mapping[int, str], number: int) -> dict[int, str]:
    return {key: why for key, why in refused.items() if key != number}


_json = TypeAdapter(Alias)


def event(kind: str, *, by: str, why: str, **facts: Any) -> Event:
    """A new event.

    Raises:
        UserError: `by` is empty, or a text is too long for a line of the history.
    """
    for name, text in (("by", by), ("why", why)):
        if len(text) > _LONGEST:
            raise UserError(
                f"{len(text):,} characters", where=name, fix=f"write at most {_LONGEST:,}"
            )
    if not by:
        raise UserError("empty", where="by", fix="name the person or key that acts")
    at = datetime.now(UTC).isoformat(timespec="microseconds")
    made = Event(kind, at, by, why, facts).to_json()
    # As it will be read back; bytes that are no Unicode (of an old encoding) become "?".
    return Event.from_json(
        json.loads(json.dumps(made, ensure_ascii=False).encode(errors="replace"))
    )


def stamp(path: str | Path) -> Stamp:
    """The current stamp of a file.

    Raises:
        FileNotFoundError: the file is missing.
    """
    found = os.stat(path)  # noqa: PTH116 (half the time of Path.stat)
    return found.st_mtime_ns, found.st_ino, found.st_size


def read(path: Path) -> Alias:
    """An alias from its file.

    Raises:
        UserError: the file is missing or was damaged by hand.
    """
    try:
        return _json.validate_json(files.read_bytes(path))
    except ValidationError:
        raise UserError(
            "damaged, so the live version is unknown",
            where=str(path),
            fix="delete it, then promote a version: llm-lora history shows which was live",
        ) from None


def write(path: Path, alias: Alias) -> None:
    """Replace an alias in one move; only for the holder of the name's lock.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    before = path.stat().st_mtime_ns if path.exists() else 0
    files.write_bytes(path, _json.dump_json(alias, indent=2) + b"\n")
    # Readers tell states apart by the stamp, so no two states may share one: the clock of a file
    # system ticks in milliseconds and may be set back, and inode numbers are reused.
    if path.stat().st_mtime_ns <= before:
        os.utime(path, ns=(before + 1, before + 1))
    sync(path.parent)


def history(path: Path) -> list[Event]:
    """The events of a history, oldest first; a line cut off by a power failure is left out."""
    if not path.is_file():
        return []
    events = []
    for line in files.read_bytes(path).split(b"\n"):
        with suppress(ValueError):
            events.append(Event.from_json(json.loads(line)))
    return events


def append(path: Path, events: Iterable[Event]) -> None:
    """Add lines to a history, all or none; only for the holder of the name's lock.

    Raises:
        OSError: the disk is full or the file is not writable.
    """
    rows = [json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in events]
    if not rows:
        return
    lines = "".join(rows).encode()
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            # A line cut off by a power failure must not run into the next one.
            lines = b"\n" + lines
        try:
            if file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def sync(folder: Path) -> None:
    """Make renames in a folder survive a power failure."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
