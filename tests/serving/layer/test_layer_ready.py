"""Readiness, names that cannot answer, and ranks above the limit."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.adapter_folders import RANK, lora, report_of, write_adapter
from support.fake_vllm import BASE
from support.in_process import Got, ask, chat, until
from support.layer_parts import Parts, parts

from llm_lora.base import text as bases
from llm_lora.serving.layer import upkeep
from llm_lora.serving.layer.catalog import Catalog
from llm_lora.store.store import Version

KEY = "admin-key-0123456789"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setenv("LLM_LORA_ADMIN_KEYS", KEY)
    return parts(tmp_path, max_rank=RANK)


def ready(made: Parts) -> Got:
    return asyncio.run(ask(made.layer, "GET", "/ready"))


def publish_large(made: Parts, name: str, seed: int) -> Version:
    """A version of twice the rank that the server was started for."""
    tensors = {
        key: np.concatenate([half, half], axis=1 if "lora_B" in key else 0)
        for key, half in lora(bases.resolve("tiny"), seed=seed).items()
    }
    folder = write_adapter(made.folder / f"large-{seed}", tensors=tensors, r=2 * RANK)
    return made.store.publish(folder, name, report=report_of(folder), by="test")


async def loaded(made: Parts) -> None:
    """Let upkeep load the wanted versions."""
    await made.layer.upkeep.once()
    while any(one.terms is None for one in made.layer.residents._known.values()):
        await asyncio.sleep(0.01)
    await made.layer.upkeep.once()


def test_a_server_that_was_ready_stays_so_when_a_later_version_cannot_be_loaded(
    made: Parts,
) -> None:
    made.publish("qa", 1, live=True)
    assert ready(made).status == 503
    asyncio.run(loaded(made))  # No requests meanwhile.
    made.publish("other", 2, live=True)
    made.server.failing_loads = 1
    before = ready(made)
    assert (before.status, before.json["missing"]) == (200, {"other@1": "loading"})
    assert asyncio.run(chat(made.layer, "other")).status == 503
    after = ready(made)
    assert after.status == 200 and "out of memory" in after.json["missing"]["other@1"]


def test_new_keys_and_versions_do_not_wait_for_what_is_unloaded(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_EVERY_SECONDS", 0.01)
    unloading = asyncio.Event()
    looked: list[int] = []

    async def long(seconds: float) -> None:
        unloading.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(made.layer.residents, "unload_idle", long)
    monkeypatch.setattr(made.layer.upkeep, "_also", lambda: looked.append(1))

    async def scenario() -> None:
        made.layer.upkeep.start()
        await unloading.wait()
        before = len(looked)
        await until(lambda: len(looked) > before + 2)
        await made.layer.upkeep.stop()

    asyncio.run(scenario())


def test_a_first_start_waits_for_what_cannot_be_loaded(made: Parts) -> None:
    made.publish("qa", 1, live=True)
    made.server.failing_loads = 1
    asyncio.run(loaded(made))
    got = ready(made)
    assert got.status == 503 and "out of memory" in got.json["missing"]["qa@1"]


def test_the_version_before_answers_for_one_beyond_the_servers_rank(
    made: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    small = made.publish("qa", 1, live=True)
    asyncio.run(loaded(made))
    publish_large(made, "qa", 2)
    made.store.promote("qa", 2, by="test")
    with caplog.at_level(logging.ERROR):
        asyncio.run(loaded(made))
        answers = [asyncio.run(chat(made.layer, "qa")) for _ in range(2)]
    assert [got.json["llm_lora"]["version"] for got in answers] == [1, 1]
    assert [one.message for one in caplog.records if "qa@2 does not answer" in one.message] == [
        "qa@2 does not answer: its rank 8 is above this server's limit of 4; "
        "restart the server to raise the limit"
    ]
    named = asyncio.run(chat(made.layer, "qa@2"))
    assert (named.status, named.error["code"]) == (503, "adapter_too_large")
    assert "limit of 4; restart the server to raise the limit" in named.error["message"]
    got = ready(made)
    assert got.status == 200 and "limit of 4" in got.json["missing"]["qa@2"]
    (listed,) = asyncio.run(ask(made.layer, "GET", "/v1/adapters")).json["data"]
    assert listed["live"] == 2 and "limit of 4" in listed["problem"]
    assert made.server.loads == [small.served_name]
    # Another server of the same store may accept it, so no refusal is recorded.
    alias = made.store.alias("qa")
    assert (alias.live, alias.refused) == (2, {})


def test_without_a_version_before_it_one_beyond_the_rank_tells_why(made: Parts) -> None:
    publish_large(made, "qa", 1)
    made.store.promote("qa", 1, by="test")
    got = asyncio.run(chat(made.layer, "qa"))
    assert got.status == 503 and "limit of 4" in got.error["message"]
    asyncio.run(loaded(made))
    assert ready(made).status == 503
    assert made.server.loads == []


def test_a_trial_beyond_the_rank_leaves_its_share_to_the_live_version(made: Parts) -> None:
    made.publish("qa", 1, live=True)
    publish_large(made, "qa", 2)
    made.store.canary("qa", 2, 0.9, by="test")

    async def scenario() -> list[Got]:
        await loaded(made)
        return await asyncio.gather(*(chat(made.layer, "qa") for _ in range(20)))

    assert {got.json["llm_lora"]["version"] for got in asyncio.run(scenario())} == {1}


@pytest.mark.parametrize("path", ["promote", "load", "canary"])
def test_no_call_moves_an_alias_to_a_version_beyond_the_rank(path: str, made: Parts) -> None:
    made.publish("qa", 1, live=True)
    publish_large(made, "qa", 2)
    body = {"name": "qa", "version": 2} | ({"share": 0.5} if path == "canary" else {})
    got = asyncio.run(ask(made.layer, "POST", f"/admin/{path}", body, key=KEY))
    assert got.status == 503 and "limit of 4" in got.error["message"]
    alias = made.store.alias("qa")
    assert (alias.live, alias.canary) == (1, None)
    assert made.server.loads == []


def test_an_adapter_with_the_bases_name_is_told_and_not_moved_to(made: Parts) -> None:
    made.publish("qa", 1, live=True)
    asyncio.run(loaded(made))
    made.publish(BASE, 2, live=True)
    asyncio.run(loaded(made))
    got = ready(made)
    assert got.status == 200 and "also the name of the base" in got.json["missing"]["tiny@1"]
    for path, body in (
        ("promote", {"version": 1}),
        ("canary", {"version": 1, "share": 0.1}),
        ("rollback", {}),
    ):
        told = asyncio.run(
            ask(made.layer, "POST", f"/admin/{path}", {"name": BASE, **body}, key=KEY)
        )
        assert (told.status, told.error["code"]) == (409, "name_of_the_base")
    assert "llm_lora" not in asyncio.run(chat(made.layer, BASE)).json
    models = asyncio.run(ask(made.layer, "GET", "/v1/models")).json["data"]
    assert [one["id"] for one in models] == ["tiny", "qa", "qa@1", "tiny@1"]
    # By its number it cannot be mistaken for the base.
    assert asyncio.run(chat(made.layer, "tiny@1")).json["llm_lora"]["version"] == 1


@pytest.mark.parametrize("model", ["nobody", "no name", "qa@9", "qa@" + "f" * 12, "silent"])
def test_what_may_read_the_whole_store_is_done_beside_the_event_loop(
    model: str, made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.publish("qa", 1, live=True)
    made.publish("silent", 2)
    threads = []
    resolve: Callable[[Catalog, str], Version | None] = Catalog.resolve

    def watched(self: Catalog, model: str) -> Version | None:
        threads.append(threading.current_thread())
        return resolve(self, model)

    monkeypatch.setattr(Catalog, "resolve", watched)
    assert asyncio.run(chat(made.layer, model)).status == 404
    assert threads and threading.main_thread() not in threads
    assert asyncio.run(chat(made.layer, "qa")).status == 200
    assert threads[-1] is threading.main_thread(), "a live name need not wait for a thread"
