"""Which version a request means, and which versions this server has to have ready."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator

from llm_lora.errors import UserError
from llm_lora.jsontext import quote
from llm_lora.names import is_name
from llm_lora.serving.errors import Refused
from llm_lora.serving.loader import Unfit, what
from llm_lora.store import Store, UnknownAdapter, Version

logger = logging.getLogger(__name__)

_LISTED = 50
"""Names that an error message lists at most."""


class Catalog:
    """The store as one server sees it: only adapters that were trained on its base.

    `draw` gives the random numbers that decide for or against a canary.
    """

    def __init__(
        self,
        store: Store,
        *,
        base_name: str,
        base_digest: str,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.store = store
        self.base_name = base_name
        self._base_digest = base_digest
        self._draw = draw

    def resolve(self, model: str) -> Version | None:
        """The version that a request for `model` belongs to from now on; None is the base.

        Raises:
            Refused: no such name or version, or of another base (404); damaged in the store (503).
            Unfit: that very version was refused by a server.
        """
        if model == self.base_name:
            return None
        name, _, which = model.partition("@")
        if not is_name(name):
            raise self._unknown(model, "no such model")
        try:
            version = self.store.resolve(model, self._draw())
            refusal = self.store.alias(name).refused.get(version.number) if which else None
        except UnknownAdapter as error:
            raise self._unknown(model, what(error)) from None
        except (UserError, OSError) as error:
            logger.error("%s: %s", model, error)
            raise Refused(503, f"{model}: {what(error)}", code="adapter_damaged") from None
        if refusal is not None:
            raise Unfit(version, refusal)
        if not self.serves(version):
            raise Refused(
                404,
                f"{version.label} was trained on {version.base_name}, "
                f"which is not the base {self.base_name} that this server has",
                param="model",
                code="model_not_found",
            )
        return version

    def serves(self, version: Version) -> bool:
        """Whether a version was trained on this server's base."""
        return version.base_digest == self._base_digest

    def aliases(self) -> Iterator[tuple[str, Version]]:
        """Every name that answers on this server, with its live version.

        What is damaged is left out; requests for it are told.
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

    def wanted(self) -> dict[str, Version]:
        """Live versions and those on trial, by served name: what is to stay loaded."""
        found = {}
        for name, live in self.aliases():
            found[live.served_name] = live
            canary = self.store.alias(name).canary
            if canary is not None:
                try:
                    trial = self.store.version(name, canary.number)
                except UserError:
                    continue
                if self.serves(trial):
                    found[trial.served_name] = trial
        return found

    def known(self) -> list[str]:
        """What a request may name: the base, names with a live version, their versions."""
        names = [self.base_name]
        for name in self.store.names():
            try:
                alias = self.store.alias(name)
                versions = [
                    one
                    for one in self.store.versions(name)
                    if self.serves(one) and one.number not in alias.refused
                ]
                if versions and alias.live is not None:
                    names.append(name)
            except UserError:
                continue
            names += [version.label for version in versions]
        return names

    def _unknown(self, model: str, why: str) -> Refused:
        names = self.known()
        listed = ", ".join(names[:_LISTED])
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return Refused(
            404,
            f"{quote(model)}: {why}; there are: {listed}{more}",
            param="model",
            code="model_not_found",
        )
