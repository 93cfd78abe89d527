"""The layer's metrics, in Prometheus' text format after the server's own.

Labels are names and versions of the store, never text from a client, so the number of series is
bounded by the published versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_lora.serving.layer.exchange import Exchange
from llm_lora.serving.layer.text import judging
from llm_lora.store import Version

BASE = "(base)"
"""The base's label: no adapter can have this name."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_OF_VERSION = ("adapter", "version")


class Labels(NamedTuple):
    """The labels of a metric."""

    adapter: str
    version: str


@dataclass
class Totals:
    """Answers of one version since the server started."""

    requests: int = 0
    judged: int = 0
    valid: int = 0

    @property
    def valid_rate(self) -> float | None:
        """Share of the judged answers that were valid; None where none was judged."""
        return self.valid / self.judged if self.judged else None


def labels(version: Version | None) -> Labels:
    """The labels of a version; None is the base."""
    return Labels(BASE, "") if version is None else Labels(version.name, str(version.number))


class Metrics:
    """The layer's counters; `registry` is its own by default, apart from the server's."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()

        def counter(name: str, what: str, names: tuple[str, ...]) -> Counter:
            return Counter(f"llm_lora_{name}", what, names, registry=self.registry)

        def histogram(name: str, what: str, names: tuple[str, ...] = ()) -> Histogram:
            return Histogram(
                f"llm_lora_{name}", what, names, registry=self.registry, buckets=_SECONDS
            )

        self._requests = counter("requests", "Requests by outcome", (*_OF_VERSION, "outcome"))
        self._reasons = counter(
            "invalid_reasons", "Reasons of invalid answers", (*_OF_VERSION, "keyword")
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts", _OF_VERSION)
        self._answer = counter("answer_tokens", "Tokens of answers", _OF_VERSION)
        self._retries = counter("retries", "Retried answers", _OF_VERSION)
        self._refused = counter("refused", "Requests that reached no model", ("status",))
        self._seconds = histogram(
            "request_seconds", "From arrival to the end of the answer", ("adapter",)
        )
        self._first = histogram(
            "first_token_seconds", "From arrival to the first piece of a stream", ("adapter",)
        )
        self._loads = histogram(
            "load_seconds",
            "Loads of versions: check, wait for a place, load, and the probe the first time",
        )
        self._loaded = Gauge(
            "llm_lora_loaded_adapters", "Versions that are loaded", registry=self.registry
        )
        self._totals: dict[Labels, Totals] = {}

    def count(self, exchange: Exchange) -> None:
        """Count a request to a model, when it has ended."""
        whose = labels(exchange.version)
        self._requests.labels(*whose, exchange.outcome).inc()
        if exchange.verdict is not None:
            for keyword in {reason.keyword for reason in exchange.verdict.reasons}:
                self._reasons.labels(*whose, keyword).inc()
        self._prompt.labels(*whose).inc(exchange.prompt_tokens or 0)
        self._answer.labels(*whose).inc(exchange.answer_tokens or 0)
        if exchange.retried:
            self._retries.labels(*whose).inc()
        self._seconds.labels(whose.adapter).observe(time.monotonic() - exchange.started)
        if exchange.first_token is not None:
            self._first.labels(whose.adapter).observe(exchange.first_token - exchange.started)
        totals = self._totals.setdefault(whose, Totals())
        totals.requests += 1
        totals.judged += exchange.outcome in ("valid", *judging.WRONG)
        totals.valid += exchange.outcome == "valid"

    def refused(self, status: int) -> None:
        """Count a request that reached no model."""
        self._refused.labels(str(status)).inc()

    def load(self, seconds: float) -> None:
        """Count a version that was loaded."""
        self._loads.observe(seconds)

    def watch_loaded(self, count: Callable[[], int]) -> None:
        """Call `count` for the number of loaded versions whenever metrics are read."""
        self._loaded.set_function(count)

    def totals(self, version: Version | None) -> Totals:
        """The answers of a version since the server started."""
        return self._totals.get(labels(version), Totals())

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    async def expose(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer GET /metrics: the server's own metrics, then the layer's."""
        # Without these headers the server's text is plain: not compressed, no end marker.
        kept = [
            header
            for header in scope["headers"]
            if header[0] not in (b"accept", b"accept-encoding")
        ]
        status = 0

        async def append(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                without = [
                    header
                    for header in message["headers"]
                    if header[0].lower() != b"content-length"
                ]
                await send({**message, "headers": without})
            elif message.get("more_body", False) or status != 200:
                await send(message)
            else:
                await send({**message, "body": message.get("body", b"") + self.text()})

        await app({**scope, "headers": kept}, receive, append)
