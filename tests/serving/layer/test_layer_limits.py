"""Overload, slow clients, disconnects: the replies, and the release of everything held."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from support.fake_vllm import FakeVllm
from support.in_process import JSON, Got, ask, chat, until
from support.layer_parts import Parts, parts
from test_layer_residents import idle, settle

from llm_lora.serving.layer.config import Limits
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.limits import Gate


def made(folder: Path, **limits: Any) -> Parts:
    found = parts(folder, limits=limits)
    found.publish("qa", 1, live=True)
    return found


def test_beyond_places_and_queue_requests_are_told_to_come_back(tmp_path: Path) -> None:
    here = made(tmp_path, max_concurrent=2, max_waiting=3, queue_wait_seconds=5)
    here.server.piece_seconds = 0.05

    async def scenario() -> list[Got]:
        assert (await chat(here.layer, "qa")).status == 200
        return await asyncio.gather(*(chat(here.layer, "qa") for _ in range(9)))

    answers = asyncio.run(scenario())
    assert sorted(got.status for got in answers) == [200] * 5 + [429] * 4
    refused = next(got for got in answers if got.status == 429)
    assert refused.headers["retry-after"] == "5" and "busy" in refused.error["message"]
    assert refused.error["type"] == "rate_limit_error"
    assert idle(here)


def test_waiting_has_an_end(tmp_path: Path) -> None:
    here = made(tmp_path, max_concurrent=1, queue_wait_seconds=0.05)

    async def scenario() -> list[Got]:
        assert (await chat(here.layer, "qa")).status == 200
        here.server.piece_seconds = 0.5
        first = asyncio.create_task(chat(here.layer, "qa"))
        await until(lambda: here.server.running == 1)
        second = await chat(here.layer, "qa")
        assert not first.done(), "it waited for its turn after all"
        return [await first, second]

    assert [got.status for got in asyncio.run(scenario())] == [200, 429]
    assert idle(here)


def test_a_place_goes_to_whoever_waited_longest(tmp_path: Path) -> None:
    here = made(tmp_path, max_concurrent=1, max_waiting=50)
    here.server.piece_seconds = 0.002
    order: list[int] = []

    async def one(number: int) -> None:
        assert (await chat(here.layer, "qa")).status == 200
        order.append(number)

    async def scenario() -> None:
        await chat(here.layer, "qa")
        await asyncio.gather(*(one(number) for number in range(20)))

    asyncio.run(scenario())
    assert order == list(range(20))


def test_an_answer_that_takes_too_long_is_given_up_in_the_server_too(tmp_path: Path) -> None:
    here = made(tmp_path, request_seconds=1)

    async def scenario() -> Got:
        assert (await chat(here.layer, "qa")).status == 200
        here.server.piece_seconds = 60
        began = time.monotonic()
        got = await chat(here.layer, "qa")
        assert time.monotonic() - began < 30
        await settle(here)
        return got

    got = asyncio.run(scenario())
    assert got.status == 504 and "1 s" in got.error["message"]


def test_a_stream_that_takes_too_long_ends_with_the_reason(tmp_path: Path) -> None:
    here = made(tmp_path, request_seconds=1)

    async def scenario() -> Got:
        assert (await chat(here.layer, "qa")).status == 200
        here.server.piece_seconds = 0.4
        got = await chat(here.layer, "qa", stream=True)
        await settle(here)
        return got

    got = asyncio.run(scenario())
    assert got.status == 200 and got.complete
    assert got.events[-1]["error"]["code"] == "request_timeout"
    assert b"[DONE]" not in got.body


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_everything(stream: bool, tmp_path: Path) -> None:
    here = made(tmp_path)

    async def scenario() -> None:
        assert (await chat(here.layer, "qa")).status == 200
        here.server.piece_seconds = 0.5
        leaves = [asyncio.Event() for _ in range(20)]
        jobs = [
            asyncio.create_task(chat(here.layer, "qa", stream=stream, leave=leave))
            for leave in leaves
        ]
        await until(lambda: here.server.running == 20)
        for leave in leaves:
            leave.set()
        await asyncio.gather(*jobs)
        await settle(here)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_a_client_that_goes_away_while_it_waits_frees_its_place_in_the_queue(
    tmp_path: Path,
) -> None:
    here = made(tmp_path, max_concurrent=1, max_waiting=5)

    async def scenario() -> None:
        assert (await chat(here.layer, "qa")).status == 200
        here.server.piece_seconds = 0.5
        first = asyncio.create_task(chat(here.layer, "qa"))
        await until(lambda: here.server.running == 1)
        leave = asyncio.Event()
        waiting = [asyncio.create_task(chat(here.layer, "qa", leave=leave)) for _ in range(5)]
        await until(lambda: here.layer.asking.gate.waiting == 5)
        assert (await chat(here.layer, "qa")).status == 429
        leave.set()
        assert [got.status for got in await asyncio.gather(*waiting)] == [0] * 5
        assert not first.done(), "they were kept until it was their turn"
        assert here.layer.asking.gate.waiting == 0
        assert (await chat(here.layer, "qa")).status == 200
        assert (await first).status == 200

    asyncio.run(scenario())
    assert idle(here)


def test_a_client_that_goes_away_while_it_sends_is_no_error(tmp_path: Path) -> None:
    here = made(tmp_path)

    async def scenario() -> Got:
        leave = asyncio.Event()
        job = asyncio.create_task(
            ask(
                here.layer,
                "POST",
                "/v1/chat/completions",
                raw=[b"{"],
                headers=JSON,
                stalls=True,
                leave=leave,
            )
        )
        await asyncio.sleep(0.02)
        leave.set()
        return await job

    assert asyncio.run(scenario()).status == 0
    assert idle(here)


def test_whatever_happens_at_whatever_moment_nothing_is_held(tmp_path: Path) -> None:
    """Clients that leave at random times, during loads, evictions and a full queue."""
    import random

    here = parts(
        tmp_path,
        max_resident=2,
        limits={"max_concurrent": 4, "max_waiting": 8, "queue_wait_seconds": 0.05},
    )
    for number, name in enumerate(("a", "b", "c")):
        here.publish(name, number, live=True)
    here.server.load_seconds = 0.004
    here.server.piece_seconds = 0.003
    dice = random.Random(3)

    async def one(model: str, stream: bool, seconds: float) -> Got:
        leave = asyncio.Event()
        job = asyncio.create_task(chat(here.layer, model, stream=stream, leave=leave))
        await asyncio.wait({job}, timeout=seconds)
        leave.set()
        return await job

    async def scenario() -> list[int]:
        jobs = []
        for _ in range(600):
            seconds = dice.choice([0.0, 0.002, 0.01, 0.05, 5.0])
            model, stream = dice.choice("abc"), dice.random() < 0.5
            jobs.append(asyncio.create_task(one(model, stream, seconds)))
            await asyncio.sleep(dice.choice([0, 0, 0.001, 0.005]))
        statuses = [got.status for got in await asyncio.gather(*jobs)]
        await settle(here)
        # Loads continue and end without the client that asked for them.
        deadline = time.monotonic() + 5
        while len(asyncio.all_tasks()) > 1 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1
        return statuses

    statuses = asyncio.run(scenario())
    assert set(statuses) <= {0, 200, 429} and statuses.count(200) > 50 and statuses.count(0) > 50
    assert here.server.torn == [] and here.server.most <= 2


def test_a_server_that_raises_is_told_as_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = made(tmp_path)
    assert asyncio.run(chat(here.layer, "qa")).status == 200

    async def broken(*_: Any) -> None:
        raise RuntimeError("engine dead")

    monkeypatch.setattr(FakeVllm, "__call__", broken)
    got = asyncio.run(chat(here.layer, "qa"))
    assert got.status == 500 and "engine dead" not in got.body.decode()
    assert idle(here)
    assert asyncio.run(ask(here.layer, "GET", "/ready")).status == 503


def test_the_gate_counts_who_is_inside_and_who_waits() -> None:
    async def scenario() -> None:
        gate = Gate(Limits(max_concurrent=2, max_waiting=1, queue_wait_seconds=60))
        assert (gate.inside, gate.waiting, gate.free) == (0, 0, True)
        await gate.enter()
        assert (gate.inside, gate.free) == (1, True)
        await gate.enter()
        assert (gate.inside, gate.free) == (2, False)
        waits = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        assert (gate.inside, gate.waiting) == (2, 1)
        with pytest.raises(
            Refused, match="the server is busy with 2 requests, and the queue is full"
        ):
            await gate.enter()
        assert (gate.inside, gate.waiting) == (2, 1)
        gate.leave()
        await waits
        assert (gate.inside, gate.waiting, gate.free) == (2, 0, False)
        gate.leave()
        gate.leave()
        assert (gate.inside, gate.waiting, gate.free) == (0, 0, True)

    asyncio.run(scenario())


def test_whoever_waited_in_vain_or_left_is_not_inside() -> None:
    async def scenario() -> None:
        gate = Gate(Limits(max_concurrent=1, max_waiting=2, queue_wait_seconds=0.001))
        await gate.enter()
        with pytest.raises(Refused, match="the queue had no free place in time") as caught:
            await gate.enter()
        assert (caught.value.status, caught.value.code) == (429, "server_busy")
        assert (gate.inside, gate.waiting) == (1, 0)
        leaves = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        assert (gate.inside, gate.waiting) == (1, 0)
        gate.leave()
        assert gate.free
        await gate.enter()

    asyncio.run(scenario())


@pytest.mark.parametrize(("patience", "told"), [(0.5, b"1"), (7, b"7"), (60, b"10")])
def test_to_come_back_makes_sense_after_ten_seconds_at_the_latest(
    patience: float, told: bytes
) -> None:
    async def scenario() -> None:
        gate = Gate(Limits(max_concurrent=1, max_waiting=0, queue_wait_seconds=patience))
        await gate.enter()
        with pytest.raises(Refused) as caught:
            await gate.enter()
        assert caught.value.headers == [(b"retry-after", told)]

    asyncio.run(scenario())
