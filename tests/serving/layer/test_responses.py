"""Answers on their way to the client: judged, flagged, refused or tried again, never held up."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import vllm_forms as forms
from support.local_server import serving
from support.vllm_forms import INVALID, SCHEMA, VALID, Server

from llm_lora.serving.layer.asgi import replay
from llm_lora.serving.layer.exchange import Exchange
from llm_lora.serving.layer.text import judging, responses
from llm_lora.serving.layer.text.streaming import Events, Stream

REQUEST = {"model": "medical-qa@0123456789ab", "messages": [], "temperature": 0.0}
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": forms.CHAT,
    "headers": [
        (b"host", b"x"),
        (b"content-length", b"5"),
        (b"accept-encoding", b"gzip"),
        (b"authorization", b"Bearer secret"),
    ],
}


@dataclass
class Client:
    """The client's end: what it got, and whether it has hung up."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self) -> dict[str, Any]:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def stay(self) -> dict[str, Any]:
        return await asyncio.Future()

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        found = [(name.decode(), value.decode()) for name, value in self.messages[0]["headers"]]
        assert len(found) == len(dict(found)), "a header stands there twice"
        return dict(found)

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(server: Any, exchange: Exchange, request: dict[str, Any] = REQUEST) -> Client:
    client = Client()

    async def run() -> None:
        body = json.dumps(request).encode()
        await responses.answer(server, SCOPE, body, exchange, client.receive, client.send)

    asyncio.run(run())
    return client


def data_of(body: bytes) -> list[Any]:
    """The JSON of every event of a stream."""
    return [
        json.loads(event.removeprefix(b"data: "))
        for event in body.split(b"\n\n")
        if event.startswith(b"data: {")
    ]


def reports_of(body: bytes) -> list[dict[str, Any]]:
    return [chunk["llm_lora"] for chunk in data_of(body) if "llm_lora" in chunk]


# ---- whole answers


@pytest.mark.parametrize("answer", [forms.chat_answer(VALID), forms.completion_answer(VALID)])
def test_valid_answer_gains_one_field_and_headers(answer: bytes) -> None:
    exchange = forms.exchange()
    client = ask(Server([answer]), exchange)
    assert client.status == exchange.status == 200
    assert client.headers["x-llm-lora-verdict"] == "valid"
    assert client.headers["x-llm-lora-adapter"] == "medical-qa"
    assert client.headers["x-llm-lora-version"] == "3"
    assert int(client.headers["content-length"]) == len(client.body)
    report = {"adapter": "medical-qa", "version": 3, "verdict": "valid", "reasons": []}
    assert client.json == {**json.loads(answer), "llm_lora": {**report, "finish": "stop"}}
    assert client.body.startswith(answer[:-1]), "the server's own bytes were changed"
    assert (exchange.outcome, exchange.finish_reason) == ("valid", "stop")
    assert (exchange.prompt_tokens, exchange.answer_tokens) == (20, 9)
    assert exchange.answers == (VALID,)


def test_server_gets_the_request_without_keys_and_asked_for_unpacked() -> None:
    server = Server([forms.chat_answer(VALID)])
    ask(server, forms.exchange())
    assert server.asked == [REQUEST]
    names = [name for name, _ in server.scopes[0]["headers"]]
    assert b"authorization" not in names
    assert b"accept-encoding" not in names


@pytest.mark.parametrize(
    ("text", "outcome", "keyword"),
    [
        (INVALID, "invalid", "type"),
        ("Take two a day.", "not_json", "prose"),
        ("", "not_json", "empty"),
        (None, "not_json", "empty"),
    ],
)
def test_flagged_answer_says_why(text: str | None, outcome: str, keyword: str) -> None:
    exchange = forms.exchange()
    client = ask(Server([forms.chat_answer(text)]), exchange)
    assert client.status == 200
    assert client.headers["x-llm-lora-verdict"] == exchange.outcome == outcome
    assert client.json["llm_lora"]["reasons"][0]["keyword"] == keyword
    assert client.json["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("finish", ["length", "repetition", "abort"])
def test_cut_off_answer_names_what_cut_it_off(finish: str) -> None:
    exchange = forms.exchange()
    client = ask(Server([forms.chat_answer(VALID[:12], finish=finish)]), exchange)
    report = client.json["llm_lora"]
    assert (report["verdict"], report["finish"]) == ("truncated", finish)
    assert [reason["keyword"] for reason in report["reasons"]] == [finish]
    assert report["reasons"][0]["message"] == judging.CUT_OFF[finish]


def test_answer_that_is_complete_at_the_limit_is_valid() -> None:
    exchange = forms.exchange()
    ask(Server([forms.chat_answer(VALID, finish="length")]), exchange)
    assert (exchange.outcome, exchange.finish_reason) == ("valid", "length")


def test_of_several_answers_the_worst_counts_and_each_is_told() -> None:
    exchange = forms.exchange()
    client = ask(Server([forms.chat_answer(VALID, "no", INVALID)]), exchange)
    report = client.json["llm_lora"]
    assert exchange.outcome == report["verdict"] == "not_json"
    found = [(one["index"], one["verdict"]) for one in report["choices"]]
    assert found == [(0, "valid"), (1, "not_json"), (2, "invalid")]


def test_tool_calls_are_left_alone() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    exchange = forms.exchange(on_invalid="error")
    answer = forms.chat_answer(None, finish="tool_calls", tool_calls=[call])
    client = ask(Server([answer]), exchange)
    assert (client.status, exchange.outcome) == (200, "unjudged")
    assert client.json["choices"][0]["message"]["tool_calls"] == [call]


def test_without_a_schema_nothing_is_judged_but_the_version_is_told() -> None:
    exchange = forms.exchange(schema=None)
    client = ask(Server([forms.chat_answer("Hello")]), exchange)
    assert client.json["llm_lora"]["verdict"] == exchange.outcome == "unjudged"


@pytest.mark.parametrize("answer", [forms.chat_answer(VALID), forms.chat_stream(VALID)])
def test_answers_of_the_base_pass_byte_for_byte(answer: bytes | list[bytes]) -> None:
    exchange = forms.exchange(version=None, schema=None, stream=isinstance(answer, list))
    client = ask(Server([answer]), exchange)
    assert client.body == (answer if isinstance(answer, bytes) else b"".join(answer))
    assert not [name for name in client.headers if name.startswith("x-llm-lora")]
    assert (exchange.outcome, exchange.answer_tokens) == ("unjudged", 9)


def test_half_a_character_in_an_answer_breaks_nothing() -> None:
    answer = forms.chat_answer('{"\\ud800":1,"\\ud800":2}')
    for on_invalid, status in (("flag", 200), ("error", 422)):
        client = ask(Server([answer]), forms.exchange(on_invalid=on_invalid))
        assert client.status == status
        assert client.json["llm_lora"]["verdict"] == "not_json"


def test_reasons_are_few_however_many_there_are() -> None:
    text = json.dumps({f"key {n}": 1 for n in range(500)})
    client = ask(Server([forms.chat_answer(text)]), forms.exchange(on_invalid="error"))
    assert len(client.json["llm_lora"]["reasons"]) == judging.SHOWN_REASONS
    assert len(client.json["error"]["message"]) < 500


# ---- what to do with invalid answers


def test_error_answers_422_with_the_verdict() -> None:
    exchange = forms.exchange(on_invalid="error")
    client = ask(Server([forms.chat_answer(INVALID)]), exchange)
    assert client.status == exchange.status == 422
    assert client.headers["content-type"] == "application/json"
    assert int(client.headers["content-length"]) == len(client.body)
    assert client.json["error"]["code"] == "invalid_answer"
    assert "dose: expected a number" in client.json["error"]["message"]
    assert client.json["llm_lora"]["reasons"][0]["path"] == "dose"
    assert (exchange.outcome, exchange.answer_tokens) == ("invalid", 9)


def test_error_lets_valid_answers_through() -> None:
    client = ask(Server([forms.chat_answer(VALID)]), forms.exchange(on_invalid="error"))
    assert (client.status, client.headers["x-llm-lora-verdict"]) == (200, "valid")


def test_retry_asks_once_more_with_another_seed() -> None:
    server = Server([forms.chat_answer(INVALID), forms.chat_answer(VALID)])
    exchange = forms.exchange(on_invalid="retry")
    client = ask(server, exchange, {**REQUEST, "seed": 7})
    assert server.asked[1] == {**REQUEST, "seed": 6, "temperature": responses.RETRY_TEMPERATURE}
    identities = [dict(scope["headers"])[b"x-request-id"] for scope in server.scopes]
    assert len(set(identities)) == 2
    assert client.json["choices"][0]["message"]["content"] == VALID
    assert client.json["llm_lora"]["retried"] is True
    assert (exchange.outcome, exchange.retried) == ("valid", True)
    assert (exchange.prompt_tokens, exchange.answer_tokens) == (40, 18)


def test_retry_keeps_a_higher_temperature_and_gives_up_after_one() -> None:
    server = Server([forms.chat_answer(INVALID)])
    exchange = forms.exchange(on_invalid="retry")
    client = ask(server, exchange, {**REQUEST, "temperature": 0.9})
    assert [request["temperature"] for request in server.asked] == [0.9, 0.9]
    assert (client.status, client.headers["x-llm-lora-verdict"]) == (200, "invalid")


def test_retry_that_fails_leaves_the_first_answer() -> None:
    server = Server([forms.chat_answer(INVALID), forms.error_answer()])
    exchange = forms.exchange(on_invalid="retry")
    client = ask(server, exchange)
    assert client.json["choices"][0]["message"]["content"] == INVALID
    assert (exchange.outcome, exchange.answer_tokens) == ("invalid", 9)


def test_retry_that_breaks_off_leaves_the_first_answer(caplog: pytest.LogCaptureFixture) -> None:
    server = Server([forms.chat_answer(INVALID)])

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        if server.asked:
            raise RuntimeError("the engine is dead")
        await server(scope, receive, send)

    exchange = forms.exchange(on_invalid="retry")
    client = ask(breaks, exchange)
    assert client.json["choices"][0]["message"]["content"] == INVALID
    assert (client.status, exchange.outcome, exchange.answer_tokens) == (200, "invalid", 9)
    assert "the first answer is sent" in caplog.text and "the engine is dead" in caplog.text


def test_retry_passes_a_cancellation_on() -> None:
    server = Server([forms.chat_answer(INVALID)])

    async def cancelled(scope: Any, receive: Any, send: Any) -> None:
        if server.asked:
            raise asyncio.CancelledError
        await server(scope, receive, send)

    with pytest.raises(asyncio.CancelledError):
        ask(cancelled, forms.exchange(on_invalid="retry"))


def test_retry_does_not_ask_twice_for_a_valid_answer() -> None:
    server = Server([forms.chat_answer(VALID)])
    ask(server, forms.exchange(on_invalid="retry"))
    assert len(server.asked) == 1


@pytest.mark.parametrize("on_invalid", ["retry", "error"])
def test_streams_can_only_be_flagged(on_invalid: str) -> None:
    server = Server([forms.chat_stream(VALID)])
    exchange = forms.exchange(stream=True, on_invalid=on_invalid)
    client = ask(server, exchange)
    assert client.status == exchange.status == 400
    assert on_invalid in client.json["error"]["message"]
    assert server.asked == []


# ---- streams


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        (forms.chat_stream(VALID), "valid"),
        (forms.chat_stream(INVALID), "invalid"),
        (forms.chat_stream("Take two."), "not_json"),
        (forms.chat_stream(VALID[:20], finish="length"), "truncated"),
        (forms.completion_stream(VALID), "valid"),
    ],
)
def test_stream_passes_unchanged_but_for_its_last_chunk(events: list[bytes], outcome: str) -> None:
    exchange = forms.exchange(stream=True)
    client = ask(Server([events]), exchange)
    assert client.headers["x-llm-lora-version"] == "3"
    assert "content-length" not in client.headers
    got = client.body.split(b"\n\n")
    sent = b"".join(events).split(b"\n\n")
    changed = [after for before, after in zip(sent, got, strict=True) if before != after]
    assert len(changed) == 1
    assert reports_of(client.body)[0]["verdict"] == exchange.outcome == outcome
    assert exchange.first_token is not None


def test_each_chunk_is_passed_on_before_the_next_one_comes() -> None:
    events = forms.chat_stream(VALID)
    client = Client()
    behind = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for count, event in enumerate(events, 1):
            await send({"type": "http.response.body", "body": event, "more_body": True})
            behind.append(len(client.messages) - 1 - count)
        await send({"type": "http.response.body", "body": b""})

    exchange = forms.exchange(stream=True)
    body = json.dumps(REQUEST).encode()
    asyncio.run(responses.answer(server, SCOPE, body, exchange, client.receive, client.send))
    assert behind == [0] * len(events)


def test_usage_chunk_is_taken_out_only_where_the_layer_asked_for_it() -> None:
    for added in (False, True):
        exchange = forms.exchange(stream=True, include_usage_added=added)
        client = ask(Server([forms.chat_stream(VALID)]), exchange)
        assert ("usage" in data_of(client.body)[-1]) is not added
        assert client.body.endswith(b"data: [DONE]\n\n")
        assert (exchange.prompt_tokens, exchange.answer_tokens) == (20, 9)


def test_chunk_with_running_usage_is_no_usage_chunk() -> None:
    events = forms.chat_stream(VALID)
    events[1] = forms.event({**forms.chat_chunk(0, {"content": VALID[:4]}), "usage": forms.usage()})
    exchange = forms.exchange(stream=True, include_usage_added=True)
    assert events[1] in ask(Server([events]), exchange).body
    assert exchange.outcome == "valid"


def test_each_of_several_streamed_answers_gets_its_own_verdict() -> None:
    exchange = forms.exchange(stream=True)
    client = ask(Server([forms.chat_stream(VALID, INVALID, "no")]), exchange)
    found = {
        chunk["choices"][0]["index"]: chunk["llm_lora"]["verdict"]
        for chunk in data_of(client.body)
        if "llm_lora" in chunk
    }
    assert found == {0: "valid", 1: "invalid", 2: "not_json"}
    assert exchange.outcome == "not_json"


def test_streamed_tool_calls_are_left_alone() -> None:
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    events = [
        forms.event(forms.chat_chunk(0, {"role": "assistant", "content": ""})),
        forms.event(forms.chat_chunk(0, {"tool_calls": [call]})),
        forms.event(forms.chat_chunk(0, {}, "tool_calls")),
        forms.event("[DONE]"),
    ]
    exchange = forms.exchange(stream=True)
    client = ask(Server([events]), exchange)
    assert reports_of(client.body)[0]["verdict"] == exchange.outcome == "unjudged"


def test_reasoning_is_not_part_of_the_answer() -> None:
    events = forms.chat_stream(VALID)
    events.insert(1, forms.event(forms.chat_chunk(0, {"reasoning": "Let me see: {"})))
    exchange = forms.exchange(stream=True)
    ask(Server([events]), exchange)
    assert exchange.outcome == "valid"


def test_comments_that_keep_a_stream_alive_pass() -> None:
    events = forms.chat_stream(VALID)
    events.insert(2, b": keep-alive\n\n")
    exchange = forms.exchange(stream=True)
    assert b": keep-alive\n\n" in ask(Server([events]), exchange).body
    assert exchange.outcome == "valid"


def test_error_within_a_stream_passes_and_counts_as_error() -> None:
    failed = forms.event(json.loads(forms.error_answer(500)))
    events = [*forms.chat_stream(VALID, with_usage=False, done=False)[:3], failed]
    events.append(forms.event("[DONE]"))
    exchange = forms.exchange(stream=True)
    client = ask(Server([events]), exchange)
    assert client.body == b"".join(events)
    assert (exchange.outcome, exchange.status) == ("error", 200)


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_stream_that_breaks_off_counts_as_error(kept: int) -> None:
    events = forms.chat_stream(VALID)[:kept]
    exchange = forms.exchange(stream=True)
    client = ask(Server([events]), exchange)
    assert (client.body, exchange.outcome) == (b"".join(events), "error")


def test_stream_that_breaks_off_within_an_event_loses_no_byte() -> None:
    sent = b"".join(forms.chat_stream(VALID))[:-9]
    exchange = forms.exchange(stream=True, version=None)
    assert ask(Server([[sent]]), exchange).body == sent


def test_stream_that_leaves_one_of_its_answers_open_counts_as_error() -> None:
    events = [
        event
        for event in forms.chat_stream(VALID, VALID)
        if b'"index":0' in event or b'"finish_reason":"stop"' not in event
    ]
    exchange = forms.exchange(stream=True)
    ask(Server([events]), exchange)
    assert (exchange.outcome, len(exchange.answers)) == ("error", 1)


def test_error_after_a_whole_answer_counts_as_error() -> None:
    events = forms.chat_stream(VALID, done=False)
    events.append(forms.event(json.loads(forms.error_answer(500))))
    exchange = forms.exchange(stream=True)
    ask(Server([events]), exchange)
    assert exchange.outcome == "error"


# ---- any stream, cut anywhere

TEXTS = st.one_of(st.just(VALID), st.just(INVALID), st.text(max_size=40).map(json.dumps), st.text())


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    texts = draw(st.lists(TEXTS.filter(bool), min_size=1, max_size=3))
    finish = draw(st.sampled_from(["stop", "length"]))
    events = forms.chat_stream(*texts, finish=finish, with_usage=draw(st.booleans()))
    for at in draw(st.lists(st.integers(0, len(events)), max_size=3)):
        events.insert(at, draw(st.sampled_from([b": keep-alive\n\n", b"event: x\n\n"])))
    raw = b"".join(events[: draw(st.integers(0, len(events)))] if draw(st.booleans()) else events)
    return raw.replace(b"\n", b"\r\n") if draw(st.booleans()) else raw


def passed(parts: list[bytes], added: bool) -> tuple[bytes, str, list[str]]:
    exchange = forms.exchange(stream=True, include_usage_added=added)
    stream = Stream(exchange)
    out = b"".join([*map(stream.feed, parts), stream.close()])
    reasons = exchange.verdict.reasons if exchange.verdict else ()
    return out, exchange.outcome, [str(reason) for reason in reasons]


@settings(max_examples=300, deadline=None)
@given(raw=streams(), cuts=st.lists(st.integers(0, 6000), max_size=40), added=st.booleans())
def test_cuts_change_neither_bytes_nor_verdict(raw: bytes, cuts: list[int], added: bool) -> None:
    borders = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    parts = [raw[a:b] for a, b in itertools.pairwise(borders)]
    whole = passed([raw], added)
    assert passed(parts, added) == whole
    assert passed([raw[at : at + 1] for at in range(len(raw))], added) == whole


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=300) | streams(), size=st.integers(1, 50))
def test_events_lose_no_byte(raw: bytes, size: int) -> None:
    events = Events()
    cut = [event for at in range(0, len(raw), size) for event in events.feed(raw[at : at + size])]
    assert b"".join(cut) + events.rest() == raw
    assert cut == Events().feed(raw)
    assert all(event.endswith(b"\n") for event in cut)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_a_server_streams_passes(raw: bytes) -> None:
    data = b"data: " + raw.replace(b"\n", b"") + b"\n\n"
    out, outcome, _ = passed([data], False)
    assert (out, outcome) == (data, "error")


# ---- trouble


@pytest.mark.parametrize("status", [400, 404, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_server_refuses_passes_as_it_is(status: int, stream: bool) -> None:
    exchange = forms.exchange(stream=stream)
    client = ask(Server([forms.error_answer(status)], status=status), exchange)
    assert (client.status, client.body) == (status, forms.error_answer(status))
    assert (exchange.status, exchange.outcome) == (status, "error")
    assert exchange.verdict is None


@pytest.mark.parametrize(
    "body", [b"null", b"[]", b"{", b"\xff", b'{"choices":[]}', b'{"choices":3}']
)
def test_answer_of_no_known_form_passes_as_it_is(body: bytes) -> None:
    exchange = forms.exchange()
    client = ask(Server([body]), exchange)
    assert (client.status, client.body, exchange.outcome) == (200, body, "error")


def test_exception_of_the_server_is_raised_and_counts_as_error() -> None:
    exchange = forms.exchange()
    with pytest.raises(RuntimeError, match="engine died"):
        ask(Server([RuntimeError("engine died")]), exchange)
    assert (exchange.status, exchange.outcome) == (0, "error")


def test_server_that_ends_without_an_answer_counts_as_error() -> None:
    async def server(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    exchange = forms.exchange()
    assert ask(server, exchange).messages == []
    assert (exchange.status, exchange.outcome) == (0, "error")


@pytest.mark.parametrize("answer", [forms.chat_stream(VALID), forms.chat_answer(VALID)])
def test_client_that_hangs_up_ends_the_request(answer: list[bytes] | bytes) -> None:
    server = Server([answer], pause=0.02)
    client = Client()
    exchange = forms.exchange(stream=isinstance(answer, list), on_invalid="flag")

    async def run() -> None:
        body = json.dumps(REQUEST).encode()
        asyncio.get_running_loop().call_later(0.01, client.hung_up.set)
        await responses.answer(server, SCOPE, body, exchange, client.receive, client.send)

    asyncio.run(run())
    assert (server.cancelled, exchange.outcome) == (1, "aborted")
    assert all(message.get("more_body", True) for message in client.messages)


def test_client_that_hangs_up_is_not_asked_for_twice() -> None:
    server = Server([forms.chat_answer(INVALID), forms.chat_answer(VALID)], pause=0.03)
    client = Client()
    exchange = forms.exchange(on_invalid="retry")

    async def run() -> None:
        body = json.dumps(REQUEST).encode()
        asyncio.get_running_loop().call_later(0.045, client.hung_up.set)
        await responses.answer(server, SCOPE, body, exchange, client.receive, client.send)

    asyncio.run(run())
    assert (server.cancelled, exchange.outcome, client.messages) == (1, "aborted", [])


def test_client_that_leaves_after_its_answer_did_not_hang_up() -> None:
    client = Client()

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await Server([forms.chat_stream(VALID)])(scope, receive, send)
        client.hung_up.set()
        assert (await receive())["type"] == "http.disconnect"

    exchange = forms.exchange(stream=True)
    body = json.dumps(REQUEST).encode()
    asyncio.run(responses.answer(server, SCOPE, body, exchange, client.receive, client.send))
    assert exchange.outcome == "valid"


@pytest.mark.parametrize("answer", [forms.chat_stream(VALID), forms.chat_answer(VALID)])
def test_nothing_is_sent_to_a_client_that_has_hung_up(answer: list[bytes] | bytes) -> None:
    client = Client()
    body = json.dumps(REQUEST).encode()

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        client.hung_up.set()
        await receive()
        await Server([answer])(scope, replay(body, client.stay), send)

    exchange = forms.exchange(stream=isinstance(answer, list))
    asyncio.run(responses.answer(server, SCOPE, body, exchange, client.receive, client.send))
    assert (client.messages, exchange.outcome) == ([], "aborted")


def test_cancelled_request_counts_as_aborted() -> None:
    exchange = forms.exchange()
    client = Client()
    server = Server([forms.chat_answer(VALID)], pause=5)

    async def run() -> None:
        body = json.dumps(REQUEST).encode()
        async with asyncio.timeout(0.02):
            await responses.answer(server, SCOPE, body, exchange, client.receive, client.send)

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert (exchange.outcome, client.messages) == ("aborted", [])


def test_broken_pipe_counts_as_hung_up() -> None:
    async def broken(message: dict[str, Any]) -> None:
        raise OSError("gone")

    exchange = forms.exchange()
    body = json.dumps(REQUEST).encode()
    server = Server([forms.chat_answer(VALID)])
    asyncio.run(responses.answer(server, SCOPE, body, exchange, Client().receive, broken))
    assert exchange.outcome == "aborted"


# ---- a real client over a real socket


class Application:
    """The part of the layer that is under test, around the server in vLLM's forms."""

    def __init__(self, server: Server, **facts: Any) -> None:
        self.server, self.facts = server, facts
        self.exchanges: list[Exchange] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        stream = bool(json.loads(body).get("stream"))
        exchange = forms.exchange(started=time.monotonic(), stream=stream, **self.facts)
        try:
            await responses.answer(self.server, scope, body, exchange, receive, send)
        finally:
            self.exchanges.append(exchange)


MESSAGES: Any = [{"role": "user", "content": "What did she take?"}]


@pytest.mark.parametrize("count", [1, 3])
def test_openai_client_reads_plain_answers(count: int) -> None:
    with serving(Application(Server([forms.chat_answer(*[VALID] * count)]))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        found = client.chat.completions.create(model="medical-qa", messages=MESSAGES, n=count)
    assert [choice.message.content for choice in found.choices] == [VALID] * count
    assert found.usage is not None and found.usage.completion_tokens == 9
    assert found.model_extra is not None
    assert found.model_extra["llm_lora"]["verdict"] == "valid"


def test_openai_client_reads_streams() -> None:
    application = Application(Server([forms.chat_stream(VALID)]), include_usage_added=True)
    with serving(application) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        chunks = list(stream)
        with client.chat.completions.stream(model="m", messages=MESSAGES) as helper:
            final = helper.get_final_completion()
        texts = list(client.completions.create(model="m", prompt="x", stream=True))
    # Every chunk has a choice: who did not ask for usage may rely on that.
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == VALID
    found = [chunk.model_extra["llm_lora"] for chunk in chunks if chunk.model_extra]
    assert [one["verdict"] for one in found] == ["valid"]
    assert final.choices[0].message.content == VALID
    assert len(texts) == len(chunks)


def test_openai_client_sees_422_as_such() -> None:
    application = Application(Server([forms.chat_answer(INVALID)]), on_invalid="error")
    with serving(application) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        with pytest.raises(openai.UnprocessableEntityError, match="dose: expected a number") as got:
            client.chat.completions.create(model="medical-qa", messages=MESSAGES)
    assert got.value.response.json()["llm_lora"]["verdict"] == "invalid"


def test_openai_client_that_closes_a_stream_ends_the_request() -> None:
    server = Server([forms.chat_stream(VALID * 20)], pause=0.02)
    application = Application(server)
    with serving(application) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        next(iter(stream))
        stream.close()
        until = time.monotonic() + 5
        while not application.exchanges and time.monotonic() < until:
            time.sleep(0.01)
    assert server.cancelled == 1
    assert application.exchanges[0].outcome == "aborted"


# ---- cost


def test_judging_costs_little() -> None:
    """Processor time of reading, judging and marking an answer of 1 kB: 50 µs is the aim."""
    schema = SCHEMA
    text = json.dumps({"name": "x" * 960, "dose": 1.5})
    body = forms.chat_answer(text)
    exchange = forms.exchange()

    def once() -> bytes:
        one = judging.Answer(0)
        one.add(judging.read(body).choices[0])
        judged = [judging.judge(schema, one)]
        judging.settle(exchange, judged)
        return judging.with_field(body, judging.field(exchange, judged))

    assert json.loads(once())["llm_lora"]["verdict"] == "valid"
    spent = []
    for _ in range(20):
        begun = time.process_time()
        for _ in range(200):
            once()
        spent.append((time.process_time() - begun) / 200)
    print(f"\njudging an answer of {len(text)} bytes: {min(spent) * 1e6:.1f} µs")
    assert min(spent) < 200e-6
