"""Requests for pictures: painting, and refusals before any painting."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import picture_adapters
from support.in_process import ask
from support.picture_serving import ROUTE, Held, layer, painted, pixels, run, same

from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.image import requests as picture_requests
from llm_lora.serving.painter import PictureServer
from llm_lora.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# Painting.


def test_pictures_are_those_of_the_painter_alone_and_the_answer_tells_their_origin(
    picture_server: PictureServer, store: Store, tmp_path: Path
) -> None:
    version = picture_adapters.publish(store, tmp_path, "style", seed=1)
    app = layer(picture_server, store)
    got = run(app, model="style", prompt="a red circle", n=2)
    assert same(got, painted("a red circle", ("s", tmp_path / "1"), seeds=(3, 4)))
    told = got.json
    assert [one["seed"] for one in told["data"]] == [3, 4]
    assert told["size"] == "64x64" and told["created"] > 1_700_000_000
    (origin,) = told["llm_lora"]["adapters"]
    assert (origin["name"], origin["version"], origin["weight"]) == ("style", 1, 1.0)
    assert origin["digest"] == version.digest == got.headers["x-llm-lora-digest"]
    assert (got.headers["x-llm-lora-adapter"], got.headers["x-llm-lora-version"]) == ("style", "1")
    assert told["llm_lora"]["guidance"] == 3.0, "its recipe's, as the request leaves it open"
    # No trace of the previous adapter is left in the base.
    bare = run(app, model="tiny", prompt="a red circle")
    assert same(bare, painted("a red circle"))
    assert "x-llm-lora-adapter" not in bare.headers
    assert not same(bare, pixels(got)[:1])


def test_adapters_named_in_prompt_and_body_are_stacked_and_alone(
    picture_server: PictureServer, store: Store, tmp_path: Path
) -> None:
    for number, name in enumerate(("style", "character", "third"), 1):
        picture_adapters.publish(store, tmp_path, name, seed=number)
    app = layer(picture_server, store)
    got = run(
        app,
        model="third",
        prompt="a star, <lora:style:0.7>",
        adapters=[{"name": "character@1", "weight": 0.6}],
        size="72x64",
    )
    wanted = painted(
        "a star, <lora:a:0.7> <lora:b:0.6>",
        ("a", tmp_path / "1"),
        ("b", tmp_path / "2"),
        width=72,
    )
    assert same(got, wanted)
    assert got.json["data"][0]["revised_prompt"] == "a star"
    weights = [(one["name"], one["weight"]) for one in got.json["llm_lora"]["adapters"]]
    assert weights == [("style", 0.7), ("character", 0.6)], "model only lends its settings"
    none = run(app, model="style", prompt="a star <lora:style:0>")
    assert same(none, painted("a star", **picture_adapters.SAMPLING))


def test_a_seed_makes_pictures_equal_and_none_makes_them_differ(
    picture_server: PictureServer, store: Store
) -> None:
    app = layer(picture_server, store)
    first, again, other, free, chance = (
        run(app, model="tiny", prompt="x", **more)
        for more in ({}, {}, {"seed": 4}, {"seed": None}, {"seed": None})
    )
    assert first.json["data"][0]["b64_json"] == again.json["data"][0]["b64_json"]
    assert not same(other, pixels(first))
    assert free.json["data"][0]["seed"] != chance.json["data"][0]["seed"]
    said = free.json["data"][0]["seed"]
    assert same(run(app, model="tiny", prompt="x", seed=said), pixels(free))


def test_promotion_trial_and_rollback_count_from_the_next_request(
    picture_server: PictureServer, store: Store, tmp_path: Path
) -> None:
    picture_adapters.publish(store, tmp_path, "style", seed=1)
    app = layer(picture_server, store)

    def version() -> str:
        return run(app, model="style", prompt="x").headers["x-llm-lora-version"]

    assert version() == "1"
    picture_adapters.publish(store, tmp_path, "style", seed=2, live=False)
    assert version() == "1", "published is not live"
    store.promote("style", 2, by="test")
    assert version() == "2"
    assert same(run(app, model="style@1", prompt="x"), painted("x", ("s", tmp_path / "1")))
    store.canary("style", 1, 0.5, by="test")
    app.catalog._draw = lambda: 0.4
    # One draw per name and request: prompt and `model` refer to the same version.
    told = run(app, model="style", prompt="x <lora:style:0.5>").json["llm_lora"]["adapters"]
    assert [(one["version"], one["weight"]) for one in told] == [(1, 0.5)]
    app.catalog._draw = lambda: 0.6
    assert version() == "2"
    store.rollback("style", by="test")
    assert version() == "1"
    store.retire("style", by="test")
    gone = run(app, model="style", prompt="x")
    assert (gone.status, gone.error["code"]) == (404, "model_not_found")


def test_few_places_are_shared_by_many_adapters(
    picture_server: PictureServer, store: Store, tmp_path: Path
) -> None:
    for number, name in enumerate(("one", "two", "three"), 1):
        picture_adapters.publish(store, tmp_path, name, seed=number)
    app = layer(picture_server, store, max_resident=2)

    async def scenario() -> None:
        for name in ("one", "two", "three", "one"):
            got = await ask(app, "POST", ROUTE, {"model": name, "prompt": "x", "steps": 1})
            assert (got.status, got.headers["x-llm-lora-adapter"]) == (200, name)
            assert len(app.residents.loaded()) <= 2
        names = [{"name": name} for name in ("one", "two", "three")]
        body = {"model": "tiny", "prompt": "x", "adapters": names}
        got = await ask(app, "POST", ROUTE, body)
        assert (got.status, got.error["param"]) == (400, "adapters")

    asyncio.run(scenario())


# Refusals, before anything is painted.


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"model": "style@9"}, 404, "model"),
        ({"model": "../style"}, 404, "model"),
        ({"model": "/etc/passwd"}, 404, "model"),
        ({"model": ""}, 400, "model"),
        ({"model": 3}, 400, "model"),
        ({"model": None}, 400, "model"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": "x" * 10_001}, 400, "prompt"),
        ({"prompt": "<lora:../../secret:1>"}, 404, "prompt"),
        ({"prompt": "<lora:/etc/passwd:1>"}, 404, "prompt"),
        ({"prompt": "<lora:style:high>"}, 400, "prompt"),
        ({"prompt": "<lora:style"}, 400, "prompt"),
        ({"prompt": "<lora:style:1000>"}, 400, "prompt"),
        ({"prompt": "<lora:style:1> <lora:style:2>"}, 400, "prompt"),
        ({"prompt": "<lora:style:1> <lora:style@1:1>"}, 400, "adapters"),
        ({"prompt": "<lora:style:1>", "adapters": [{"name": "style"}]}, 400, "adapters"),
        ({"adapters": [{"name": "tiny"}]}, 400, "adapters"),
        ({"adapters": [{"name": "nobody"}]}, 404, "adapters"),
        ({"adapters": [{"path": "/etc"}]}, 400, "adapters.0.name"),
        ({"adapters": [{"name": "style", "weight": "1"}]}, 400, "adapters.0.weight"),
        ({"adapters": [{"name": "style", "weight": 101}]}, 400, "adapters.0.weight"),
        ({"adapters": "style"}, 400, "adapters"),
        ({"adapters": [{"name": f"a{number}"} for number in range(65)]}, 400, "adapters"),
        ({"prompt": " ".join(f"<lora:a{number}:1>" for number in range(65))}, 400, "prompt"),
        ({"n": 2, "steps": 501}, 400, "steps"),
        ({"n": 0}, 400, "n"),
        ({"n": 11}, 400, "n"),
        ({"n": True}, 400, "n"),
        ({"size": "64"}, 400, "size"),
        ({"size": "63x64"}, 400, "size"),
        ({"size": "0x64"}, 400, "size"),
        ({"size": "-8x64"}, 400, "size"),
        ({"size": "1024x1024"}, 400, "size"),
        ({"size": "99999x8"}, 400, "size"),
        ({"size": "6\uff14x64"}, 400, "size"),
        ({"size": [64, 64]}, 400, "size"),
        ({"seed": -1}, 400, "seed"),
        ({"seed": 2**32}, 400, "seed"),
        ({"seed": 1.5}, 400, "seed"),
        ({"steps": 0}, 400, "steps"),
        ({"steps": 10**30}, 400, "steps"),
        ({"guidance": "7"}, 400, "guidance"),
        ({"guidance": -1}, 400, "guidance"),
        ({"negative_prompt": ["x"]}, 400, "negative_prompt"),
        ({"scheduler": "euler_a"}, 400, "scheduler"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"output_format": "webp"}, 400, "output_format"),
        ({"stream": True}, 400, "stream"),
        ({"background": "transparent"}, 400, "background"),
        ({"lora_path": "/etc"}, 400, "lora_path"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_mistakes_are_told_in_openais_form_and_nothing_is_painted(
    body: dict[str, Any],
    status: int,
    param: str,
    picture_server: PictureServer,
    held: Held,
    one_style: Store,
) -> None:
    got = run(layer(picture_server, one_style), **{"model": "style", "prompt": "x"} | body)
    assert (got.status, got.error["param"]) == (status, param), got.body
    assert held.prompts == []
    assert "/tmp" not in got.error["message"] and "root" not in got.error["message"]


def test_an_adapters_own_steps_count_too(
    picture_server: PictureServer, held: Held, store: Store, tmp_path: Path
) -> None:
    slow = picture_adapters.SAMPLING | {"steps": 200}
    picture_adapters.publish(store, tmp_path, "slow", seed=1, sampling=slow)
    got = run(layer(picture_server, store), model="slow", prompt="x", n=6, steps=None)
    assert (got.status, got.error["param"]) == (400, "steps")
    assert "(200, the adapter's default) times n is more than 1,000" in got.error["message"]
    assert held.prompts == []


def test_bodies_that_are_none_are_refused(picture_server: PictureServer, one_style: Store) -> None:
    async def scenario() -> list[int]:
        app = layer(picture_server, one_style, limits={"max_body_bytes": 1000})
        found = []
        for raw in (b"", b"{", b"[]", b'{"model": "style", "prompt": NaN}', b"\xff\xfe", b"1"):
            found.append((await ask(app, "POST", ROUTE, raw=raw)).status)
        found.append((await ask(app, "POST", ROUTE, raw=b" " * 1001)).status)
        form = {"content-type": "application/x-www-form-urlencoded"}
        found.append((await ask(app, "POST", ROUTE, {"model": "style"}, headers=form)).status)
        return found

    assert asyncio.run(scenario()) == [400] * 6 + [413, 415]


# Arbitrary requests.

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_TAGS = st.from_regex(r"[a<>:]{0,5}(<lora:[a-z./@-]{0,9}(:[0-9.+-]{0,4}){0,3}>?){0,2}[a(),]{0,4}")
_FIELDS = st.sampled_from([*picture_requests._Body.model_fields, "other"])


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(_FIELDS, _VALUES, max_size=4),
    _TAGS | st.text(max_size=20),
    st.text(max_size=9) | st.from_regex(r"\d{1,4}x\d{1,4}", fullmatch=True),
)
def test_any_object_is_read_or_refused(
    fields: dict[str, Any], prompt: str, size: str | None
) -> None:
    body = json.dumps({"model": "style", "prompt": prompt, "size": size} | fields).encode()
    try:
        request = picture_requests.read(body)
        how = picture_requests.settings(request, {}, 64)
    except Refused as refused:
        assert refused.status == 400
        return
    assert how["width"] % 8 == how["height"] % 8 == 0
    assert 0 < how["width"] * how["height"] <= 4 * 64 * 64
    assert 1 <= how["steps"] <= 1000 and 0 <= how["guidance"] <= 100
    assert 1 <= len(picture_requests.seeds(request)) <= 10
    assert all(abs(pick.unet) <= 100 for pick in request.picks or ())
    assert "<lora:" not in request.text


def test_odd_prompts_are_painted(picture_server: PictureServer, one_style: Store) -> None:
    app = layer(picture_server, one_style)
    for prompt in ("", " ", "\0", "😀" * 200, "<3 <b> (((", "<|endoftext|>", "a" * 9_000):
        assert run(app, model="style", prompt=prompt, steps=1).status == 200, prompt
    lone = b'{"model": "style", "prompt": "\\ud800"}'
    assert asyncio.run(ask(app, "POST", ROUTE, raw=lone)).status == 400
