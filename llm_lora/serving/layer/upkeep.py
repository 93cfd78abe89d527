"""Background work of a running server: loading, unloading, new keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from llm_lora.serving.layer.catalog import Catalog
from llm_lora.serving.layer.residents import Residents
from llm_lora.serving.readiness import Readiness

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0


class Upkeep:
    """Keeps the server in step with the store.

    Live versions and those on trial are loaded ahead of requests, as far as there is room, and each
    is probed once. A version that no alias points to any more is unloaded after `linger_seconds`
    without a request. `also` is called in every round.
    """

    def __init__(
        self,
        catalog: Catalog,
        residents: Residents,
        *,
        linger_seconds: float,
        also: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._residents = residents
        self._linger_seconds = linger_seconds
        self._also = also
        self._was_ready = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start; a second call does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def once(self) -> None:
        """Do one round; loads continue in the background."""
        await self._look()
        await self._tidy()

    async def _look(self) -> None:
        self._also()
        wanted = await asyncio.to_thread(self._catalog.wanted)
        for served, version in wanted.items():
            if not (self._residents.proven(served) and self._residents.full):
                self._residents.prepare(version)
        if not self._was_ready:
            await self.state()  # Being ready once counts, even if nobody asked at that moment.

    async def _tidy(self) -> None:
        await self._residents.unload_idle(self._linger_seconds)

    async def state(self) -> Readiness:
        """Whether the server is ready, and what is `missing` or was `refused`.

        It is ready once every live version was loaded and probed, and stays ready: a version that
        is promoted later and cannot be loaded affects one name, and must not take a server that
        answers for all others, and all its replicas, out of service.
        """
        return await asyncio.to_thread(self._state)

    def _state(self) -> Readiness:
        missing, refused = {}, {}
        for _, version in self._catalog.aliases():
            why = self._catalog.problem(version)
            if why is None and not self._residents.proven(version.served_name):
                why = self._residents.failure(version.served_name) or "loading"
            if why is not None:
                missing[version.label] = why
        for version, reason in self._catalog.refusals():
            refused[version.label] = reason
        self._was_ready |= not missing
        return Readiness(self._was_ready, missing, refused)

    async def _run(self) -> None:
        # Separate loops: unloading may wait for a long painting, which must not delay new keys and
        # new versions.
        await asyncio.gather(self._repeat(self._look), self._repeat(self._tidy))

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception:  # one failure of the store must not end all upkeep
                logger.exception("a round of background work failed; the next one follows")
            await asyncio.sleep(_EVERY_SECONDS)


async def wanted_names(catalog: Catalog) -> Collection[str]:
    """Served names of the versions that aliases point to now."""
    return (await asyncio.to_thread(catalog.wanted)).keys()
