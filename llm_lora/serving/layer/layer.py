"""The layer that `llm-lora serve` adds to vLLM's server, as its outermost middleware.

Every request passes here first, and only the routes of `routes.py` are open. A request to a model
belongs, from arrival to end, to the one version that its name meant on arrival.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_lora.errors import UserError
from llm_lora.serving.layer import adapters, asgi, models, playground, routes
from llm_lora.serving.layer.access_log import AccessLog
from llm_lora.serving.layer.admin import Admin
from llm_lora.serving.layer.asgi import Gone
from llm_lora.serving.layer.catalog import Catalog
from llm_lora.serving.layer.config import ServingConfig
from llm_lora.serving.layer.connection import Connection
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.keys import Keys
from llm_lora.serving.layer.loader import Loader
from llm_lora.serving.layer.merged import Whole
from llm_lora.serving.layer.metrics import Metrics
from llm_lora.serving.layer.residents import Residents
from llm_lora.serving.layer.routes import Access
from llm_lora.serving.layer.text import Asking, requests
from llm_lora.serving.layer.upkeep import Upkeep, wanted_names
from llm_lora.store import Stamp, Store, aliases
from llm_lora.task import TASKS, load

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 10.0
"""How long the server may take to drop a request whose deadline has passed."""


class Layer:
    """An ASGI app around another one: an OpenAI-compatible server that loads LoRA adapters.

    Without `config` it is read from the file that `LLM_LORA_SERVING` names, because a server
    creates its middleware itself.

    Raises:
        UserError: the configuration, a file of keys or the access log cannot be used.
    """

    def __init__(self, app: ASGIApp, config: ServingConfig | None = None) -> None:
        app = asgi.Inner(app)
        self.config = config = config or ServingConfig.from_environment()
        self.keys = Keys.read(config)
        self._key_stamps = self._stamps()
        self.metrics = Metrics()
        self.log = AccessLog(config.access_log, contents=config.log_contents)
        self.catalog = Catalog(
            Store(config.store),
            base_name=config.base_name,
            base_digest=config.base_digest,
            max_rank=config.max_rank,
            merged=config.merged,
            task=config.task,
        )
        loader = Whole if config.merged else Loader
        self.residents = Residents(
            loader(
                app,
                self.catalog.store,
                base_name=config.base_name,
                base_path=config.base_path,
                probed=config.probe,
                max_rank=config.max_rank,
                task=config.task,
                prediction=config.prediction,
            ),
            limit=config.max_resident,
            wanted=partial(wanted_names, self.catalog),
            on_loaded=self.metrics.load,
            room_seconds=config.limits.queue_wait_seconds,
            load_seconds=config.limits.request_seconds,
        )
        self.metrics.watch_loaded(lambda: len(self.residents.loaded()))
        asking: type[Asking] = load(TASKS[config.task].asking)
        self.asking = asking(app, config, self.catalog, self.residents, self.metrics, self.log)
        self.upkeep = Upkeep(
            self.catalog,
            self.residents,
            linger_seconds=config.linger_seconds,
            also=self._renew_keys,
        )
        self._admin = Admin(
            self.catalog,
            self.residents,
            base_path=config.base_path,
            prediction=config.prediction,
        )
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            # WebSockets have no route; closing one before it is accepted answers 403.
            await send({"type": "websocket.close", "code": 1008})

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self.upkeep.start()
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            await self.upkeep.stop()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self.config.limits.request_seconds
        line = Connection(receive, send, seconds)
        refused: Refused | None = None
        try:
            access = routes.access(scope["method"], scope["path"], self.config.task)
            key = self.keys.check(scope, access)
            async with asyncio.timeout(seconds + _GRACE_SECONDS):
                await self._answer(scope, line, access, key)
        except Refused as error:
            refused = error
        except Gone:
            pass
        except Exception:
            if not (line.gone or line.late):
                logger.exception("%s: the server failed", line.id)
                refused = Refused(500, "the server failed; see its log")
        if line.late and refused is None:
            refused = line.overdue()
        if refused is not None:
            if not line.began:
                self.metrics.refused(refused.status)
                self.log.refused(line.id, scope["path"], refused.status)
            with suppress(OSError):  # by now the client may be gone
                await line.refuse(refused)

    async def _answer(self, scope: Scope, line: Connection, access: Access, key: str) -> None:
        path = scope["path"]
        if path in routes.MODEL_ROUTES:
            await self.asking.serve(scope, line)
        elif access is Access.ADMIN:
            await self._administer(scope, line, f"admin key {key}")
        elif path == "/":
            await playground.respond(line.send, self.config.task)
        elif path == "/metrics":
            await self.metrics.expose(self._app, scope, line.receive, line.send)
        elif path == "/ready":
            await self._ready(scope, line)
        elif path == "/v1/models":
            await asgi.send_json(line.send, 200, await models.listing(self._app, self.catalog))
        elif path == "/v1/adapters":
            await asgi.send_json(line.send, 200, await self._adapters())
        else:
            await self._app(scope, line.receive, line.send)

    async def _administer(self, scope: Scope, line: Connection, by: str) -> None:
        path = scope["path"]
        if path == "/admin/history":
            answer = await self._admin.history(scope["query_string"])
        else:
            requests.check_type(scope)
            body = await asgi.read_body(scope, line.receive, self.config.limits.max_body_bytes)
            answer = await self._admin.post(path, body, by)
        await asgi.send_json(line.send, 200, answer)

    async def _ready(self, scope: Scope, line: Connection) -> None:
        state = await self.upkeep.state()
        try:
            healthy = (await asgi.call(self._app, "GET", "/health")).status == 200
        except Exception:  # a dead engine raises anything; it is not ready
            logger.exception("the health check of the server failed")
            healthy = False
        ready = state.ready and healthy
        # Names of adapters and their errors are only for clients that may use them.
        told = (
            replace(state, ready=ready).to_json() if self.keys.admits(scope) else {"ready": ready}
        )
        await asgi.send_json(line.send, 200 if ready else 503, told)

    async def _adapters(self) -> object:
        return await asyncio.to_thread(
            adapters.listing, self.catalog, self.metrics, loaded=self.residents.loaded()
        )

    def _renew_keys(self) -> None:
        """Reload key files that have changed; a faulty one leaves the keys as they are."""
        stamps = self._stamps()
        if stamps == self._key_stamps:
            return
        self._key_stamps = stamps
        try:
            self.keys = Keys.read(self.config)
        except UserError as error:
            logger.error("the changed key file cannot be used, the old keys stay valid: %s", error)

    def _stamps(self) -> list[Stamp | None]:
        found: list[Stamp | None] = []
        for path in (self.config.api_keys_file, self.config.admin_keys_file):
            try:
                found.append(aliases.stamp(path) if path is not None else None)
            except OSError:
                found.append(None)
        return found
