"""Promotion and rollback under load: no request lost, mixed or late."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.in_process import Got, chat
from support.layer_parts import Parts, parts
from test_layer_residents import settle

from llm_lora.store.store import Version

MOVES = 20


@dataclass
class Asked:
    """A request: times of start and end, and its answer."""

    began: float
    ended: float
    got: Got


def said_by(got: Got) -> set[str]:
    """Every version whose mark is in the answer."""
    assert got.status == 200 and got.complete, (got.status, got.body)
    marks = {json.loads(got.text)["by"]}
    if got.body.startswith(b"data: "):
        marks |= {event["model"] for event in got.events}
        assert got.body.endswith(b"data: [DONE]\n\n")
    else:
        marks.add(got.json["model"])
    return marks


def allowed(moves: list[tuple[float, float, str]], asked: Asked) -> set[str]:
    """The versions that may answer: live at arrival, or made live before the end."""
    # A move takes time around the replacement: during it, either version may answer.
    settled = [name for _, end, name in moves if end <= asked.began]
    later = {name for start, end, name in moves if end > asked.began and start <= asked.ended}
    return {settled[-1]} | later


@pytest.mark.parametrize("places", [1, 2, 4])
def test_no_request_is_lost_or_mixed_while_the_alias_moves(places: int, tmp_path: Path) -> None:
    made = parts(tmp_path, max_resident=places, linger_seconds=0.02)
    versions = [made.publish("qa", 1, live=True), made.publish("qa", 2), made.publish("qa", 3)]
    made.server.load_seconds = 0.005
    made.server.piece_seconds = 0.002
    now = time.monotonic()
    moves = [(now, now, versions[0].served_name)]
    asked: list[Asked] = []
    dice = random.Random(places)

    async def connection(until: asyncio.Event) -> None:
        while not until.is_set():
            began = time.monotonic()
            got = await chat(made.layer, "qa", stream=dice.random() < 0.5)
            asked.append(Asked(began, time.monotonic(), got))

    async def upkeep(until: asyncio.Event) -> None:
        while not until.is_set():
            await made.layer.upkeep.once()
            await asyncio.sleep(0.01)

    def move(turn: int) -> None:
        # As another process would, not through the layer.
        start = time.monotonic()
        if turn % 4 == 3:
            alias = made.store.rollback("qa", by="test")
        else:
            alias = made.store.promote("qa", 1 + (turn + 1) % 3, by="test")
        live = next(one for one in versions if one.number == alias.live)
        moves.append((start, time.monotonic(), live.served_name))

    async def scenario() -> None:
        until = asyncio.Event()
        work = [asyncio.create_task(connection(until)) for _ in range(8)]
        work.append(asyncio.create_task(upkeep(until)))
        for turn in range(MOVES):
            await asyncio.sleep(0.06)
            await asyncio.to_thread(move, turn)
        await asyncio.sleep(0.06)
        until.set()
        await asyncio.gather(*work)
        await settle(made)

    asyncio.run(scenario())
    assert len(asked) >= 200 and len(moves) == MOVES + 1
    for one in asked:
        marks = said_by(one.got)
        assert len(marks) == 1, "an answer from two versions"
        assert marks <= allowed(moves, one), "an answer from a version promoted away before"
    assert {mark for one in asked for mark in said_by(one.got)} == {v.served_name for v in versions}
    assert made.server.torn == [] and made.server.most <= places


def test_requests_see_a_moved_alias_at_once(tmp_path: Path) -> None:
    made = parts(tmp_path)
    versions = [made.publish("qa", seed, live=seed == 1) for seed in (1, 2)]

    async def scenario() -> None:
        for turn in range(30):
            wanted = versions[turn % 2]
            made.store.promote("qa", wanted.number, by="test")
            assert said_by(await chat(made.layer, "qa")) == {wanted.served_name}

    asyncio.run(scenario())


def test_a_request_that_waits_for_its_turn_stays_with_its_version(tmp_path: Path) -> None:
    made = parts(tmp_path, limits={"max_concurrent": 1})
    old, new = made.publish("qa", 1, live=True), made.publish("qa", 2)
    made.server.piece_seconds = 0.02

    async def scenario() -> list[set[str]]:
        jobs = [asyncio.create_task(chat(made.layer, "qa")) for _ in range(3)]
        await asyncio.sleep(0.01)
        made.store.promote("qa", new.number, by="test")
        jobs.append(asyncio.create_task(chat(made.layer, "qa")))
        return [said_by(got) for got in await asyncio.gather(*jobs)]

    assert asyncio.run(scenario()) == [{old.served_name}] * 3 + [{new.served_name}]


def other_version(made: Parts, seed: int) -> Version:
    return made.publish("other", seed, live=True)


def test_moving_one_alias_leaves_others_alone(tmp_path: Path) -> None:
    made = parts(tmp_path, max_resident=2)
    other = other_version(made, 9)
    made.publish("qa", 1, live=True)
    made.publish("qa", 2)

    async def scenario() -> None:
        await chat(made.layer, "other")
        for turn in range(10):
            made.store.promote("qa", 1 + turn % 2, by="test")
            assert (await chat(made.layer, "qa")).status == 200
            assert said_by(await chat(made.layer, "other")) == {other.served_name}

    asyncio.run(scenario())
    assert made.server.loads.count(other.served_name) == 1
