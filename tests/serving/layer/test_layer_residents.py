"""Versions in the server: loaded once, when needed; unloaded when no longer needed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from support.adapter_folders import report_of, write_adapter
from support.fake_vllm import FakeVllm, logprobs
from support.in_process import Got, ask, chat, until
from support.layer_parts import Parts, parts

from llm_lora.adapter import folder as adapters
from llm_lora.serving.layer import residents as residents_module
from llm_lora.store.store import Version


@pytest.fixture
def made(tmp_path: Path) -> Parts:
    return parts(tmp_path, max_resident=2, limits={"queue_wait_seconds": 0.2})


def idle(parts: Parts) -> bool:
    """Whether nothing is held any more."""
    names = parts.layer.residents.loaded()
    gate = parts.layer.asking.gate
    return (
        not any(map(parts.layer.residents.uses, names))
        and (gate.inside, gate.waiting) == (0, 0)
        and parts.server.running == 0
    )


async def settle(parts: Parts) -> None:
    for _ in range(200):
        if idle(parts):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("something is still held")


def test_a_version_is_loaded_on_first_use_and_once_however_many_wait(made: Parts) -> None:
    version = made.publish("qa", 1, live=True)
    made.server.load_seconds = 0.1

    async def scenario() -> list[Got]:
        return await asyncio.gather(*(chat(made.layer, "qa") for _ in range(50)))

    answers = asyncio.run(scenario())
    assert {got.status for got in answers} == {200}
    assert made.server.loads == [version.served_name]
    assert made.server.adapters == {version.served_name: str(version.folder)}
    assert idle(made)


def test_a_load_goes_on_when_who_asked_for_it_is_gone(made: Parts) -> None:
    made.publish("qa", 1, live=True)
    made.server.load_seconds = 0.1

    async def scenario() -> None:
        leave = asyncio.Event()
        first = asyncio.create_task(chat(made.layer, "qa", leave=leave))
        second = asyncio.create_task(chat(made.layer, "qa"))
        await until(lambda: bool(made.server.loads))
        leave.set()
        assert (await first).status == 0
        assert (await second).status == 200

    asyncio.run(scenario())
    assert len(made.server.loads) == 1 and idle(made)


def test_a_failed_load_is_told_to_all_who_wait_and_tried_again_later(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents_module, "_AGAIN_SECONDS", 1.0)
    made.publish("qa", 1, live=True)
    made.server.failing_loads = 1
    made.server.load_seconds = 0.05

    async def scenario() -> None:
        failed = await asyncio.gather(*(chat(made.layer, "qa") for _ in range(20)))
        assert {got.status for got in failed} == {503}
        assert "out of memory" in failed[0].error["message"]
        assert failed[0].headers["retry-after"] == "5"
        # Not at once: a failing server gets time to recover.
        assert (await chat(made.layer, "qa")).status == 503
        assert len(made.server.loads) == 1
        await asyncio.sleep(1)
        assert (await chat(made.layer, "qa")).status == 200

    asyncio.run(scenario())
    assert idle(made)


def test_a_server_that_has_a_version_already_is_taken_at_its_word(made: Parts) -> None:
    version = made.publish("qa", 1, live=True)
    made.server.adapters[version.served_name] = str(version.folder)
    assert asyncio.run(chat(made.layer, "qa")).status == 200


def test_the_longest_unused_goes_first_and_a_live_one_last(made: Parts) -> None:
    live = made.publish("qa", 1, live=True)
    second, third = made.publish("qa", 2), made.publish("qa", 3)

    async def scenario() -> list[set[str]]:
        states = []
        for model in ("qa", "qa@2", "qa@3", "qa@2", "qa@2", "qa@3"):
            assert (await chat(made.layer, model)).status == 200
            states.append(set(made.server.adapters))
        return states

    names = [one.served_name for one in (live, second, third)]
    first, *rest = asyncio.run(scenario())
    assert first == {names[0]}
    # The live version is the least used, yet stays.
    assert all(names[0] in state and len(state) == 2 for state in rest)
    assert made.server.unloads == [names[1], names[2], names[1]]
    assert made.server.most == 2


def test_a_live_version_goes_when_no_other_can(made: Parts) -> None:
    for number, name in enumerate(("a", "b", "c")):
        made.publish(name, number, live=True)

    async def scenario() -> None:
        for name in ("a", "b", "c", "a"):
            assert (await chat(made.layer, name)).status == 200

    asyncio.run(scenario())
    assert made.server.most == 2 and len(made.server.unloads) == 2


def test_one_in_flight_is_never_unloaded(made: Parts) -> None:
    for number, name in enumerate(("a", "b", "c", "d")):
        made.publish(name, number, live=True)
    made.server.piece_seconds = 0.02

    async def scenario() -> list[Got]:
        jobs = []
        for turn in range(12):
            for name in ("a", "b", "c", "d"):
                jobs.append(asyncio.create_task(chat(made.layer, name, stream=turn % 2 == 0)))
            await asyncio.sleep(0.01)
        return await asyncio.gather(*jobs)

    answers = asyncio.run(scenario())
    assert made.server.torn == []
    assert made.server.most <= 2
    assert {got.status for got in answers} <= {200, 429}
    assert all(got.complete for got in answers)
    assert idle(made)


def test_a_load_waits_for_a_place_and_gets_the_first_that_is_free(tmp_path: Path) -> None:
    made = parts(tmp_path, max_resident=2)
    for number, name in enumerate(("a", "b", "c")):
        made.publish(name, number, live=True)

    async def scenario() -> None:
        for name in ("a", "b"):
            assert (await chat(made.layer, name)).status == 200
        served = {name: made.store.version(name).served_name for name in ("a", "b")}
        made.server.slow = {served["a"]: 0.3, served["b"]: 0.03}
        first, second = (asyncio.create_task(chat(made.layer, name)) for name in ("b", "a"))
        await asyncio.sleep(0.01)
        assert (await chat(made.layer, "c")).status == 200
        assert first.done() and not second.done()
        assert {name.partition("@")[0] for name in made.server.adapters} == {"a", "c"}
        assert (await second).status == 200

    asyncio.run(scenario())
    assert made.server.torn == []


def test_with_all_places_in_flight_a_request_is_told_to_come_back(made: Parts) -> None:
    for number, name in enumerate(("a", "b", "c")):
        made.publish(name, number, live=True)

    async def scenario() -> Got:
        for name in ("a", "b"):
            assert (await chat(made.layer, name)).status == 200
        made.server.piece_seconds = 0.2
        busy = [asyncio.create_task(chat(made.layer, name)) for name in ("a", "b")]
        await until(lambda: made.server.running == 2)
        refused = await chat(made.layer, "c")
        assert [got.status for got in await asyncio.gather(*busy)] == [200, 200]
        made.server.piece_seconds = 0.0
        assert (await chat(made.layer, "c")).status == 200
        return refused

    refused = asyncio.run(scenario())
    assert refused.status == 429 and refused.headers["retry-after"] == "1"
    assert "all 2 adapter places" in refused.error["message"]


def test_a_version_is_unloaded_when_its_alias_has_left_it_and_nobody_uses_it(
    tmp_path: Path,
) -> None:
    made = parts(tmp_path, linger_seconds=0)
    old = made.publish("qa", 1, live=True)
    new = made.publish("qa", 2)

    async def scenario() -> None:
        assert (await chat(made.layer, "qa")).status == 200
        made.server.piece_seconds = 0.05
        stream = asyncio.create_task(chat(made.layer, "qa", stream=True))
        await until(lambda: made.server.running == 1)
        made.store.promote("qa", 2, by="test")
        await made.layer.upkeep.once()
        assert old.served_name in made.server.adapters, "unloaded under a running answer"
        assert old.served_name in (await stream).text
        while new.served_name not in made.layer.residents.loaded():
            await asyncio.sleep(0.01)
        await made.layer.upkeep.once()
        assert set(made.server.adapters) == {new.served_name}

    asyncio.run(scenario())
    assert made.server.torn == []


def test_live_versions_and_those_on_trial_are_loaded_before_anybody_asks(made: Parts) -> None:
    live = made.publish("qa", 1, live=True)
    trial = made.publish("qa", 2)
    made.publish("qa", 3)
    made.store.canary("qa", 2, 0.5, by="test")

    async def scenario() -> None:
        await made.layer.upkeep.once()
        while len(made.layer.residents.loaded()) < 2:
            await asyncio.sleep(0.01)
        await made.layer.upkeep.once()
        assert set(made.server.adapters) == {live.served_name, trial.served_name}
        assert (await ask(made.layer, "GET", "/ready")).status == 200

    asyncio.run(scenario())
    assert len(made.server.loads) == 2


def test_more_live_versions_than_places_are_each_probed_once_and_then_wait_for_requests(
    made: Parts,
) -> None:
    for number, name in enumerate(("a", "b", "c", "d")):
        made.publish(name, number, live=True)

    async def scenario() -> None:
        for _ in range(300):
            await made.layer.upkeep.once()
            if (await ask(made.layer, "GET", "/ready")).status == 200:
                break
            await asyncio.sleep(0.01)
        loads = len(made.server.loads)
        for _ in range(5):
            await made.layer.upkeep.once()
        assert (loads, len(made.server.loads)) == (4, 4)
        assert (await ask(made.layer, "GET", "/ready")).status == 200

    asyncio.run(scenario())
    assert made.server.most == 2


def damage(version: Version) -> None:
    path = version.folder / adapters.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_damaged_version_is_never_loaded(made: Parts) -> None:
    damage(made.publish("qa", 1, live=True))
    got = asyncio.run(chat(made.layer, "qa"))
    assert got.status == 503 and "the file differs from the published one" in got.error["message"]
    assert str(made.folder) not in got.body.decode()
    assert made.server.loads == []
    assert made.store.alias("qa").live == 1, "a damaged copy says nothing about the version"


def test_weights_that_fit_nothing_in_the_base_are_refused(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = made.publish("qa", 1, live=True)
    weights = {
        key.replace("q_proj", "query"): value
        for key, value in _tensors(good.folder / adapters.WEIGHTS).items()
    }
    folder = write_adapter(made.folder / "strange", tensors=weights, target_modules=["query"])
    version = made.store.publish(folder, "qa", report=report_of(folder), by="test")
    made.store.promote("qa", version.number, by="test", force=True)
    got = asyncio.run(chat(made.layer, "qa"))
    assert got.status == 200 and got.json["llm_lora"]["version"] == 1
    assert made.server.loads == [good.served_name]
    assert made.store.alias("qa").live == 1 and 2 in made.store.alias("qa").refused


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(path)


def test_an_adapter_that_changes_nothing_is_refused_by_name_and_the_one_before_answers(
    made: Parts,
) -> None:
    good = made.publish("qa", 1, live=True)
    dead = made.publish("qa", 2)
    made.server.dead.add(dead.served_name)
    made.store.promote("qa", 2, by="test")

    async def scenario() -> list[Got]:
        return await asyncio.gather(*(chat(made.layer, "qa") for _ in range(20)))

    answers = asyncio.run(scenario())
    assert {got.status for got in answers} == {200}
    assert {got.json["llm_lora"]["version"] for got in answers} == {1}
    assert set(made.server.adapters) == {good.served_name}
    alias = made.store.alias("qa")
    assert alias.live == 1 and "exactly like the base" in alias.refused[2]
    named = asyncio.run(chat(made.layer, "qa@2"))
    assert named.status == 422 and named.error["code"] == "adapter_refused"
    assert "qa@2" in named.error["message"]
    assert made.server.loads.count(dead.served_name) == 1
    ready = asyncio.run(ask(made.layer, "GET", "/ready"))
    assert ready.status == 200 and "qa@2" in ready.json["refused"]
    events = [event.kind for event in made.store.history("qa")]
    assert events == ["publish", "promote", "publish", "promote", "refused"]


def test_with_no_version_before_it_the_name_answers_no_more(made: Parts) -> None:
    dead = made.publish("qa", 1, live=True)
    made.server.dead.add(dead.served_name)
    got = asyncio.run(chat(made.layer, "qa"))
    assert got.status == 404
    told = "no version is live (qa@1 was refused: once loaded, it answers exactly like the base)"
    assert f"{told}; available: tiny" in got.error["message"]
    ready = asyncio.run(ask(made.layer, "GET", "/ready"))
    assert ready.json["refused"] == {"qa@1": "once loaded, it answers exactly like the base"}
    # A request by number reports only that version.
    named = asyncio.run(chat(made.layer, "qa@2"))
    assert named.status == 404 and "no version 2; available: " in named.error["message"]


def test_force_puts_a_refused_version_live_for_good(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents_module, "_AGAIN_SECONDS", 0.0)
    made.publish("qa", 1, live=True)
    dead = made.publish("qa", 2)
    made.server.dead.add(dead.served_name)
    made.store.promote("qa", 2, by="test")
    assert asyncio.run(chat(made.layer, "qa")).json["llm_lora"]["version"] == 1
    made.store.promote("qa", 2, by="test", force=True)
    assert asyncio.run(chat(made.layer, "qa")).json["llm_lora"]["version"] == 2
    assert made.store.alias("qa").live == 2


def test_a_store_that_cannot_be_written_refuses_a_dead_version_all_the_same(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = made.publish("qa", 1, live=True)
    made.server.dead.add(dead.served_name)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(made.layer.catalog.store, "refuse", full)
    assert asyncio.run(chat(made.layer, "qa")).status == 422
    assert made.server.adapters == {}


def test_without_a_probe_nothing_is_compared(tmp_path: Path) -> None:
    made = parts(tmp_path, probe=False)
    made.server.dead.add(made.publish("qa", 1, live=True).served_name)
    assert asyncio.run(chat(made.layer, "qa")).status == 200


@pytest.mark.parametrize(
    ("noise", "effect", "status"),
    [
        (0.0, 0.0, 422),
        (0.0, 0.00005, 422),
        (0.0, 0.001, 200),
        (0.02, 0.01, 422),
        (0.02, 0.5, 200),
        # A base that differs from itself proves nothing about an adapter.
        (3.0, 0.5, 200),
    ],
)
def test_an_effect_is_more_than_the_base_varies_by(
    noise: float, effect: float, status: int, made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = made.publish("qa", 1)
    asked = 0

    def noisy(self: FakeVllm, model: str) -> dict[str, Any]:
        nonlocal asked
        asked += model == "tiny"
        shift = effect if model != "tiny" else noise * (asked % 2 == 0)
        return logprobs(shift)

    monkeypatch.setattr(FakeVllm, "_logprobs", noisy)
    assert asyncio.run(chat(made.layer, version.label)).status == status


def test_a_probe_that_fails_refuses_nobody_for_good(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents_module, "_AGAIN_SECONDS", 0.0)
    made.publish("qa", 1, live=True)
    with monkeypatch.context() as patch:
        patch.setattr(FakeVllm, "_logprobs", lambda *_: None)
        got = asyncio.run(chat(made.layer, "qa"))
        assert got.status == 503 and "probe" in got.error["message"]
        assert made.server.adapters == {}
    assert asyncio.run(chat(made.layer, "qa")).status == 200
    assert made.store.alias("qa").refused == {}


def test_an_adapter_of_another_base_is_not_served(made: Parts, tmp_path: Path) -> None:
    from dataclasses import replace

    from llm_lora.base import text as bases

    other = replace(bases.resolve("tiny"), name="other", digest="0" * 64)
    folder = write_adapter(tmp_path / "foreign", seed=8, base=other)
    made.store.publish(folder, "foreign", report=report_of(folder), by="test")
    made.store.promote("foreign", 1, by="test")
    got = asyncio.run(chat(made.layer, "foreign"))
    assert got.status == 404 and "trained on other" in got.error["message"]
    assert asyncio.run(ask(made.layer, "GET", "/ready")).status == 200


def test_a_removed_version_answers_no_more(made: Parts) -> None:
    made.publish("qa", 1, live=True)
    made.publish("qa", 2)
    assert asyncio.run(chat(made.layer, "qa@2")).status == 200
    made.store.remove("qa", 2, by="test")
    assert asyncio.run(chat(made.layer, "qa@2")).status == 404


def test_a_canary_gets_its_share(tmp_path: Path) -> None:
    made = parts(tmp_path, max_resident=2)  # Too few places for all, so some must wait.
    made.publish("qa", 1, live=True)
    made.publish("qa", 2)
    made.store.canary("qa", 2, 0.25, by="test")

    async def scenario() -> int:
        answers = await asyncio.gather(*(chat(made.layer, "qa") for _ in range(400)))
        return sum(got.json["llm_lora"]["version"] == 2 for got in answers)

    assert 60 <= asyncio.run(scenario()) <= 145


def test_a_load_takes_no_longer_than_requests_may(tmp_path: Path) -> None:
    made = parts(tmp_path, limits={"request_seconds": 0.2})
    made.publish("qa", 1, live=True)
    made.server.load_seconds = 60.0
    began = time.monotonic()
    got = asyncio.run(chat(made.layer, "qa"))
    assert got.status in (503, 504) and time.monotonic() - began < 30
