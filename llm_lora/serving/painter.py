"""The picture server behind the layer: one base, one thread, adapters added and removed.

    LLM_LORA_SERVING=layer.json python -m llm_lora.serving.painter --host HOST --port PORT

`llm-lora serve` starts it this way, with the layer around it in the same process. Only the layer
reaches its routes; they are vLLM's wherever vLLM has one.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_lora import engines, versions
from llm_lora.adapter import Manifest
from llm_lora.adapter import folder as adapters
from llm_lora.base import PictureBase
from llm_lora.base import image as picture_base
from llm_lora.errors import UserError
from llm_lora.files import Json, read_object
from llm_lora.lora_prompt import Pick
from llm_lora.serving.layer import Layer, Refused, ServingConfig, asgi, errors
from llm_lora.serving.layer.image import PAINT

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 20
"""How long running requests may continue after the server is asked to stop."""

_LARGEST = 2**20
"""Most bytes of an order; the layer has limited the client's request by then."""

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)

T = TypeVar("T")


class Painter(Protocol):
    """The methods of the engine's painter that are used here."""

    def put(self, path: Path, weight: float = 1.0, name: str | None = None) -> str: ...

    def drop(self, name: str) -> None: ...

    def paint_with(
        self,
        picks: Sequence[Pick],
        texts: Sequence[str],
        settings: Any,
        seeds: Sequence[int],
        watch: Callable[[], None] = ...,
    ) -> list[np.ndarray[Any, Any]]: ...


class Stopped(Exception):
    """Painting was stopped because nobody waits for it any more."""


class PictureServer:
    """An ASGI app that paints; everything that touches the base happens in one thread, in turn."""

    def __init__(self, base: PictureBase, base_name: str) -> None:
        """Nothing is loaded before `start`, which the server's lifespan calls."""
        self.base, self.base_name = base, base_name
        self._thread = ThreadPoolExecutor(1, "painter")
        self._engine: Any = None
        self._painter: Painter | None = None
        self._loaded: set[str] = set()  # Only for the painter's thread, like the painter.
        self._born = int(time.time())
        self.registry = CollectorRegistry()
        self._pictures = Counter("llm_lora_pictures", "Painted pictures", registry=self.registry)
        self._painting = Gauge(
            "llm_lora_painting_requests", "Requests being painted now", registry=self.registry
        )
        self._seconds = Histogram(
            "llm_lora_painting_seconds",
            "Painting the pictures of one request, without the wait",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._routes: dict[tuple[str, str], Callable[[Any], Awaitable[Any]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/load_lora_adapter"): self._load,
            ("POST", "/v1/unload_lora_adapter"): self._unload,
            ("POST", PAINT): self._paint,
        }

    async def start(self) -> None:
        """Load the engine and the base.

        Raises:
            UserError: the base cannot be loaded, or memory ran out.
        """
        await self._work(self._open)

    def _open(self) -> None:
        self._engine = engines.load("image")
        self._painter = self._engine.Painter(self.base)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        try:
            if (scope["method"], scope["path"]) == ("GET", "/metrics"):
                text = generate_latest(self.registry)
                await asgi.send(send, 200, text, b"text/plain; version=0.0.4; charset=utf-8")
                return
            route = self._routes.get((scope["method"], scope["path"]))
            if route is None:
                raise Refused(404, "unknown route")
            body = await asgi.read_body(scope, receive, _LARGEST)
            await asgi.send_json(send, 200, await route(json.loads(body) if body else None))
        except Refused as refused:
            await errors.send_refused(send, refused)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except UserError as error:
            # The launcher shows the last line of this form to the user.
            message = "; ".join(str(problem) for problem in error.problems)
            await send({"type": "lifespan.startup.failed", "message": f"UserError: {message}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._thread.shutdown(wait=False, cancel_futures=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _health(self, _: Any) -> Any:
        return {"status": "ok"}

    async def _version(self, _: Any) -> Any:
        return {"version": versions.installed()["llm-lora"]}

    async def _models(self, _: Any) -> Any:
        card = {"id": self.base_name, "object": "model", "created": self._born}
        return {"object": "list", "data": [{**card, "owned_by": "llm-lora", "parent": None}]}

    async def _load(self, order: Mapping[str, str]) -> Any:
        """Load a version; it is applied only to requests that ask for it."""
        name, folder = order["lora_name"], Path(order["lora_path"])
        try:
            await self._work(partial(self._put, name, folder))
        except UserError as error:
            raise Refused(400, "; ".join(one.what for one in error.problems)) from None
        return {"loaded": name}

    def _put(self, name: str, folder: Path) -> None:
        if name in self._loaded:
            return
        path = folder / adapters.MANIFEST
        told = Manifest.from_json(read_object(path), path).base.prediction
        if told != self.base.prediction:
            raise UserError(
                f"it was trained for {told} prediction, but this server paints with "
                f"{self.base.prediction} prediction",
                where=str(folder),
                fix="serve it from a server of its own",
            )
        self._at_work.put(folder, name=name)
        self._loaded.add(name)

    async def _unload(self, order: Mapping[str, str]) -> Any:
        name = order["lora_name"]
        # Shielded: the caller may give up waiting, but the version must be dropped all the same.
        await asyncio.shield(self._work(partial(self._drop, name)))
        return {"unloaded": name}

    def _drop(self, name: str) -> None:
        if name not in self._loaded:
            raise Refused(404, "this adapter is not loaded")
        self._at_work.drop(name)
        self._loaded.discard(name)

    async def _paint(self, order: Json) -> Any:
        """Paint an order that the layer has checked; stop early when the client is gone."""
        stop = threading.Event()
        try:
            with self._painting.track_inprogress():
                data = await self._work(partial(self._pictures_of, order, stop))
        except UserError as error:
            logger.error("%s", error)
            raise Refused(503, str(error), code="out_of_memory", retry_after=10) from None
        finally:
            stop.set()
        return {"created": int(time.time()), "data": data}

    def _pictures_of(self, order: Json, stop: threading.Event) -> list[Json]:
        def watch() -> None:
            if stop.is_set():
                raise Stopped

        watch()
        began = time.monotonic()
        names = ("steps", "guidance", "negative_prompt", "width", "height", "scheduler")
        how = {name: order[name] for name in names}
        picks = [Pick(**one) for one in order["adapters"]]
        prompt, seeds = order["prompt"], order["seeds"]
        pictures = self._at_work.paint_with(
            picks, [prompt] * len(seeds), self._engine.Settings(**how), seeds, watch
        )
        notes = {
            "prompt": " ".join([prompt, *map(str, picks)]),
            "base": self.base_name,
            "adapters": {pick.name: pick.unet for pick in picks},
            **how,
        }
        data = [
            {
                "b64_json": base64.b64encode(
                    self._engine.png(picture, {**notes, "seed": seed})
                ).decode(),
                "seed": seed,
                "revised_prompt": prompt,
            }
            for picture, seed in zip(pictures, seeds, strict=True)
        ]
        self._pictures.inc(len(data))
        self._seconds.observe(time.monotonic() - began)
        return data

    @property
    def _at_work(self) -> Painter:
        assert self._painter is not None, "no request arrives before the start is complete"
        return self._painter

    async def _work(self, work: Callable[[], T]) -> T:
        """Run `work` in the painter's thread, after the work already queued."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def app(config: ServingConfig) -> ASGIApp:
    """The server with the layer around it.

    Raises:
        UserError: the base is gone, or the configuration cannot be used.
    """
    base = picture_base.resolve(str(config.base_path), prediction=config.prediction)
    return Layer(PictureServer(base, config.base_name), config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until asked to stop."""
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    uvicorn.run(
        app(ServingConfig.from_environment()),
        host=given.host,
        port=given.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


if __name__ == "__main__":
    main()
