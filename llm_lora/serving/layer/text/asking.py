"""The handling of a request to a model, from arrival to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Scope

from llm_lora.serving.layer import asgi
from llm_lora.serving.layer.access_log import AccessLog
from llm_lora.serving.layer.catalog import Catalog
from llm_lora.serving.layer.config import ServingConfig
from llm_lora.serving.layer.connection import Connection
from llm_lora.serving.layer.exchange import Exchange
from llm_lora.serving.layer.limits import Gate
from llm_lora.serving.layer.loader import Unfit
from llm_lora.serving.layer.metrics import Metrics
from llm_lora.serving.layer.residents import Resident, Residents
from llm_lora.serving.layer.text import requests, responses
from llm_lora.serving.layer.text.requests import Request
from llm_lora.store import Version

_TRIES = 3
"""How often a name is looked up again after its version proved unfit."""


class Asking:
    """Handles requests: finds the version, completes the request, passes the answer on."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServingConfig,
        catalog: Catalog,
        residents: Residents,
        metrics: Metrics,
        log: AccessLog,
    ) -> None:
        self.gate = Gate(config.limits)
        self._app = app
        self._config = config
        self._catalog = catalog
        self._residents = residents
        self._metrics = metrics
        self._log = log

    async def serve(self, scope: Scope, line: Connection) -> None:
        """Answer a request to one of the routes that name a model.

        Raises:
            Refused: it cannot be answered.
            Gone: the client went away before the server was asked.
        """
        started = time.monotonic()
        requests.check_type(scope)
        body = await asgi.read_body(scope, line.receive, self._config.limits.max_body_bytes)
        request = requests.read(body, scope["path"])
        version = await self._catalog.find(request.model)
        await self._enter(line)
        resident: Resident | None = None
        try:
            if version is not None:
                resident = await self._resident(request.model, version, line)
            await self._ask(scope, line, request, resident, body, started)
        finally:
            if resident is not None:
                self._residents.release(resident)
            self.gate.leave()

    async def _enter(self, line: Connection) -> None:
        """Take a place, unless the client goes away while all are taken."""
        if self.gate.free:
            await self.gate.enter()
        else:
            await asgi.unless_gone(line.receive, self.gate.enter(), lambda _: self.gate.leave())

    async def _resident(self, model: str, version: Version, line: Connection) -> Resident:
        """The loaded version; the one before where the alias has moved off an unfit version."""
        for _ in range(_TRIES):
            found = self._residents.take(version)
            if found is not None:
                return found
            try:
                return await asgi.unless_gone(
                    line.receive, self._residents.acquire(version), self._residents.release
                )
            except Unfit:
                other = await self._catalog.find(model)
                if other is None or other == version:
                    raise
                version = other
        raise AssertionError("unreachable")

    async def _ask(
        self,
        scope: Scope,
        line: Connection,
        request: Request,
        resident: Resident | None,
        body: bytes,
        started: float,
    ) -> None:
        version = resident.version if resident is not None else None
        served = version.served_name if version is not None else self._catalog.base_name
        terms = resident.terms if resident is not None else None
        completed = requests.complete(request, served, terms)
        if request.route == requests.TOKENIZE:
            inner = asgi.with_json(scope, completed.body, line.id)
            await self._app(inner, asgi.replay(completed.body, line.receive), line.send)
            return
        # The configured default applies to complete answers only; a request may ask for more.
        habit = self._config.on_invalid if completed.schema and not request.stream else "flag"
        exchange = Exchange(
            id=line.id,
            route=request.route,
            started=started,
            asked=request.model,
            version=version,
            schema=completed.schema,
            stream=request.stream,
            on_invalid=request.on_invalid or habit,
            include_usage_added=completed.usage_added,
        )
        with self._recorded(exchange, line, body):
            await responses.answer(
                self._app, scope, completed.body, exchange, line.receive, line.send
            )

    @contextmanager
    def _recorded(self, exchange: Exchange, line: Connection, body: bytes) -> Iterator[None]:
        """Count and log an exchange when it has ended, in whatever way."""
        try:
            yield
        except asgi.Gone:
            raise
        except Exception:
            exchange.outcome = "error"
            exchange.status = exchange.status or 500
            raise
        finally:
            if line.late:
                exchange.outcome = "error"
            exchange.status = exchange.status or (504 if line.late else 499)
            self._metrics.count(exchange)
            self._log.write(exchange, body)
