"""Captions over HTTP: what is sent, what is made of the answer, what becomes of trouble."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from support.drawn import scene
from support.local_server import Application, said, serving

from llm_lora.errors import UserError
from llm_lora.label import by_server as describing
from llm_lora.label.by_server import ASK, KEY, Describer, Endpoint
from llm_lora.label.labelling import Failure, Label

PICTURES = [scene(seed, (900, 300)) for seed in range(3)]
SECRET = "sk-very-secret-7"


def app(*answers: object, path: str = "/v1/chat/completions", pause: float = 0.0) -> Application:
    """Gives these answers one after the other, and the last one from then on."""
    left = list(answers)
    return Application(
        {("POST", path): lambda _: left.pop(0) if len(left) > 1 else left[0]}, pause=pause
    )


def describer(url: str, waits: list[float] | None = None, **more: Any) -> Describer:
    keep = waits if waits is not None else []
    return Describer(Endpoint(url, "m", **more), sleep=keep.append)


def test_pictures_travel_as_small_data_urls_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    here = app(said(' Caption: "A tower, at dusk." '))
    with serving(here) as url:
        assert describer(f"{url}/v1")(PICTURES[:1]) == [Label("A tower, at dusk")]
        assert describer(url, ask="Say it.")(PICTURES[:1]) == [Label("A tower, at dusk")]
    (path, body, headers), (other_path, other, _) = here.asked
    assert path == other_path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert body["model"] == "m" and body["temperature"] == 0 and body["max_tokens"] == 200
    text, picture = body["messages"][0]["content"]
    assert text == {"type": "text", "text": ASK}
    assert other["messages"][0]["content"][0]["text"] == "Say it."
    kind, _, data = picture["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(data))) as sent:
        assert sent.size == (768, 256)


def test_no_key_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    here = app(said("x"))
    with serving(here) as url:
        describer(url)(PICTURES[:1])
    assert "authorization" not in here.asked[0][2]


def test_answers_come_in_order_several_at_a_time() -> None:
    here = Application({}, pause=0.2)

    def by_size(body: Any) -> dict[str, Any]:
        url = body["messages"][0]["content"][1]["image_url"]["url"]
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
            return said(f"width {image.width}")

    here.routes["POST", "/v1/chat/completions"] = by_size
    with serving(here) as url:
        found = describer(url, jobs=3)([scene(1, (100 + i, 50)) for i in range(6)])
    assert found == [Label(f"width {100 + i}") for i in range(6)]
    assert here.most == 3


def test_passing_trouble_is_waited_out() -> None:
    waits: list[float] = []
    busy = (429, {"error": {"message": "slow down"}})
    with serving(app(busy, (503, {}), (500, {}), said("x"))) as url:
        assert describer(url, waits, pause=0.5)(PICTURES[:1]) == [Label("x")]
    assert waits == [7.0, 1.0, 2.0], "the server's own wish first, then doubled"


def test_lasting_trouble_stops_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with serving(app((500, {"error": {"message": f"bad key {SECRET}"}}))) as url:
        with pytest.raises(UserError) as error:
            describer(url)(PICTURES)
        assert error.value.problems[0].what == ("the server failed (500): bad key …; tried 5 times")
    with pytest.raises(UserError, match="cannot reach the server"):
        describer(url)(PICTURES[:1])
    late = pytest.raises(UserError, match=r"no answer within 0\.1 s")
    with serving(app(said("x"), pause=1.5)) as url, late:
        describer(url, timeout=0.1)(PICTURES[:1])


@pytest.mark.parametrize(("status", "fix"), [(401, KEY), (403, KEY), (404, "--model"), (402, "")])
def test_a_closed_door_stops_at_once(
    status: int, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    here = app((status, {"error": f"Incorrect API key provided: {SECRET}"}))
    with serving(here) as url, pytest.raises(UserError) as error:
        describer(url)(PICTURES[:1])
    problem = error.value.problems[0]
    assert f"({status})" in problem.what and fix in str(problem.fix)
    assert SECRET not in str(error.value)
    assert len(here.asked) == 1


def test_one_refused_picture_does_not_stop_the_others() -> None:
    refused = (400, {"error": {"message": "I cannot look at this"}})
    with serving(app(said("a"), refused, said(""), said(None), said("b"))) as url:
        found = describer(url, jobs=1)([*PICTURES, *PICTURES[:2]])
    assert found == [
        Label("a"),
        Failure("the server refused it: I cannot look at this"),
        Failure("the model returned no caption"),
        Failure("the model returned no caption"),
        Label("b"),
    ]


def test_options_that_a_model_does_not_take_are_left_out() -> None:
    refused = (400, {"error": {"message": "Unsupported parameter: 'max_tokens'"}})
    here = app(refused, said("x"))
    waits: list[float] = []
    with serving(here) as url:
        labeller = describer(url, waits, jobs=1)
        assert labeller(PICTURES[:2]) == [Label("x"), Label("x")]
    assert not waits
    assert ["max_tokens" in body for _, body, _ in here.asked] == [True, False, False]
    assert all("temperature" in body for _, body, _ in here.asked)


def test_strangers_are_told() -> None:
    strange = pytest.raises(UserError, match="does not come from an OpenAI-compatible server")
    with serving(app({"hello": "world"})) as url, strange:
        describer(url)(PICTURES[:1])
    for address in ("localhost:8000", "ftp://x/v1", "http://"):
        with pytest.raises(UserError, match="not a server address"):
            describer(address)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v2", "/openai/v2/chat/completions"),
    ],
)
def test_addresses_are_taken_as_people_write_them(path: str, asked: str) -> None:
    with serving(app(said("x"), path=asked)) as url:
        assert describer(url + path)(PICTURES[:1]) == [Label("x")]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("A fox.", "A fox"),
        ("<think>it is\na fox</think>\n\nA fox,\n in snow", "A fox, in snow"),
        ('"A fox"', "A fox"),
        ("**Caption:** A fox", "A fox"),
        ("Here is a caption for the picture: a fox", "a fox"),
        ("a fox at 10:30", "a fox at 10:30"),
    ],
)
def test_answers_are_tidied(text: str, caption: str) -> None:
    assert describing.tidy(text) == caption
