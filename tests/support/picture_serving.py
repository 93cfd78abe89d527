"""A layer around the real picture server, with a real store, in the process."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support import picture_adapters
from support.in_process import Got, ask

from llm_lora import engines
from llm_lora.base import image as picture_base
from llm_lora.serving.layer.config import Limits, ServingConfig
from llm_lora.serving.layer.layer import Layer
from llm_lora.serving.painter import PictureServer
from llm_lora.store.store import Store

ROUTE = "/v1/images/generations"
BASE = picture_base.resolve("tiny")


class Held:
    """The real painter, which a test can hold back, and which records its orders."""

    def __init__(self, painter: Any) -> None:
        self._painter = painter
        self.go = threading.Event()
        self.go.set()
        self.prompts: list[str] = []
        self.steps = 0
        self.put, self.drop = painter.put, painter.drop

    def paint_with(
        self, picks: Any, texts: Sequence[str], settings: Any, seeds: Any, watch: Any
    ) -> Any:
        self.prompts += texts
        assert self.go.wait(30)

        def look() -> None:
            self.steps += 1
            watch()

        return self._painter.paint_with(picks, texts, settings, seeds, look)


def start() -> PictureServer:
    """A server with the embedded base; takes some seconds."""
    made = PictureServer(BASE, "tiny")
    asyncio.run(made.start())
    made._painter = Held(made._painter)
    return made


@contextmanager
def holding(server: PictureServer) -> Iterator[Held]:
    """The server's painter, for tests that inspect it."""
    painter: Any = server._painter
    painter.prompts.clear()
    painter.steps = 0
    try:
        yield painter
    finally:
        painter.go.set()


def one_style(folder: Path) -> Store:
    """A store with one live adapter, `style`."""
    made = Store(folder / "store")
    picture_adapters.publish(made, folder, "style", seed=1)
    return made


def config(store: Store, limits: dict[str, Any] | None = None, **changes: Any) -> ServingConfig:
    usual: dict[str, Any] = {
        "store": store.root,
        "base_name": "tiny",
        "base_path": BASE.path,
        "base_digest": BASE.digest,
        "task": "image",
        "prediction": BASE.prediction,
        "resolution": BASE.resolution,
        "probe": False,
        "limits": Limits(**{"max_concurrent": 1, "max_waiting": 4} | (limits or {})),
    }
    return ServingConfig(**usual | changes)


def layer(server: PictureServer, store: Store, **changes: Any) -> Layer:
    return Layer(server, config(store, **changes))


def run(app: Layer, **body: Any) -> Got:
    """One request for pictures."""
    return asyncio.run(ask(app, "POST", ROUTE, {"seed": 3, "steps": 3} | body))


def pixels(got: Got) -> list[np.ndarray[Any, Any]]:
    assert got.status == 200, got.body
    found = [base64.b64decode(one["b64_json"]) for one in got.json["data"]]
    return [np.asarray(Image.open(io.BytesIO(one))) for one in found]


def painted(
    prompt: str, *adapters: tuple[str, Path], seeds: Sequence[int] = (3,), **how: Any
) -> Any:
    """The pictures as `llm-lora generate` makes them, from a separate painter."""
    engine = engines.load("image")
    painter = engine.Painter(BASE)
    for name, path in adapters:
        painter.put(path, name=name)
    usual = picture_adapters.SAMPLING if adapters else {"steps": 3}
    return painter.paint([prompt] * len(seeds), engine.Settings(**{**usual, **how}), seeds)


def same(got: Got, wanted: Any) -> bool:
    return bool(np.array_equal(np.stack(pixels(got)), np.stack(wanted)))
