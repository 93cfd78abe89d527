"""The picture server apart from painting: keys, routes, a shared store, the queue, metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support import picture_adapters
from support.adapter_folders import report_of, write_adapter
from support.fake_vllm import FakeVllm
from support.in_process import Got, ask, chat, until
from support.layer_parts import config as text_config
from support.picture_serving import ROUTE, Held, layer

from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.layer import Layer
from llm_lora.serving.painter import PictureServer
from llm_lora.store.store import Store

KEY, ADMIN = "a-key-for-use-0123456789", "a-key-for-admins-0123456789"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_only_listed_routes_are_open_and_keys_guard_them(
    picture_server: PictureServer, one_style: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LORA_API_KEYS", KEY)
    monkeypatch.setenv("LLM_LORA_ADMIN_KEYS", ADMIN)

    async def scenario() -> None:
        app = layer(picture_server, one_style)
        load = {"lora_name": "evil", "lora_path": str(tmp_path)}
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/paint"):
            for method in ("GET", "POST"):
                assert (await ask(app, method, path, load, key=ADMIN)).status == 404
        chatted = await chat(app, "style", key=KEY)
        assert (chatted.status, chatted.error["code"]) == (404, "unknown_route")
        body = {"model": "tiny", "prompt": "x", "steps": 1}
        assert (await ask(app, "POST", ROUTE, body)).status == 401
        assert (await ask(app, "POST", ROUTE, body, key=ADMIN)).status == 403
        assert (await ask(app, "POST", ROUTE, body, key=KEY)).status == 200
        assert (await ask(app, "GET", ROUTE, key=KEY)).status == 405
        assert (await ask(app, "GET", "/health")).status == 200
        assert (await ask(app, "GET", "/")).status == 200
        assert (await ask(app, "POST", "/", {})).status == 405
        assert (await ask(app, "GET", "/version")).status == 200
        listed = (await ask(app, "GET", "/v1/models", key=KEY)).json["data"]
        assert [one["id"] for one in listed] == ["tiny", "style", "style@1"]
        assert (await ask(app, "GET", "/v1/models")).status == 401

    asyncio.run(scenario())


def test_promoting_over_http_maps_the_adapter_onto_the_base_of_pictures(
    picture_server: PictureServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LORA_ADMIN_KEYS", ADMIN)
    for seed in (1, 2):
        picture_adapters.publish(store, tmp_path, "style", seed=seed, live=False)

    async def scenario() -> None:
        app = layer(picture_server, store)
        for number in (1, 2):
            body = {"name": "style", "version": number}
            got = await ask(app, "POST", "/admin/promote", body, key=ADMIN)
            assert (got.status, got.json["live"]) == (200, number)
        await app.upkeep.once()
        assert (await ask(app, "GET", "/ready")).json["ready"]
        rows = (await ask(app, "GET", "/v1/adapters")).json["data"][0]["versions"]
        assert [row["loaded"] for row in rows] == [True, True]

    asyncio.run(scenario())


# One store for text and for pictures.


def test_text_and_pictures_share_a_store_and_each_server_takes_its_own(
    picture_server: PictureServer, store: Store, tmp_path: Path
) -> None:
    picture_adapters.publish(store, tmp_path, "style", seed=1)
    text = write_adapter(tmp_path / "text")
    store.publish(text, "triage", report=report_of(text), by="test")
    store.promote("triage", 1, by="test")
    paints, vllm = layer(picture_server, store), FakeVllm()
    answers = Layer(vllm, text_config(tmp_path))

    async def scenario() -> None:
        for app in (paints, answers):
            await app.upkeep.once()
            assert app.residents.uses("triage") == 0
        got = await ask(paints, "POST", ROUTE, {"model": "triage", "prompt": "x"})
        assert (got.status, got.error["code"]) == (404, "model_not_found")
        why = "triage@1 is an adapter for text, but this server is for pictures"
        assert got.error["message"] == why
        got = await chat(answers, "style")
        why = "style@1 is an adapter for pictures, but this server is for text"
        assert (got.status, got.error["message"]) == (404, why)
        assert (await chat(answers, "triage")).status == 200
        for app, names in ((paints, ["style"]), (answers, ["triage"])):
            rows = (await ask(app, "GET", "/v1/adapters")).json["data"]
            assert [row["name"] for row in rows] == names
            async with asyncio.timeout(30):
                while (state := (await ask(app, "GET", "/ready")).json)["missing"]:
                    await asyncio.sleep(0.01)
            assert state == {"ready": True, "missing": {}, "refused": {}}

    asyncio.run(scenario())
    assert all(name.startswith("triage@") for name in vllm.loads)


# The queue.


def test_one_request_is_painted_at_a_time_and_the_queue_has_an_end(
    picture_server: PictureServer, held: Held, one_style: Store
) -> None:
    async def scenario() -> None:
        app = layer(picture_server, one_style, limits={"max_waiting": 1})
        held.go.clear()

        def start(prompt: str, leave: asyncio.Event | None = None) -> asyncio.Task[Got]:
            body = {"model": "style", "prompt": prompt, "steps": 1}
            return asyncio.create_task(ask(app, "POST", ROUTE, body, leave=leave))

        first = start("first")
        await until(lambda: held.prompts == ["first"])
        leave = asyncio.Event()
        waits = start("waits", leave)
        await until(lambda: app.asking.gate.waiting == 1)
        full = await start("full")
        assert (full.status, full.error["code"]) == (429, "server_busy")
        assert 1 <= int(full.headers["retry-after"]) <= 10
        # A client that disconnects while waiting makes room, and is not painted for.
        leave.set()
        await waits
        await until(lambda: app.asking.gate.waiting == 0)
        last = start("last")
        await until(lambda: app.asking.gate.waiting == 1)
        held.go.set()
        assert [one.status for one in await asyncio.gather(first, last)] == [200, 200]
        assert held.prompts == ["first", "last"]
        assert app.asking.gate.inside == 0

    asyncio.run(scenario())


def test_painting_ends_when_the_client_hangs_up(
    picture_server: PictureServer, held: Held, one_style: Store
) -> None:
    async def scenario() -> None:
        app = layer(picture_server, one_style)
        held.go.clear()
        leave = asyncio.Event()
        body = {"model": "style", "prompt": "long", "steps": 100, "n": 10}
        task = asyncio.create_task(ask(app, "POST", ROUTE, body, leave=leave))
        await until(lambda: held.prompts == ["long"] * 10)
        leave.set()
        await task
        held.go.set()
        got = await ask(app, "POST", ROUTE, {"model": "tiny", "prompt": "next", "steps": 1})
        assert got.status == 200
        assert held.steps == 1 + 1, "the first step of the one left, the only one of the next"
        text = (await ask(app, "GET", "/metrics")).body.decode()
        counted = 'llm_lora_requests_total{adapter="style",outcome="aborted",version="1"} 1.0'
        assert counted in text

    asyncio.run(scenario())


def test_what_takes_too_long_is_told_so(
    picture_server: PictureServer, held: Held, one_style: Store
) -> None:
    async def scenario() -> Got:
        app = layer(picture_server, one_style, limits={"request_seconds": 0.3})
        body = {"model": "tiny", "prompt": "slow", "steps": 100, "n": 10}
        return await ask(app, "POST", ROUTE, body)

    got = asyncio.run(scenario())
    assert (got.status, got.error["code"]) == (504, "request_timeout")


def test_whoever_gives_up_waiting_leaves_a_server_that_knows_what_it_has(
    picture_server: PictureServer,
    held: Held,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = picture_adapters.write_adapter(tmp_path / "a", seed=1)
    order = {"lora_name": "a@1", "lora_path": str(folder)}
    begun, go = threading.Event(), threading.Event()
    put = held.put

    def slow(path: Path, **more: Any) -> None:
        begun.set()
        assert go.wait(30)
        put(path, **more)

    async def given_up(work: Coroutine[Any, Any, Any], when: Callable[[], bool]) -> None:
        task = asyncio.create_task(work)
        await asyncio.sleep(0.01)
        await until(when)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def scenario() -> None:
        # While it is being loaded.
        monkeypatch.setattr(held, "put", slow)
        await given_up(picture_server._load(order), begun.is_set)
        go.set()
        assert await picture_server._load(order) == {"loaded": "a@1"}
        # Behind a painting in the queue: it is unloaded, then loaded again.
        go.clear()
        work = asyncio.create_task(picture_server._work(lambda: go.wait(30)))
        await given_up(picture_server._unload(order), lambda: True)
        go.set()
        await work
        with pytest.raises(Refused):
            await picture_server._unload(order)
        assert await picture_server._load(order) == {"loaded": "a@1"}
        assert await picture_server._unload(order) == {"unloaded": "a@1"}

    asyncio.run(scenario())


def test_figures_count_pictures_and_requests(
    picture_server: PictureServer, one_style: Store
) -> None:
    async def scenario() -> str:
        app = layer(picture_server, one_style)
        body = {"model": "style", "prompt": "x", "steps": 1, "n": 2}
        before = pictures((await ask(app, "GET", "/metrics")).body.decode())
        assert (await ask(app, "POST", ROUTE, body)).status == 200
        text = (await ask(app, "GET", "/metrics")).body.decode()
        assert pictures(text) == before + 2
        return text

    def pictures(text: str) -> float:
        (line,) = [row for row in text.splitlines() if row.startswith("llm_lora_pictures_total")]
        return float(line.split()[-1])

    text = asyncio.run(scenario())
    assert 'llm_lora_requests_total{adapter="style",outcome="painted",version="1"} 1.0' in text
