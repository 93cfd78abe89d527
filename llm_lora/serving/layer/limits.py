"""Limits on requests answered at once and on those that wait."""

from __future__ import annotations

import asyncio

from llm_lora.serving.layer.config import Limits
from llm_lora.serving.layer.errors import Refused

_AGAIN_SECONDS = 10.0
"""Longest delay that a refused client is asked to wait."""


class Gate:
    """Places for requests, and a short queue for when all are taken."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(limits.max_concurrent)
        self._waiting = 0
        self._inside = 0

    @property
    def inside(self) -> int:
        """Requests that hold a place."""
        return self._inside

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    @property
    def free(self) -> bool:
        """Whether `enter` would return at once."""
        return not self._places.locked()

    async def enter(self) -> None:
        """Take a place; give it back with `leave`.

        Raises:
            Refused: the queue is full, or no place became free in time (429).
        """
        if self.free:
            await self._places.acquire()
            self._inside += 1
            return
        if self._waiting >= self._limits.max_waiting:
            raise self._busy("is full")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.queue_wait_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise self._busy("had no free place in time") from None
        finally:
            self._waiting -= 1
        self._inside += 1

    def leave(self) -> None:
        """Give a place back."""
        self._inside -= 1
        self._places.release()

    def _busy(self, what: str) -> Refused:
        return Refused(
            429,
            f"the server is busy with {self._inside} requests, and the queue {what}",
            code="server_busy",
            retry_after=min(self._limits.queue_wait_seconds, _AGAIN_SECONDS),
        )
