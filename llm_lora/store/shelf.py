"""The folder of one name: its versions, alias, history, and the lock of its writers.

Everything is put in place by one rename, so readers need no lock. A writer first cleans up after a
killed one: half-built versions, half-written files, unfinished removals and missing lines of the
history. (The half-built version of a live writer is safe: that writer holds the lock.)
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.store import aliases, published
from llm_lora.store.aliases import Alias, Event
from llm_lora.store.published import Content

_NUMBER = re.compile(r"[1-9][0-9]{0,5}")
_LOCK = ".lock"
_INCOMING = ".incoming-"


class Shelf:
    """One name's folder in the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alias = folder / aliases.ALIAS

    def home(self, number: int) -> Path:
        """The folder of a version, whether or not it exists."""
        return self.folder / "versions" / str(number)

    def numbers(self) -> list[int]:
        """The numbers of all versions, in order."""
        return [number for number in self._taken() if published.is_complete(self.home(number))]

    def history(self) -> list[Event]:
        """Every event, oldest first, including those that a killed writer did not record."""
        written = aliases.history(self.folder / aliases.HISTORY)
        return written + self._unwritten(written)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the name's lock, after waiting for other writers; creates the folder if need be.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Before anything else, so that this writer builds on a clean and complete state.
                self._sweep()
                self._note()
                try:
                    yield
                finally:
                    self._sweep()
                # After the change and outside `finally`: only what took place is recorded, and the
                # next writer records it if this process dies first.
                self._note()
        except OSError as error:
            raise files.write_error(error, self.folder) from error

    def add(self, content: Content, name: str, *, by: str, why: str) -> int:
        """Put a new version in place and return its number; only under the lock.

        Raises:
            OSError: the disk is full or the folder is not writable.
            UserError: the adapter was changed while it was being copied.
        """
        number = max(self._taken(), default=0) + 1
        event = aliases.event("publish", by=by, why=why, number=number, digest=content.digest)
        incoming, home = self.folder / f"{_INCOMING}{number}", self.home(number)
        published.build(incoming, content, name=name, number=number, event=event)
        home.parent.mkdir(exist_ok=True)
        # Built and synced beside its place, then renamed: readers see a complete version or none.
        incoming.rename(home)
        aliases.sync(home.parent)
        return number

    def move(self, alias: Alias) -> Alias:
        """Replace the alias; only under the lock."""
        aliases.write(self.alias, alias)
        return alias

    def _taken(self) -> list[int]:
        """Every number that was ever assigned."""
        folder = self.folder / "versions"
        entries = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(entry.name) for entry in entries if _NUMBER.fullmatch(entry.name))

    def _sweep(self) -> None:
        for path in self.folder.glob(f"{_INCOMING}*"):
            shutil.rmtree(path)
        for path in self.folder.glob(f".{aliases.ALIAS}.*"):
            path.unlink()
        for number in self._taken():
            published.sweep(self.home(number))

    def _note(self) -> None:
        """Add the events to the history that it lacks."""
        path = self.folder / aliases.HISTORY
        # Alias and versions hold every event, so a full disk only delays these lines.
        with suppress(OSError):
            aliases.append(path, self._unwritten(aliases.history(path)))

    def _unwritten(self, written: list[Event]) -> list[Event]:
        events = [
            event for number in self._taken() for event in published.events(self.home(number))
        ]
        # A damaged alias is reported where it is needed; the history stays readable.
        with suppress(UserError):
            if self.alias.is_file() and (changed := aliases.read(self.alias).changed):
                events.append(changed)
        missing: list[Event] = []
        for event in sorted(events, key=lambda event: event.at):
            if event not in written and event not in missing:
                missing.append(event)
        return missing
