"""Administration over HTTP: aliases move only to versions that are loaded and proven."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from support.adapter_folders import report_of, write_adapter
from support.in_process import Got, ask, chat
from support.layer_parts import Parts, parts
from test_layer_residents import damage

from llm_lora.store import aliases

KEY = "admin-key-0123456789"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setenv("LLM_LORA_ADMIN_KEYS", KEY)
    found = parts(tmp_path)
    found.publish("qa", 1, live=True)
    found.publish("qa", 2)
    return found


def post(made: Parts, path: str, value: Any = None, **more: Any) -> Got:
    return asyncio.run(ask(made.layer, "POST", f"/admin/{path}", value, key=KEY, **more))


def history(made: Parts, query: str) -> Got:
    return asyncio.run(ask(made.layer, "GET", "/admin/history", key=KEY, query=query))


def test_a_promotion_loads_first_and_is_on_record(made: Parts) -> None:
    second = made.store.version("qa", 2)
    got = post(made, "promote", {"name": "qa", "version": 2, "why": "better"})
    assert got.status == 200
    assert (got.json["live"], got.json["previous"]) == (2, 1)
    assert made.server.loads == [second.served_name]
    assert asyncio.run(chat(made.layer, "qa")).json["llm_lora"]["version"] == 2
    assert made.server.loads == [second.served_name]
    last = history(made, "name=qa").json["data"][-1]
    assert (last["event"], last["number"], last["why"]) == ("promote", 2, "better")
    assert got.json["changed"] == last["at"]
    assert last["by"].startswith("admin key ") and KEY not in str(last)


def test_rollback_goes_back_and_forth(made: Parts) -> None:
    assert post(made, "rollback", {"name": "qa"}).status == 409
    post(made, "promote", {"name": "qa", "version": 2})
    assert post(made, "rollback", {"name": "qa"}).json["live"] == 1
    assert post(made, "rollback", {"name": "qa"}).json["live"] == 2


def test_a_canary_begins_and_ends(made: Parts) -> None:
    got = post(made, "canary", {"name": "qa", "version": 2, "share": 0.1})
    assert got.json["canary"] == {"number": 2, "share": 0.1}
    assert made.store.version("qa", 2).served_name in made.server.adapters
    got = post(made, "canary", {"name": "qa", "version": 2, "share": 0})
    assert got.status == 200 and got.json["canary"] is None


def test_loading_ahead(made: Parts) -> None:
    assert post(made, "load", {"name": "qa", "version": 2}).json == {"name": "qa", "loaded": 2}
    assert list(made.server.adapters) == [made.store.version("qa", 2).served_name]
    assert made.store.alias("qa").live == 1


def test_failed_gates_need_force(made: Parts) -> None:
    folder = write_adapter(made.folder / "bad", seed=5)
    report = report_of(folder, passed=False)
    version = made.store.publish(folder, "qa", report=report, by="test")
    body = {"name": "qa", "version": version.number}
    got = post(made, "promote", body)
    assert got.status == 409 and "gate field_f1 failed" in got.error["message"]
    assert made.store.alias("qa").live == 1
    assert post(made, "promote", {**body, "force": True}).json["live"] == version.number


def test_a_version_that_does_nothing_is_not_promoted_unless_forced(made: Parts) -> None:
    made.server.dead.add(made.store.version("qa", 2).served_name)
    got = post(made, "promote", {"name": "qa", "version": 2})
    assert got.status == 422 and "qa@2 was refused" in got.error["message"]
    assert made.store.alias("qa").live == 1
    assert 2 in made.store.alias("qa").refused

    async def scenario() -> tuple[Got, Got]:
        body = {"name": "qa", "version": 2, "force": True}
        forced = await ask(made.layer, "POST", "/admin/promote", body, key=KEY)
        return forced, await chat(made.layer, "qa")

    forced, answered = asyncio.run(scenario())
    assert forced.json["live"] == 2 and answered.json["llm_lora"]["version"] == 2


def test_a_damaged_version_is_not_promoted(made: Parts) -> None:
    damage(made.store.version("qa", 2))
    assert post(made, "promote", {"name": "qa", "version": 2}).status == 503
    assert made.store.alias("qa").live == 1


def test_a_server_that_does_not_load_keeps_the_alias_where_it_is(made: Parts) -> None:
    made.server.failing_loads = 1
    assert post(made, "promote", {"name": "qa", "version": 2}).status == 503
    assert made.store.alias("qa").live == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("promote", {}, 400, "name"),
        ("promote", {"name": "qa"}, 400, "version"),
        ("promote", {"name": "qa", "version": "2"}, 400, "version"),
        ("promote", {"name": "qa", "version": True}, 400, "version"),
        ("promote", {"name": "qa", "version": 0}, 400, "version"),
        ("promote", {"name": "qa", "version": 10**30}, 400, "version"),
        ("promote", {"name": "qa", "version": 2, "force": "yes"}, 400, "force"),
        ("promote", {"name": "qa", "version": 2, "path": "/etc"}, 400, "path"),
        ("promote", {"name": "qa", "version": 3}, 404, "choose one of 1, 2"),
        ("promote", {"name": "nobody", "version": 1}, 404, "unknown adapter"),
        ("promote", {"name": "../qa", "version": 1}, 400, "not a valid adapter name"),
        ("promote", {"name": "qa", "version": 2, "why": 7}, 400, "why"),
        ("promote", {"name": "qa", "version": 2, "why": "x" * 1001}, 409, "1,001 characters"),
        ("promote", [], 400, "not a JSON object"),
        ("rollback", {"name": 3}, 400, "name"),
        ("rollback", {"name": "nobody"}, 404, "unknown adapter"),
        ("canary", {"name": "qa", "version": 2}, 400, "share"),
        ("canary", {"name": "qa", "version": 2, "share": "10%"}, 400, "share"),
        ("canary", {"name": "qa", "version": 2, "share": 1.5}, 400, "share"),
        ("canary", {"name": "qa", "version": 2, "share": 1}, 409, "a share of 1"),
        ("canary", {"name": "qa", "version": 2, "share": 10**400}, 400, "share"),
        ("canary", {"name": "qa", "version": 1, "share": 0.5}, 409, "already live"),
        ("load", {"name": "qa", "version": 9}, 404, "choose one of 1, 2"),
    ],
)
def test_mistakes_are_told_and_move_nothing(
    path: str, body: Any, status: int, said: str, made: Parts
) -> None:
    before = made.store.alias("qa")
    got = post(made, path, body)
    assert (got.status, said in got.error["message"]) == (status, True), got.body
    assert made.store.alias("qa") == before


def test_history_needs_a_name(made: Parts) -> None:
    assert history(made, "").status == 400
    assert history(made, "name=qa&name=qb").status == 400
    assert history(made, "name=../../etc").status == 404
    assert history(made, "name=%ff%00").status == 404
    nobody = history(made, "name=nobody")
    assert nobody.status == 404 and "unknown adapter; choose one of qa" in str(nobody.error)
    assert [event["event"] for event in history(made, "name=qa").json["data"]] == [
        "publish",
        "promote",
        "publish",
    ]


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EROFS, 503)]
)
def test_a_store_that_cannot_be_written_is_the_servers_trouble(
    number: int, status: int, made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(aliases, "write", fail)
    got = post(made, "promote", {"name": "qa", "version": 2})
    assert (got.status, got.error["code"]) == (status, "store_failed")
    assert made.store.alias("qa").live == 1


def test_promotion_under_load_makes_nobody_wait_for_a_load(made: Parts) -> None:

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        await chat(made.layer, "qa")
        made.server.load_seconds = 0.2
        slowest = []
        moving = asyncio.create_task(
            ask(made.layer, "POST", "/admin/promote", {"name": "qa", "version": 2}, key=KEY)
        )
        while not moving.done():
            began = loop.time()
            assert (await chat(made.layer, "qa")).status == 200
            slowest.append(loop.time() - began)
        assert (await moving).status == 200
        began = loop.time()
        got = await chat(made.layer, "qa")
        assert got.json["llm_lora"]["version"] == 2
        return [*slowest, loop.time() - began]

    assert max(asyncio.run(scenario())) < 0.15
