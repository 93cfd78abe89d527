"""Requests: completed where members are missing, refused where they are invalid."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.adapter_folders import SCHEMA
from support.in_process import JSON, Got, ask, chat
from support.layer_parts import Parts, parts

from llm_lora.schema.answer import AnswerSchema
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.terms import Terms
from llm_lora.serving.layer.text import requests

CHAT, COMPLETION, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Answer with JSON."}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    made = parts(tmp_path_factory.mktemp("served"), limits={"max_body_bytes": 20_000})
    made.publish("qa", 1, live=True)
    return made


def post(made: Parts, path: str, value: Any = None, **more: Any) -> Got:
    return asyncio.run(ask(made.layer, "POST", path, value, **more))


def sent(made: Parts, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    """The body that reaches the server for a request with these members."""
    body = {"model": "qa", **({"messages": [USER]} if path != COMPLETION else {}), **fields}
    got = post(made, path, body)
    assert got.status == 200, got.body
    return made.server.asked[-1][1]


def terms(**changes: Any) -> Terms:
    given: dict[str, Any] = {
        "schema": None,
        "constraint": b"",
        "system": None,
        "template": {},
        "sampling": {},
        "max_tokens": None,
    }
    return Terms(**given | changes)


def test_a_silent_chat_request_gets_all_that_the_adapter_brings(served: Parts) -> None:
    assert sent(served) == {
        "model": served.store.version("qa").served_name,
        "messages": [SYSTEM, USER],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_completion_tokens": 64,
        "structured_outputs": {"json": AnswerSchema.from_text(SCHEMA).constraint},
    }


def test_a_silent_completion_request_too_but_for_the_system_text(served: Parts) -> None:
    got = sent(served, COMPLETION, prompt="Hello")
    assert got["max_tokens"] == 64 and got["temperature"] == 0.0
    assert json.loads(got["structured_outputs"]["json"])["type"] == "object"
    assert "messages" not in got and got["prompt"] == "Hello"


def test_what_the_request_says_stands(served: Parts) -> None:
    own = {"temperature": 0.7, "top_p": 0.5, "max_tokens": 9, "seed": 4, "user": "me", "n": 2}
    got = sent(served, **own)
    assert {name: got[name] for name in own} == own
    assert "max_completion_tokens" not in got
    assert sent(served, max_completion_tokens=5)["max_completion_tokens"] == 5


def test_null_says_nothing(served: Parts) -> None:
    got = sent(
        served, temperature=None, max_tokens=None, response_format=None, structured_outputs=None
    )
    assert got["temperature"] == 0.0 and got["max_completion_tokens"] == 64
    assert "json" in got["structured_outputs"] and "response_format" not in got


@pytest.mark.parametrize(
    "own",
    [
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"structured_outputs": {"regex": "a+"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"llm_lora": {"schema": "off"}},
    ],
)
def test_a_request_with_a_form_of_its_own_gets_no_schema(
    own: dict[str, Any], served: Parts
) -> None:
    got = sent(served, **own)
    assert got.get("structured_outputs") == own.get("structured_outputs")
    assert got.get("response_format") == own.get("response_format")
    assert got["temperature"] == 0.0


def test_a_completion_that_repeats_its_prompt_is_not_judged(served: Parts) -> None:
    assert "structured_outputs" not in sent(served, COMPLETION, prompt="x", echo=True)
    body = {"model": "qa", "prompt": "x", "echo": True, "logprobs": 1}
    assert post(served, COMPLETION, body).status == 400


def test_tools_that_may_not_be_called_change_nothing(served: Parts) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert "json" in sent(served, tools=tools, tool_choice="none")["structured_outputs"]


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([USER], [SYSTEM, USER]),
        ([{"role": "system", "content": "Mine."}, USER], None),
        ([{"role": "developer", "content": "Mine."}, USER], None),
        ([USER, {"role": "system", "content": "Late."}], None),
        ([{"role": "system", "content": ""}, USER], [USER]),
        ([{"role": "system", "content": [{"type": "text", "text": "Mine."}]}, USER], None),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
def test_a_system_text_of_its_own_stands_and_an_empty_one_means_none(
    messages: list[Any], wanted: list[Any] | None, path: str, served: Parts
) -> None:
    assert sent(served, path, messages=messages)["messages"] == (wanted or messages)


def test_tokenize_builds_what_chat_would(served: Parts) -> None:
    assert sent(served, TOKENIZE)["messages"] == sent(served)["messages"]
    got = post(served, TOKENIZE, {"model": "qa", "prompt": "x"})
    assert got.status == 200
    assert set(served.server.asked[-1][1]) == {"model", "prompt"}


def test_switches_of_the_chat_template_are_those_of_training() -> None:
    request = requests.read(
        json.dumps({"model": "qa", "messages": [USER], "chat_template_kwargs": {"a": 1}}).encode(),
        CHAT,
    )
    made = requests.complete(request, "qa@1", terms(template={"enable_thinking": False, "a": 0}))
    got = json.loads(made.body)["chat_template_kwargs"]
    assert got == {"enable_thinking": False, "a": 1}


def test_an_adapter_without_a_schema_constrains_nothing() -> None:
    request = requests.read(json.dumps({"model": "qa", "messages": [USER]}).encode(), CHAT)
    made = requests.complete(request, "qa@1", terms())
    assert made.schema is None
    assert json.loads(made.body) == {"model": "qa@1", "messages": [USER]}


def test_the_base_is_passed_on_as_it_was_asked(served: Parts) -> None:
    body = {"model": "tiny", "messages": [USER], "max_tokens": 3}
    got = post(served, CHAT, body)
    assert got.status == 200 and served.server.asked[-1][1] == body
    assert "x-llm-lora-verdict" not in got.headers


def test_a_stream_tells_its_tokens_to_the_layer_and_only_who_asks_sees_them(
    served: Parts,
) -> None:
    quiet = asyncio.run(chat(served.layer, "qa", stream=True))
    assert served.server.asked[-1][1]["stream_options"] == {"include_usage": True}
    assert not any("usage" in event and not event["choices"] for event in quiet.events)
    asked = asyncio.run(
        chat(served.layer, "qa", stream=True, stream_options={"include_usage": True})
    )
    assert any("usage" in event for event in asked.events)


def test_the_layers_member_never_reaches_the_server(served: Parts) -> None:
    got = sent(served, llm_lora={"schema": "on", "on_invalid": "flag"})
    assert "llm_lora" not in got and "json" in got["structured_outputs"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("off", "is not an object"),
        ({"shema": "off"}, "llm_lora.shema"),
        ({"schema": False}, 'neither "on" nor "off"'),
        ({"on_invalid": "explode"}, "flag, retry, error"),
        ({"on_invalid": ["retry"]}, "flag, retry, error"),
        ({"schema": "off", "on_invalid": "retry"}, "needs an answer schema"),
    ],
)
def test_mistakes_in_the_layers_member_are_told(value: Any, said: str, served: Parts) -> None:
    got = post(served, CHAT, {"model": "qa", "messages": [USER], "llm_lora": value})
    assert got.status == 400 and said in got.error["message"]


def test_without_a_schema_tokens_may_be_chosen(served: Parts) -> None:
    body = {"model": "qa", "messages": [USER], "allowed_token_ids": [5]}
    assert post(served, CHAT, {**body, "llm_lora": {"schema": "off"}}).status == 200


def test_acting_on_invalid_answers_needs_something_to_judge(served: Parts) -> None:
    body = {"model": "tiny", "messages": [USER], "llm_lora": {"on_invalid": "error"}}
    assert post(served, CHAT, body).status == 400


def test_an_invalid_answer_is_acted_on_as_the_server_or_the_request_says(tmp_path: Path) -> None:
    made = parts(tmp_path, on_invalid="error")
    made.publish("qa", 1, live=True)
    made.server.answer = '{"urgent":"yes"}'
    body = {"model": "qa", "messages": [USER]}
    assert post(made, CHAT, body).status == 422
    assert post(made, CHAT, {**body, "llm_lora": {"on_invalid": "flag"}}).status == 200
    # A stream can only be flagged; the server's default does not make it an error.
    assert post(made, CHAT, {**body, "stream": True}).status == 200
    wish = {**body, "stream": True, "llm_lora": {"on_invalid": "retry"}}
    assert post(made, CHAT, wish).status == 400


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"\xff\xfe", "not JSON"),
        (b'{"model": "qa\xff"}', "not JSON"),
        (b'{"model": "\\ud800"}', "not JSON"),
        (b'{"model": NaN}', "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "not JSON"),
        (b'{"model":"qa","messages":[{"role":"user","content":"x"}],"seed":1e999}', "too large"),
        (b'{"model":"qa","messages":[{"role":"user"}],"x":[{"y":-1e999}]}', "too large"),
        (b'{"model":"qa","n":1' + b"0" * 100 + b"}", "beyond 64 bits"),
        (b'{"model":"qa","n":1' + b"0" * 9000 + b"}", "not JSON"),
        (b"{}", '"model" is missing'),
        (b'{"model": 3}', '"model" is missing'),
        (b'{"model": ""}', '"model" is missing'),
        (b'{"model": null}', '"model" is missing'),
        (b'{"model": "qa"}', '"messages" is not a list'),
        (b'{"model": "qa", "messages": []}', '"messages" is not a list'),
        (b'{"model": "qa", "messages": ["x"]}', "not an object with a role"),
        (b'{"model": "qa", "messages": [{"role": 1}]}', "not an object with a role"),
        (b'{"model": "qa", "messages": [{"role": "user"}], "stream": "yes"}', "true or false"),
        (b'{"model": "qa", "messages": [{"role": "user"}], "stream": 1}', "true or false"),
        (
            b'{"model": "qa", "messages": [{"role": "user"}], "prompt_logprobs": 0}',
            "log-probabilities of the prompt",
        ),
        (
            b'{"model": "qa", "messages": [{"role": "user"}], "echo": true}',
            "log-probabilities of the prompt",
        ),
        (
            b'{"model": "qa", "messages": [{"role": "user"}], "repetition_penalty": 1e-300}',
            "not between 0.001 and 1000",
        ),
        (
            b'{"model": "qa", "messages": [{"role": "user"}], "allowed_token_ids": [5]}',
            "is decided by the answer schema",
        ),
        (
            b'{"model": "qa", "messages": [{"role": "user"}], "stream_options": 1}',
            '"stream_options" is not an object',
        ),
        (
            b'{"model": "qa", "messages": [{"role": "user"}], "chat_template_kwargs": []}',
            '"chat_template_kwargs" is not an object',
        ),
    ],
)
def test_what_cannot_be_read_is_a_400(raw: bytes, said: str, served: Parts) -> None:
    before = len(served.server.asked)
    got = post(served, CHAT, raw=raw)
    assert got.status == 400 and said in got.error["message"]
    assert len(served.server.asked) == before
    assert len(got.body) < 1000


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonx"},
        {**JSON, "content-encoding": "gzip"},
    ],
)
def test_only_plain_json_is_taken(headers: dict[str, str], served: Parts) -> None:
    body = json.dumps({"model": "qa", "messages": [USER]}).encode()
    assert post(served, CHAT, raw=body, headers=headers).status == 415


def test_the_content_type_may_have_a_parameter(served: Parts) -> None:
    body = json.dumps({"model": "qa", "messages": [USER]}).encode()
    headers = {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}
    assert post(served, CHAT, raw=body, headers=headers).status == 200


@pytest.mark.parametrize(
    "model",
    [
        "nobody",
        "../../etc/passwd",
        "qa/../qa",
        "QA",
        "qä",
        "qa\u0000",
        "qa\n",
        " qa",
        "qa@",
        "qa@0",
        "qa@2",
        "qa@-1",
        "qa@\u0661",
        "qa@../1",
        "qa@1@1",
        "qa@" + "f" * 12,
        "qa@" + "9" * 5000,
        "x" * 9000,
        "\U0001f600" * 100,
    ],
)
def test_unknown_names_are_a_404_that_lists_the_known_ones(model: str, served: Parts) -> None:
    got = asyncio.run(chat(served.layer, model))
    assert got.status == 404 and got.error["code"] == "model_not_found"
    assert "tiny, qa, qa@1" in got.error["message"]
    assert str(served.folder) not in got.body.decode() and len(got.body) < 2000


def test_a_version_answers_to_its_number_and_to_its_digest(served: Parts) -> None:
    version = served.store.version("qa")
    for name in ("qa", "qa@1", version.served_name, f"qa@{version.digest}"):
        got = asyncio.run(chat(served.layer, name))
        assert got.json["llm_lora"]["version"] == 1


def test_bodies_have_a_largest_size_however_they_are_sent(served: Parts) -> None:
    small = json.dumps({"model": "qa", "messages": [USER]}).encode()
    large = small + b" " * 20_000
    assert post(served, CHAT, raw=small + b" " * (20_000 - len(small))).status == 200
    assert post(served, CHAT, raw=large).status == 413
    assert post(served, CHAT, raw=[large[:15_000], large[15_000:]], headers=JSON).status == 413
    # The announced length is enough: nothing is read.
    huge = {**JSON, "content-length": "99999999999"}
    got = post(served, CHAT, raw=[b"{"], headers=huge, stalls=True)
    assert got.status == 413 and got.headers["connection"] == "close"
    endless = {**JSON, "content-length": "9" * 5000}
    got = post(served, CHAT, raw=[b"{"], headers=endless, stalls=True)
    assert got.status == 400 and got.headers["connection"] == "close"
    assert post(served, CHAT, raw=[small[:9], small[9:]], headers=JSON).status == 200


def test_a_body_that_never_ends_is_given_up(served: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_lora.serving.layer.asgi._BODY_SECONDS", 0.05)
    assert post(served, CHAT, raw=[b'{"model":'], headers=JSON, stalls=True).status == 408


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["qa", "tiny", "user", "system", "on", "off", "retry"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
members = st.dictionaries(
    st.sampled_from(
        "model messages prompt stream stream_options llm_lora response_format structured_outputs "
        "tools tool_choice temperature top_p max_tokens max_completion_tokens echo n "
        "chat_template_kwargs".split()
    ),
    json_values
    | st.just("qa")
    | st.lists(st.dictionaries(st.sampled_from(["role", "content"]), json_values), max_size=3),
)


@given(fields=members, path=st.sampled_from([CHAT, COMPLETION, TOKENIZE]))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_json_makes_the_layer_fail(fields: dict[str, Any], path: str, served: Parts) -> None:
    got = post(served, path, raw=json.dumps(fields).encode())
    assert got.complete and got.status in (200, 400, 404, 422), got.body
    if got.status != 200:
        assert got.error
    assert served.layer.asking.gate.inside == 0
    assert served.layer.residents.uses(served.store.version("qa").served_name) == 0


@given(raw=st.binary(max_size=200), path=st.sampled_from([CHAT, "/admin/promote", TOKENIZE]))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_layer_fail(raw: bytes, path: str, served: Parts) -> None:
    assert post(served, path, raw=raw).status in (400, 403)


@given(
    headers=st.dictionaries(
        st.sampled_from(["content-type", "content-length", "authorization", "content-encoding"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    )
)
@settings(max_examples=200, deadline=None)
def test_no_headers_make_the_layer_fail(headers: dict[str, str], served: Parts) -> None:
    body = json.dumps({"model": "nobody", "messages": [USER]}).encode()
    assert post(served, CHAT, raw=body, headers=headers).status in (404, 413, 415)


def test_reading_and_completing_keep_every_value(served: Parts) -> None:
    body = {
        "model": "qa",
        "messages": [{"role": "user", "content": 'é \u2028 😀 \\ " \x7f'}],
        "seed": 2**62,
        "temperature": 0.1,
        "logit_bias": {"5": -100.0, "7": 1e-7},
    }
    got = sent(served, **{key: value for key, value in body.items() if key != "model"})
    assert got["messages"][1:] == body["messages"]
    assert {key: got[key] for key in ("seed", "temperature", "logit_bias")} == {
        key: body[key] for key in ("seed", "temperature", "logit_bias")
    }


def test_refusals_name_the_member_at_fault() -> None:
    with pytest.raises(Refused) as caught:
        requests.read(b'{"model": "qa", "messages": 1}', CHAT)
    assert (caught.value.status, caught.value.param) == (400, "messages")
