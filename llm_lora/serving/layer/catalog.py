"""The lookup of names: the version that a request means, and the versions to keep ready."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import suppress

from llm_lora.adapter import MADE
from llm_lora.adapter.mapping import SERVER_RANKS
from llm_lora.errors import UserError
from llm_lora.schema import quote
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.loader import TooLarge, Unfit, what
from llm_lora.store import ALIAS, Store, UnknownAdapter, Version, is_name

logger = logging.getLogger(__name__)

_LISTED = 50
"""Most names that an error message lists."""


class Catalog:
    """The store as one server sees it: only adapters that were trained on its base.

    `max_rank` is the largest rank that the server can load; `merged`: its model is itself a
    version, named `base_name`, and the only one; `task` is the base's task; `draw` gives the
    random numbers that send a request to the live version or to its canary.
    """

    def __init__(
        self,
        store: Store,
        *,
        base_name: str,
        base_digest: str,
        max_rank: int = SERVER_RANKS[-1],
        merged: bool = False,
        task: str = "text",
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.store = store
        self.base_name = base_name
        self._base_digest = base_digest
        self._max_rank = max_rank
        self._merged = merged
        self._task = task
        self._draw = draw
        self._told: set[str] = set()

    async def find(self, model: str) -> Version | None:
        """As `resolve`, for the event loop.

        A name with a live version is looked up in microseconds. Other names, and references to
        single versions, may need the whole store to be read, so a thread does that.
        """
        if self._is_base(model) or self._is_live(model):
            return self.resolve(model)
        return await asyncio.to_thread(self.resolve, model)

    def resolve(self, model: str) -> Version | None:
        """The version that a request for `model` belongs to until its end; None is the base.

        May read the whole store.

        Raises:
            Refused: unknown name or version, or of another base (404); damaged in the store (503).
            Unfit: a server refused this version.
            TooLarge: this server can load neither it nor an earlier version of its name.
        """
        if self._is_base(model):
            return None
        name, _, which = model.partition("@")
        if not is_name(name):
            raise self._unknown(model, "unknown model")
        try:
            version = self.store.resolve(model, self._draw())
            refusal = self.store.alias(name).refused.get(version.number) if which else None
        except UnknownAdapter as error:
            raise self._unknown(model, what(error) + self._refusal(name, which)) from None
        except (UserError, OSError) as error:
            logger.error("%s: %s", model, error)
            raise Refused(503, f"{model}: {what(error)}", code="adapter_damaged") from None
        if refusal is not None:
            raise Unfit(version, refusal)
        if not self.serves(version):
            raise Refused(404, self.unlike(version), param="model", code="model_not_found")
        if which and not self._loadable(version):
            raise TooLarge(version, self._max_rank)
        return self._able(version)

    def problem(self, version: Version) -> str | None:
        """Why a live version cannot answer under its name while this server runs."""
        if version.name == self.base_name:
            return (
                "its name is also the name of the base, which answers instead; "
                "publish it under another name: llm-lora publish RUN --as NAME"
            )
        return None if self._loadable(version) else TooLarge(version, self._max_rank).reason

    def serves(self, version: Version) -> bool:
        """Whether a version was trained on this server's base, or is what was merged into it."""
        if self._merged:
            return version.served_name == self.base_name
        return version.base_digest == self._base_digest

    def unlike(self, version: Version) -> str:
        """Why this server does not serve a version."""
        if self._merged:
            return f"this server's model is the merged version {self.base_name}; it serves no other"
        if version.task != self._task:
            own, wanted = MADE[self._task], MADE[version.task]
            return f"{version.label} is an adapter for {wanted}, but this server is for {own}"
        return (
            f"{version.label} was trained on {version.base_name}, "
            f"but the base of this server is {self.base_name}"
        )

    def aliases(self) -> Iterator[tuple[str, Version]]:
        """Every name that answers on this server, with its live version.

        Damaged versions are left out; requests for them get an error.
        """
        for name in self.store.names():
            try:
                if self.store.alias(name).live is None:
                    continue
                version = self.store.version(name)
            except UserError:
                continue
            if self.serves(version):
                yield name, version

    def refusals(self) -> Iterator[tuple[Version, str]]:
        """Every version that a server refused, with the reason, even of names with no live one."""
        for name in self.store.names():
            with suppress(UserError):
                for number, reason in self.store.alias(name).refused.items():
                    version = self.store.version(name, number)
                    if self.serves(version):
                        yield version, reason

    def wanted(self) -> dict[str, Version]:
        """The versions to keep loaded, by served name: those that are live or on trial.

        Where the server cannot load one of them, the version that answers instead is listed.
        """
        found = {}
        for name, live in self.aliases():
            if name == self.base_name:
                self._tell(live)
                continue
            pointed_to = [live]
            with suppress(UserError):
                canary = self.store.alias(name).canary
                if canary is not None:
                    pointed_to.append(self.store.version(name, canary.number))
            for version in filter(self.serves, pointed_to):
                with suppress(TooLarge):
                    able = self._able(version)
                    found[able.served_name] = able
        return found

    def known(self) -> list[str]:
        """The names that a request may use: the base, names with a live version, their versions."""
        names = [self.base_name]
        for name in self.store.names():
            try:
                alias = self.store.alias(name)
                versions = [
                    one
                    for one in self.store.versions(name)
                    if self.serves(one) and one.number not in alias.refused
                ]
                if versions and alias.live is not None and name != self.base_name:
                    names.append(name)
            except UserError:
                continue
            names += [version.label for version in versions]
        return names

    def _is_base(self, model: str) -> bool:
        return model == self.base_name and not self._merged

    def _is_live(self, model: str) -> bool:
        if is_name(model) and (self.store.root / model / ALIAS).is_file():
            with suppress(UserError):
                return self.store.alias(model).live is not None
        return False

    def _loadable(self, version: Version) -> bool:
        return version.rank <= self._max_rank

    def _able(self, version: Version) -> Version:
        """What answers for a version that an alias points to: itself, if the server can load it.

        Otherwise the live version or the one before: promoting a version of a larger rank while
        the server runs must not take its name out of service.
        """
        if self._loadable(version):
            return version
        self._tell(version)
        with suppress(UserError):
            alias = self.store.alias(version.name)
            for number in (alias.live, alias.previous):
                other = self.store.version(version.name, number) if number is not None else version
                if self.serves(other) and self._loadable(other):
                    return other
        raise TooLarge(version, self._max_rank)

    def _tell(self, version: Version) -> None:
        """Log, once, why a version does not answer under its name."""
        if version.served_name not in self._told:
            self._told.add(version.served_name)
            logger.error("%s does not answer: %s", version.label, self.problem(version))

    def _refusal(self, name: str, which: str) -> str:
        """The refused version of a name, for the error that nothing is live under it."""
        with suppress(UserError):
            refused = {} if which else self.store.alias(name).refused
            if refused:
                number = max(refused)
                return f" ({name}@{number} was refused: {refused[number]})"
        return ""

    def _unknown(self, model: str, why: str) -> Refused:
        names = self.known()
        listed = ", ".join(names[:_LISTED])
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return Refused(
            404,
            f"{quote(model)}: {why}; available: {listed}{more}",
            param="model",
            code="model_not_found",
        )
