"""Taking one version into the server and out of it again, with every check on the way."""

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
    """A version that no server of this base can use, now or later; `reason` tells why."""

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
    """A version that another server of this base can load, but not this one as it was started."""

    def __init__(self, version: Version, limit: int) -> None:
        self.reason = (
            f"its rank {version.rank} is above what this server was started for; "
            f"restart the server: its limit is {limit}"
        )
        super().__init__(
            503, f"{version.label} cannot be loaded: {self.reason}", code="adapter_too_large"
        )


class Loader:
    """Speaks to the server that the layer wraps; `app` is its ASGI app.

    `max_rank` is the largest rank that it takes; `task` is what its base does.
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
            Unfit: they do not, or change nothing.
            TooLarge: the server was started for smaller ones.
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
        except Exception as error:  # whatever the server raises, the request is answered
            logger.exception("%s: the server failed to load it", version.label)
            raise Failed(version, str(error) or type(error).__name__) from error
        said = _message(reply)
        # The name stands for these very bytes, so whoever loaded it loaded the same.
        if reply.status == 200 or "already been loaded" in said:
            return
        logger.error("%s: the server does not load it: %s", version.label, said)
        raise Failed(version, said)

    async def unload(self, version: Version) -> None:
        """Have the server forget a version; nothing is raised where it does not know it."""
        try:
            reply = await asgi.call(self._app, "POST", _UNLOAD, {"lora_name": version.served_name})
        except Exception:  # a server that fails here has nothing more to forget
            logger.exception("%s: the server failed to unload it", version.label)
            return
        if reply.status not in (200, 404):
            logger.error("%s: the server does not unload it: %s", version.label, _message(reply))

    async def prove(self, version: Version, terms: Terms) -> None:
        """See that a loaded version answers otherwise than the base.

        Raises:
            Unfit: it does not.
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
            raise Unfit(version, "loaded, it answers exactly as the base does")
        logger.info("%s: loaded; differs from the base by up to %.3g nats", version.label, found)

    async def refuse(self, unfit: Unfit) -> None:
        """Record in the store that a version will not do, so that no alias points to it."""
        version = unfit.version
        logger.error("%s", unfit.message)
        try:
            await asyncio.to_thread(self._store.refuse, version.name, version.number, unfit.reason)
        except (UserError, OSError):
            # It is refused all the same, each time that it is asked for.
            logger.exception("%s: the store cannot record the refusal", version.label)

    def _overruled(self, version: Version) -> bool:
        """Whether a person put the version live by force after it was refused."""
        refused = overruled = False
        for event in self._store.history(version.name):
            if event.get("number") == version.number:
                is_refusal = event["event"] == "refused"
                refused |= is_refusal
                overruled = not is_refusal and (overruled or (refused and "forced" in event))
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
    """What is wrong, without the places on this machine that clients need not know."""
    if isinstance(error, UserError):
        return "; ".join(problem.what for problem in error.problems)
    return type(error).__name__


def _message(reply: asgi.Reply) -> str:
    """What the server said."""
    try:
        return str(json.loads(reply.body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status}"
