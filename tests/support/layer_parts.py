"""A layer over a stand-in server and a real store, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.adapter_folders import report_of, write_adapter
from support.fake_vllm import BASE, FakeVllm

from llm_lora.base import text as bases
from llm_lora.serving.layer.config import Limits, ServingConfig
from llm_lora.serving.layer.layer import Layer
from llm_lora.store.store import Store, Version


@dataclass
class Parts:
    """The parts that tests use."""

    server: FakeVllm
    store: Store
    layer: Layer
    folder: Path

    def publish(self, name: str, seed: int, *, live: bool = False) -> Version:
        return publish(self.store, self.folder, name, seed, live=live)


def publish(store: Store, folder: Path, name: str, seed: int, *, live: bool = False) -> Version:
    adapter = write_adapter(folder / f"adapter-{seed}", seed=seed)
    version = store.publish(adapter, name, report=report_of(adapter), by="test")
    if live:
        store.promote(name, version.number, by="test")
    return version


def config(folder: Path, *, limits: dict[str, Any] | None = None, **changes: Any) -> ServingConfig:
    base = bases.resolve("tiny")
    given: dict[str, Any] = {
        "store": folder / "store",
        "base_name": BASE,
        "base_path": base.path,
        "base_digest": base.digest,
        "limits": Limits(**(limits or {})),
    }
    return ServingConfig(**given | changes)


def parts(folder: Path, **changes: Any) -> Parts:
    server = FakeVllm()
    layer = Layer(server, config(folder, **changes))
    return Parts(server, Store(folder / "store"), layer, folder)
