"""Loading and unloading one version, with every check on the way."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

from starlette.types import ASGIApp

from llm_lora.adapter import Adapter, AnyBase
from llm_lora.adapter import base as any_base
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.mapping import text as mapping
from llm_lora.errors import UserError
from llm_lora.serving.layer import asgi, probe
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.terms import Terms
from llm_lora.store import Store, Version

logger = logging.getLogger(__name__)

_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class Unfit(Refused):
    """A version that no server of this base can ever use, for `reason`."""

    def __init__(self, version: Version, reason: str) -> None:
        super().__init__(422, f"{version.label} was refused: {reason}", code="adapter_refused")
        self.version, self.reason = version, reason


class Failed(Refused):
    """A version that could not be loaded this time."""

    def __init__(self, version: Version, what: str) -> None:
        super().__init__(
            503,
            f"{version.label} could not be loaded: {what}",
            code="adapter_not_loaded",
            retry_after=5,
        )


class TooLarge(Refused):
    """A version too large for this server as it was started; another of this base can load it."""

    def __init__(self, version: Version, limit: int) -> None:
        self.reason = (
            f"its rank {version.rank} is above this server's limit of {limit}; "
            "restart the server to raise the limit"
        )
        super().__init__(
            503, f"{version.label} cannot be loaded: {self.reason}", code="adapter_too_large"
        )


class Loader:
    """Talks to the server that the layer wraps; `app` is its ASGI app.

    `max_rank` is the largest rank that it accepts; `task` is the task of its base.
    """

    def __init__(
        self,
        app: ASGIApp,
        store: Store,
        *,
        base_name: str,
        base_path: Path,
        probed: bool,
        max_rank: int,
        task: str = "text",
        prediction: str = "auto",
    ) -> None:
        self._app = app
        self._store = store
        self._base_name = base_name
        self._base_path = base_path
        self._probed = probed
        self._max_rank = max_rank
        self._task = task
        self._prediction = prediction
        self._base: AnyBase | None = None

    async def check(self, version: Version) -> Terms:
        """Verify a version's files, and that all its weights fit the base.

        Raises:
            Unfit: they do not fit, or have no effect.
            TooLarge: the server was started for smaller ranks.
            Failed: a file is missing or damaged.
        """
        return await asyncio.to_thread(self._check, version)

    async def load(self, version: Version) -> None:
        """Have the server load a version under its own, immutable name.

        Raises:
            Unfit: the server refuses it.
            Failed: the server fails.
        """
        names = {"lora_name": version.served_name, "lora_path": str(version.folder)}
        try:
            reply = await asgi.call(self._app, "POST", _LOAD, names)
        except Exception as error:  # whatever the server raises, the client gets an answer
            logger.exception("%s: the server failed to load it", version.label)
            raise Failed(version, str(error) or type(error).__name__) from error
        said = _message(reply)
        # The name stands for exactly these bytes, so a version loaded by others is the same.
        if reply.status == 200 or "already been loaded" in said:
            return
        logger.error("%s: the server refused to load it: %s", version.label, said)
        raise Failed(version, said)

    async def unload(self, version: Version) -> None:
        """Have the server unload a version; an unknown one is no error."""
        try:
            reply = await asgi.call(self._app, "POST", _UNLOAD, {"lora_name": version.served_name})
        except Exception:  # a server that fails here holds no version any more
            logger.exception("%s: the server failed to unload it", version.label)
            return
        if reply.status not in (200, 404):
            logger.error("%s: the server refused to unload it: %s", version.label, _message(reply))

    async def prove(self, version: Version, terms: Terms) -> None:
        """Check that a loaded version answers differently from the base.

        Raises:
            Unfit: it answers the same.
            Failed: the server failed to answer.
        """
        if not self._probed:
            return
        try:
            found = await probe.difference(self._app, version.served_name, self._base_name, terms)
        except probe.ProbeFailed as error:
            raise Failed(version, f"its probe failed: {error}") from None
        except Exception as error:  # as above
            logger.exception("%s: its probe failed", version.label)
            raise Failed(version, f"its probe failed: {error}") from error
        if found == 0 and not await asyncio.to_thread(self._overruled, version):
            raise Unfit(version, "once loaded, it answers exactly like the base")
        logger.info("%s: loaded; differs from the base by up to %.3g nats", version.label, found)

    async def refuse(self, unfit: Unfit) -> None:
        """Record in the store that a version is unfit, so that no alias points to it."""
        version = unfit.version
        logger.error("%s", unfit.message)
        try:
            await asyncio.to_thread(self._store.refuse, version.name, version.number, unfit.reason)
        except (UserError, OSError):
            # Every request for it is refused all the same.
            logger.exception("%s: the store cannot record the refusal", version.label)

    def _overruled(self, version: Version) -> bool:
        """Whether a person forced the version live after it was refused."""
        refused = overruled = False
        for event in self._store.history(version.name):
            if event.number == version.number:
                is_refusal = event.kind == "refused"
                refused |= is_refusal
                overruled = not is_refusal and (overruled or (refused and "forced" in event.facts))
        return overruled

    def _check(self, version: Version) -> Terms:
        if version.rank > self._max_rank:
            raise TooLarge(version, self._max_rank)
        try:
            self._store.verify(version)
            adapter = adapters.read(version.folder)
            terms = Terms.read(version)
        except (UserError, OSError) as error:
            logger.error("%s: %s", version.label, error)
            raise Failed(version, what(error)) from None
        self._require_effect(version, adapter)
        return terms

    def _require_effect(self, version: Version, adapter: Adapter) -> None:
        try:
            if self._base is None:
                self._base = any_base.resolve(
                    self._task, str(self._base_path), prediction=self._prediction
                )
        except (UserError, OSError) as error:
            logger.error("%s: %s", version.label, error)
            raise Failed(version, what(error)) from None
        try:
            mapping.effect(adapter, self._base)
        except UserError as error:
            raise Unfit(version, what(error)) from None


def what(error: Exception) -> str:
    """The error text without paths of this machine, which are none of a client's business."""
    if isinstance(error, UserError):
        return "; ".join(problem.what for problem in error.problems)
    return type(error).__name__


def _message(reply: asgi.Reply) -> str:
    """The server's error message."""
    try:
        return str(json.loads(reply.body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status}"
