"""Loaded versions: each loaded once, on first use, and never unloaded while it answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.loader import Failed, Loader, Unfit
from llm_lora.serving.layer.terms import Terms
from llm_lora.store import Version

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0
"""Least time before a version that could not be loaded is tried again."""


@dataclass(eq=False, slots=True)
class Resident:
    """A version that is loaded or loading; `uses` counts the requests that need it.

    `terms` is set once it is ready.
    """

    version: Version
    task: asyncio.Task[None] | None = None
    terms: Terms | None = None
    uses: int = 0
    last_used: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether it may be unloaded now."""
        return self.terms is not None and self.uses == 0


class Residents:
    """Loads and unloads versions, at most `limit` at once; for one event loop.

    `wanted` returns the served names that aliases point to: others are evicted first. `on_loaded`
    receives the seconds that each load took. `room_seconds` is how long a load waits for a place,
    `load_seconds` how long it may take.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        limit: int,
        wanted: Callable[[], Awaitable[Collection[str]]],
        on_loaded: Callable[[float], None],
        room_seconds: float,
        load_seconds: float,
    ) -> None:
        self._loader = loader
        self._limit = limit
        self._wanted = wanted
        self._on_loaded = on_loaded
        self._room_seconds = room_seconds
        self._load_seconds = load_seconds
        self._known: dict[str, Resident] = {}
        # Names that the server has, or may have: these occupy its places.
        self._placed: set[str] = set()
        self._failed: dict[str, tuple[float, Refused]] = {}
        self._proven: set[str] = set()
        # One change at a time: an unload must never overtake a load on its way to the server.
        self._changing = asyncio.Lock()
        self._released = asyncio.Event()

    def loaded(self) -> list[str]:
        """Served names of the versions that are ready."""
        return [name for name, resident in self._known.items() if resident.terms is not None]

    def uses(self, served: str) -> int:
        """The number of requests that need a version now."""
        resident = self._known.get(served)
        return resident.uses if resident is not None else 0

    def proven(self, served: str) -> bool:
        """Whether a version was loaded and probed since the server started."""
        return served in self._proven

    def failure(self, served: str) -> str | None:
        """Why the last load of a version failed."""
        found = self._failed.get(served)
        return found[1].message if found is not None else None

    def forget_failure(self, version: Version) -> None:
        """Let the next request try a version that could not be loaded."""
        self._failed.pop(version.served_name, None)

    def prepare(self, version: Version) -> None:
        """Start loading a version that will be needed, unless that has just failed."""
        if version.served_name not in self._known:
            with suppress(Refused):
                self._begin(version)

    @property
    def full(self) -> bool:
        """Whether loading one more would unload another."""
        return len(self._known) >= self._limit

    def take(self, version: Version) -> Resident | None:
        """A version that is ready; as `acquire`, but None instead of waiting."""
        resident = self._known.get(version.served_name)
        if resident is None or resident.terms is None:
            return None
        resident.uses += 1
        return resident

    async def acquire(self, version: Version) -> Resident:
        """A version, ready, that stays loaded until `release` gives it back.

        However many callers wait, it is loaded once; the load continues if a caller gives up.

        Raises:
            Unfit: no server of this base can use it.
            Failed: it could not be loaded; a call some seconds later tries again.
            Refused: no place became free for it.
        """
        resident = self._known.get(version.served_name) or self._begin(version)
        # Counted before the wait, so that no other load can evict it in between.
        resident.uses += 1
        try:
            assert resident.task is not None
            await asyncio.shield(resident.task)
        except BaseException:
            self.release(resident)
            raise
        return resident

    def release(self, resident: Resident) -> None:
        """Give a version back."""
        resident.uses -= 1
        resident.last_used = time.monotonic()
        if resident.uses == 0:
            self._released.set()

    async def unload_idle(self, seconds: float) -> None:
        """Unload versions that no alias points to and no request used for `seconds`."""
        wanted = await self._wanted()
        for resident in list(self._known.values()):
            if resident.version.served_name not in wanted and _unused(resident, seconds):
                async with self._changing:
                    # Checked again: while this waited for its turn, a request may have taken it.
                    if _unused(resident, seconds) and self._is_known(resident):
                        await self._unload(resident)

    def _begin(self, version: Version) -> Resident:
        until, refused = self._failed.get(version.served_name, (0.0, None))
        if refused is not None and time.monotonic() < until:
            raise refused.with_traceback(None)
        resident = self._known[version.served_name] = Resident(version)
        resident.task = asyncio.create_task(self._load(resident))
        # Every caller may have given up by the time that it ends.
        resident.task.add_done_callback(_seen)
        return resident

    async def _load(self, resident: Resident) -> None:
        version = resident.version
        name = version.served_name
        started = time.monotonic()
        try:
            try:
                async with asyncio.timeout(self._load_seconds):
                    await self._place(resident)
            except TimeoutError:
                raise Failed(version, f"not within {self._load_seconds:.0f} s") from None
            except Unfit as error:
                await self._loader.refuse(error)
                raise
            except Refused:
                raise
            except Exception as error:
                logger.exception("%s: loading it failed", version.label)
                raise Failed(version, type(error).__name__) from error
        except BaseException as error:
            if self._is_known(resident):
                del self._known[name]
            if isinstance(error, Unfit | Failed):
                self._failed[name] = time.monotonic() + _AGAIN_SECONDS, error
            raise
        self._failed.pop(name, None)
        self._proven.add(name)
        self._on_loaded(time.monotonic() - started)

    async def _place(self, resident: Resident) -> None:
        """Check a version, make room for it, load and probe it."""
        version = resident.version
        name = version.served_name
        # Checked before anything is evicted: an unfit version must cost no other its place.
        terms = await self._loader.check(version)
        deadline = time.monotonic() + self._room_seconds
        async with self._changing:
            await self._make_room(version, deadline)
            # Counted before the load: after a failure the server may hold the version all the same.
            self._placed.add(name)
            try:
                await self._loader.load(version)
                if name not in self._proven:
                    await self._loader.prove(version, terms)
            except BaseException:
                await self._loader.unload(version)
                self._placed.discard(name)
                raise
        # Set last: from here on requests use the version without waiting.
        resident.terms = terms
        resident.last_used = time.monotonic()

    async def _make_room(self, version: Version, deadline: float) -> None:
        while len(self._placed) >= self._limit:
            victim = self._least_needed(await self._wanted())
            if victim is not None:
                await self._unload(victim)
                continue
            # No await since the search, so no release can be missed.
            self._released.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._released.wait()
            except TimeoutError:
                raise Refused(
                    429,
                    f"{version.label} cannot be loaded now: all {self._limit} adapter places "
                    "are in use by running requests",
                    code="server_busy",
                    retry_after=self._room_seconds,
                ) from None

    def _least_needed(self, wanted: Collection[str]) -> Resident | None:
        """The idle version to evict: one that no alias points to, else the least recently used."""
        return min(
            (resident for resident in self._known.values() if resident.idle),
            key=lambda one: (one.version.served_name in wanted, one.last_used),
            default=None,
        )

    async def _unload(self, resident: Resident) -> None:
        """Unload an idle version; the next request for it loads it again."""
        name = resident.version.served_name
        # Forgotten first: a request during the unload starts a new load, which waits for its turn.
        del self._known[name]
        try:
            await self._loader.unload(resident.version)
        finally:
            self._placed.discard(name)

    def _is_known(self, resident: Resident) -> bool:
        return self._known.get(resident.version.served_name) is resident


def _unused(resident: Resident, seconds: float) -> bool:
    return resident.idle and time.monotonic() - resident.last_used >= seconds


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


__all__ = ["Resident", "Residents", "Unfit"]
