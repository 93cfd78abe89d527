"""A load generator: sends requests over several connections and times every answer."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from llm_lora.files import Json
from llm_lora.machine import is_loopback

_DATA = b"data: "
_DONE = b"[DONE]"


@dataclass(frozen=True)
class Timing:
    """Times of one answer, in seconds from its request.

    `first` is when its first text came (None for a plain answer, or without text), `total` when it
    was complete. `tokens` is the server's count; `failure` is empty or the error.
    """

    total: float
    first: float | None = None
    tokens: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Load:
    """Many answers; `seconds` is the time from the first request to the last answer."""

    seconds: float
    timings: tuple[Timing, ...]

    @property
    def failures(self) -> list[str]:
        """The errors, one for each failed answer."""
        return [timing.failure for timing in self.timings if timing.failure]

    @property
    def tokens_per_second(self) -> float:
        """Tokens answered, over all connections."""
        return sum(timing.tokens for timing in self.timings) / self.seconds

    @property
    def answers_per_second(self) -> float:
        """Complete answers per second."""
        return (len(self.timings) - len(self.failures)) / self.seconds

    def summary(self) -> dict[str, Any]:
        """Figures for a table: rates per second, times in milliseconds; None without answers."""
        totals = [timing.total for timing in self.timings if not timing.failure]
        firsts = [timing.first for timing in self.timings if timing.first is not None]
        return {
            "requests": len(self.timings),
            "failed": len(self.failures),
            "seconds": round(self.seconds, 3),
            "answers_per_second": round(self.answers_per_second, 2),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "latency_p50_ms": _milliseconds(totals, 0.5),
            "latency_p99_ms": _milliseconds(totals, 0.99),
            "first_token_p50_ms": _milliseconds(firsts, 0.5),
            "first_token_p99_ms": _milliseconds(firsts, 0.99),
        }


def joined(loads: Sequence[Load]) -> Load:
    """Several loads as one, as if run one after the other."""
    timings = tuple(timing for load in loads for timing in load.timings)
    return Load(sum(load.seconds for load in loads), timings)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values do not exceed.

    >>> percentile([3, 1, 2, 4], 0.5), percentile([], 0.5)
    (2, None)
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else None


def run(
    url: str,
    bodies: Sequence[Mapping[str, Any]],
    *,
    concurrency: int,
    path: str = "/v1/chat/completions",
    key: str | None = None,
    timeout: float = 300.0,
    tell: Callable[[int], None] = lambda done: None,
) -> Load:
    """Send every body once, over `concurrency` connections that each take the next body.

    Args:
        url: of the server.
        bodies: requests; those with `"stream": true` are read as they come. Ask for usage in
            them (`stream_options`), or no tokens are counted.
        concurrency: connections.
        path: of the endpoint.
        key: sent as the API key.
        timeout: seconds for one answer.
        tell: called after each answer with the number of answers so far.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    asked = [(body.get("stream") is True, json.dumps(body).encode()) for body in bodies]
    return asyncio.run(_run(url.rstrip("/") + path, asked, concurrency, headers, timeout, tell))


async def _run(
    address: str,
    asked: Sequence[tuple[bool, bytes]],
    concurrency: int,
    headers: Mapping[str, str],
    timeout: float,
    tell: Callable[[int], None],
) -> Load:
    found: dict[int, Timing] = {}
    waiting = iter(enumerate(asked))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(
        timeout=timeout,
        limits=limits,
        headers=headers,
        # As in the client: a proxy set in the environment must not see keys.
        trust_env=not is_loopback(httpx.URL(address).host),
    ) as http:
        started = time.perf_counter()

        async def connection() -> None:
            for index, (stream, body) in waiting:
                ask = _streamed if stream else _plain
                begun = time.perf_counter()
                try:
                    found[index] = await ask(http, address, body, begun)
                except httpx.HTTPError as error:
                    failure = f"{type(error).__name__}: {error}"
                    found[index] = Timing(time.perf_counter() - begun, failure=failure)
                tell(len(found))

        await asyncio.gather(*(connection() for _ in range(concurrency)))
        seconds = time.perf_counter() - started
    return Load(seconds, tuple(found[index] for index in range(len(asked))))


async def _plain(http: httpx.AsyncClient, address: str, body: bytes, begun: float) -> Timing:
    response = await http.post(address, content=body)
    total = time.perf_counter() - begun
    if response.status_code != 200:
        return Timing(total, failure=f"status {response.status_code}: {response.text[:200]}")
    return Timing(total, tokens=_tokens(response.json()))


async def _streamed(http: httpx.AsyncClient, address: str, body: bytes, begun: float) -> Timing:
    """Read a stream, parsing only up to the first text and the end: parsing every chunk would take
    processor time from the server that is measured."""
    first, last, done, rest = None, b"", False, b""
    async with http.stream("POST", address, content=body) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode(errors="replace")
            total = time.perf_counter() - begun
            return Timing(total, failure=f"status {response.status_code}: {text[:200]}")
        async for piece in response.aiter_raw():
            *lines, rest = (rest + piece).split(b"\n")
            for event in _events(lines):
                if event == _DONE:
                    done = True
                    continue
                last = event
                if first is None and _has_text(event):
                    first = time.perf_counter() - begun
    total = time.perf_counter() - begun
    end = json.loads(last) if last else {}
    if not done or "error" in end:
        return Timing(total, first, failure=str(end.get("error") or "the stream broke off"))
    return Timing(total, first, tokens=_tokens(end))


def _events(lines: Sequence[bytes]) -> Iterator[bytes]:
    for line in lines:
        if line.startswith(_DATA):
            yield line[len(_DATA) :].strip()


def _has_text(event: bytes) -> bool:
    choices = json.loads(event).get("choices") or [{}]
    choice = choices[0]
    return bool(choice.get("text") or (choice.get("delta") or {}).get("content"))


def _tokens(answer: Json) -> int:
    usage = answer.get("usage") or {}
    return int(usage.get("completion_tokens", 0))


def _milliseconds(seconds: Sequence[float], share: float) -> float | None:
    value = percentile(seconds, share)
    return None if value is None else round(value * 1000, 1)
