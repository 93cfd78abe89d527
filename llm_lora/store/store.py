"""The store: published adapters as numbered versions, and the alias that names the live one.

store/NAME/versions/NUMBER/   an adapter as trained, its report, and version.json (written last)
store/NAME/alias.json         which version is live, which was before, which is on trial
store/NAME/history.jsonl      who did what, when and why
store/NAME/.lock              held by writers; readers never wait
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm_lora.adapter import AnyBase
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.mapping import text as mapping
from llm_lora.errors import UserError
from llm_lora.files import Json
from llm_lora.store import aliases, published
from llm_lora.store.aliases import Alias, Canary, Event, Stamp
from llm_lora.store.names import check_name, is_name, suggest_name
from llm_lora.store.published import Version
from llm_lora.store.shelf import Shelf

__all__ = [
    "Alias",
    "Canary",
    "Event",
    "Store",
    "UnknownAdapter",
    "Version",
    "check_name",
    "suggest_name",
]

_NUMBER = re.compile(r"[1-9][0-9]{0,5}")
_DIGEST = re.compile(r"[0-9a-f]{12,64}")
_SHOWN = 80


class UnknownAdapter(UserError):
    """The store has no such adapter or version, or no version of the name is live."""


class Store:
    """A folder of published adapters; any number of processes may read and write it at once.

    `by` says who acts (a person, an admin key), `why` the reason; both go into the history.
    Every method raises `UserError` for a name that is not allowed.
    """

    def __init__(self, root: Path) -> None:
        # Absolute, so that a change of the working directory does not matter.
        self.root = root.absolute()
        self._aliases: dict[str, tuple[str, Stamp, Alias]] = {}
        self._versions: dict[tuple[str, int], tuple[str, Stamp, Version]] = {}
        self._verified: dict[Path, tuple[Stamp, ...]] = {}

    # Reading: never waits, never writes.

    def names(self) -> list[str]:
        """Every name with a version, sorted."""
        if not self.root.is_dir():
            return []
        found = [folder.name for folder in self.root.iterdir() if is_name(folder.name)]
        return sorted(name for name in found if self.numbers(name))

    def numbers(self, name: str) -> list[int]:
        """The numbers of a name's versions, in order, including damaged ones."""
        return self._shelf(name).numbers()

    def versions(self, name: str) -> list[Version]:
        """All undamaged versions of a name, oldest first; empty where the name is unknown."""
        sound = []
        for number in self.numbers(name):
            with suppress(UserError):
                sound.append(self.version(name, number))
        return sound

    def version(self, name: str, number: int | None = None) -> Version:
        """One version; the live one where no number is given. Microseconds once it was read.

        Raises:
            UnknownAdapter: there is no such version, or none is live.
            UserError: the version is damaged.
        """
        if number is None:
            number = self.alias(name).live
        if number is None:
            raise UnknownAdapter(
                "no version is live", where=name, fix=f"llm-lora promote {name} NUMBER"
            )
        with suppress(KeyError, FileNotFoundError):
            path, seen, version = self._versions[name, number]
            if aliases.stamp(path) == seen:
                return version
        self._versions.pop((name, number), None)
        shelf = self._shelf(name)
        if number not in shelf.numbers():
            raise self._unknown(name, str(number)[:_SHOWN])
        home = shelf.home(number)
        path = str(home / published.VERSION)
        try:
            seen = aliases.stamp(path)
            version = published.read(home, name, number)
        except FileNotFoundError:  # It is being removed.
            raise self._unknown(name, str(number)) from None
        self._versions[name, number] = path, seen, version
        return version

    def resolve(self, reference: str, draw: float = 1.0) -> Version:
        """The version that `NAME`, `NAME@NUMBER` or `NAME@DIGEST` (12 hex digits or more) means.

        Args:
            reference: the model as the client wrote it.
            draw: random number from 0 to 1 that decides on a canary; 1: never the canary.

        Raises:
            UnknownAdapter: unknown name or version, or none is live; lists what there is.
            UserError: the version is damaged.
        """
        name, at, which = reference.partition("@")
        if not at:
            return self.version(name, self.alias(name).pick(draw))
        if _NUMBER.fullmatch(which):
            return self.version(name, int(which))
        if _DIGEST.fullmatch(which):
            for version in reversed(self.versions(name)):
                if version.digest.startswith(which):
                    return version
        raise self._unknown(check_name(name), ascii(which[:_SHOWN]))

    def verify(self, version: Version) -> None:
        """Read every byte and compare digests, once per process and state of the files.

        Call it before a version is loaded; the first time takes 0.1 s per 100 MB.

        Raises:
            UserError: a file is missing or differs from the published one.
        """
        try:
            stamps = tuple(aliases.stamp(path) for path in sorted(version.folder.glob("*")))
            if self._verified.get(version.folder) != stamps:
                published.verify(version)
                self._verified[version.folder] = stamps
        except FileNotFoundError:  # It is being removed.
            raise self._unknown(version.name, str(version.number)) from None

    def alias(self, name: str) -> Alias:
        """Which version answers under the name; cheap enough for every request.

        Raises:
            UnknownAdapter: nothing was published under this name.
            UserError: the alias was damaged by hand.
        """
        with suppress(KeyError, FileNotFoundError):
            path, seen, alias = self._aliases[name]
            if aliases.stamp(path) == seen:
                return alias
        shelf = self._shelf(name)
        path = str(shelf.alias)
        try:
            # Stamped before it is read, so that a change in between shows next time.
            seen = aliases.stamp(path)
        except FileNotFoundError:
            if not shelf.numbers():
                raise self._unknown(name) from None
            return Alias()
        alias = aliases.read(shelf.alias)
        self._aliases[name] = path, seen, alias
        return alias

    def history(self, name: str) -> list[Event]:
        """Every event of a name, oldest first."""
        return self._shelf(name).history()

    # Writing: one writer at a time for each name.

    def publish(
        self,
        adapter_folder: Path,
        name: str,
        *,
        report: Json | None,
        by: str,
        why: str = "",
        base: AnyBase | None = None,
    ) -> Version:
        """Copy an adapter with its report into the store; not live yet.

        The same content again returns the existing version. With `base`, the weights are first
        mapped onto it.

        Raises:
            UserError: adapter or report is unusable, or the disk is full.
        """
        shelf = self._shelf(name)
        content = published.gather(adapter_folder, report)
        if base is not None:
            mapping.effect(content.adapter, base)
        with shelf.writing():
            published.require_task(content.adapter, name, self.versions(name))
            for version in reversed(self.versions(name)):
                with suppress(UserError):
                    if version.digest == content.digest:
                        self.verify(version)
                        return version
            number = shelf.add(content, name, by=by, why=why)
        return self.version(name, number)

    def promote(
        self,
        name: str,
        number: int,
        *,
        by: str,
        why: str = "",
        force: bool = False,
        base: AnyBase | None = None,
    ) -> Alias:
        """Make a version live; ends a canary. `force` overrides failed gates and refusals.

        With `base`, the weights are first mapped onto it.

        Raises:
            UserError: unknown or damaged version, weights without effect, failed gates.
        """
        with self._writing(name) as shelf:
            alias = self.alias(name)
            # Checked under the lock: its report must compare it with the version that it replaces.
            over = self._prove(name, number, alias, force=force, base=base)
            if alias.live == number and alias.canary is None:
                return alias
            event = aliases.event(
                "promote", by=by, why=why, number=number, before=alias.live, **over
            )
            return shelf.move(alias.promoted(number, event))

    def rollback(self, name: str, *, by: str, why: str = "") -> Alias:
        """Swap live and previous version; ends a canary. A second rollback undoes the first.

        Raises:
            UserError: there is no previous version, or it is damaged.
        """
        with self._writing(name) as shelf:
            alias = self.alias(name)
            number = alias.previous
            if number is None:
                raise UserError(
                    "no previous version to roll back to",
                    where=name,
                    fix=f"name one: llm-lora promote {name} NUMBER",
                )
            self.verify(self.version(name, number))
            event = aliases.event("rollback", by=by, why=why, number=number, before=alias.live)
            return shelf.move(alias.rolled_back(event))

    def retire(self, name: str, *, by: str, why: str = "") -> Alias:
        """Take a name out of service: no version is live or on trial. A rollback undoes it.

        Raises:
            UserError: no version is live.
        """
        with self._writing(name) as shelf:
            alias = self.alias(name)
            if alias.live is None:
                raise UserError("no version is live", where=name, fix="nothing to retire")
            event = aliases.event("retire", by=by, why=why, number=alias.live)
            return shelf.move(alias.retired(event))

    def canary(
        self,
        name: str,
        number: int,
        share: float,
        *,
        by: str,
        why: str = "",
        force: bool = False,
        base: AnyBase | None = None,
    ) -> Alias:
        """Give a version a share (above 0, below 1) of the requests; 0 ends the trial.

        Raises:
            UserError: as for `promote`; nothing is live yet; the version is the live one.
        """
        with self._writing(name) as shelf:
            alias = self.alias(name)
            if share == 0:
                if alias.canary is None or alias.canary.number != number:
                    raise UserError("not on trial", where=f"{name}@{number}", fix="nothing to end")
                event = aliases.event("canary", by=by, why=why, number=number, share=0)
                return shelf.move(alias.tried(event))
            if not 0 < share < 1:
                raise UserError(
                    f"a share of {share:g} is not between 0 and 1",
                    where=f"{name}@{number}",
                    fix="give more than 0 and less than 1 (100%); for all requests, promote it",
                )
            over = self._prove(name, number, alias, force=force, base=base)
            if alias.live in (None, number):
                live = alias.live is not None
                raise UserError(
                    "already live" if live else "no live version to compare this one with",
                    where=f"{name}@{number}",
                    fix="try another version" if live else f"llm-lora promote {name} {number}",
                )
            event = aliases.event("canary", by=by, why=why, number=number, share=share, **over)
            return shelf.move(alias.trying(number, share, event))

    def remove(self, name: str, number: int, *, by: str, why: str = "") -> None:
        """Delete a version; its number is never reused, and no rollback returns to it.

        Raises:
            UserError: it is live or on trial, or unknown.
        """
        with self._writing(name) as shelf:
            alias = self.alias(name)
            if number not in shelf.numbers():
                raise self._unknown(name, str(number))
            if number == alias.live:
                raise UserError(
                    "the version is live",
                    where=f"{name}@{number}",
                    fix=f"promote another version first, or llm-lora retire {name}",
                )
            if alias.canary is not None and number == alias.canary.number:
                raise UserError(
                    "the version is on trial",
                    where=f"{name}@{number}",
                    fix=f"end the trial first: llm-lora canary {name} {number} --share 0",
                )
            event = aliases.event("remove", by=by, why=why, number=number)
            # The alias first, then the files: after a crash in between it names no missing version.
            if number == alias.previous or number in alias.refused:
                shelf.move(alias.without(number, event))
            published.remove(shelf.home(number), event)

    def refuse(self, name: str, number: int, reason: str, *, by: str = "server") -> Alias:
        """Mark a version that a server refused; the alias moves off it to the one before.

        Raises:
            UnknownAdapter: there is no such version.
        """
        with self._writing(name) as shelf:
            alias = self.alias(name)
            if number not in shelf.numbers():
                raise self._unknown(name, str(number))
            used = (alias.live, alias.previous, alias.canary and alias.canary.number)
            if number in alias.refused and number not in used:
                return alias
            event = aliases.event("refused", by=by, why=reason, number=number, before=alias.live)
            return shelf.move(alias.without(number, event, refusal=reason))

    def _shelf(self, name: str) -> Shelf:
        return Shelf(self.root / check_name(name))

    @contextmanager
    def _writing(self, name: str) -> Iterator[Shelf]:
        """Hold the lock of an existing name."""
        shelf = self._shelf(name)
        if not shelf.numbers():
            raise self._unknown(name)
        with shelf.writing():
            yield shelf

    def _prove(
        self, name: str, number: int, alias: Alias, *, force: bool, base: AnyBase | None
    ) -> dict[str, list[str]]:
        """Check that a version may go live; returns what `force` overrode, for the history."""
        version = self.version(name, number)
        self.verify(version)
        mapping.effect(adapters.read(version.folder), base)
        live = None
        if alias.live is not None:
            with suppress(UserError):
                live = self.version(name, alias.live)
        found = [*published.objections(version, alias.refused.get(number), live)]
        if found and not force:
            raise UserError(found)
        return {"forced": [problem.what for problem in found]} if found else {}

    def _unknown(self, name: str, which: str | None = None) -> UnknownAdapter:
        numbers = self.numbers(name)
        if which is not None and numbers:
            there = ", ".join(map(str, numbers))
            return UnknownAdapter(f"no version {which}", where=name, fix=f"choose one of {there}")
        there = ", ".join(self.names())
        return UnknownAdapter(
            "unknown adapter",
            where=name,
            fix=f"choose one of {there}" if there else "publish it: llm-lora publish RUN --as NAME",
        )
