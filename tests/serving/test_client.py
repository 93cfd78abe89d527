"""The client of a running server: its requests, and its handling of answers and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from support.local_server import Application, serving

from llm_lora.errors import UserError
from llm_lora.example import Message
from llm_lora.serving.client import ADMIN_KEY, API_KEY, Client

CHAT = ("POST", "/v1/chat/completions")
ASKED = (Message("user", "My head aches."),)
ANSWER = {
    "choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    "llm_lora": {"verdict": {"kind": "invalid"}},
}
EVENT = {"event": "publish", "at": "2026-11-21T10", "by": "ann", "why": "", "number": 3}


def standing(live: int, trial: int | None = None) -> dict[str, Any]:
    """The answer to a moved alias."""
    canary = None if trial is None else {"number": trial, "share": 0.1}
    return {"name": "visit", "live": live, "previous": 1, "canary": canary, "changed": "now"}


ROW = {
    "number": 3, "id": "visit@3", "served": "visit@f", "adapter_digest": "f", "base": "tiny",
    "rank": 4, "published": "2026-11-21T10", "age_seconds": 5, "passed": None, "refused": None,
    "requests": 7, "valid_rate": 0.5, "loaded": True, "schema": "e",
}  # fmt: skip
LISTED = {**standing(3, 4), "problem": None, "versions": [ROW], "schemas": {"e": {}}}


def test_chat_sends_messages_and_options_and_reads_the_answer() -> None:
    application = Application({CHAT: lambda body: ANSWER})
    with serving(application) as url, Client(url + "/v1/") as client:
        reply = client.chat("visit", ASKED, temperature=0, llm_lora={"schema": "off"})
    assert (reply.text, reply.finish, reply.prompt_tokens, reply.answer_tokens) == (
        *("{}", "stop"),
        *(7, 3),
    )
    assert reply.judged == {"verdict": {"kind": "invalid"}}
    [(path, body, _)] = application.asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "visit",
        "messages": [{"role": "user", "content": "My head aches."}],
        "temperature": 0,
        "llm_lora": {"schema": "off"},
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_keys_for_this_machine_never_go_to_a_proxy(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADMIN_KEY, "admin")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    proxy = Application({})
    server = Application({("POST", "/admin/promote"): lambda body: standing(3)})
    with serving(proxy) as elsewhere, serving(server) as url:
        monkeypatch.setenv("http_proxy", elsewhere)
        with Client(url.replace("127.0.0.1", host)) as client:
            assert client.promote("visit", 3).live == 3
        with pytest.raises(UserError), Client("http://192.0.2.1:8000") as client:
            client.promote("visit", 3)
    assert len(server.asked) == 1
    assert len(proxy.asked) == 1, "other addresses are reached as the environment says"


def test_each_kind_of_key_goes_only_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "use")
    monkeypatch.setenv(ADMIN_KEY, "admin")
    application = Application(
        {
            CHAT: lambda body: ANSWER,
            ("POST", "/tokenize"): lambda body: {"tokens": [1, 2]},
            ("GET", "/v1/adapters"): lambda body: {"data": [LISTED]},
            ("POST", "/admin/promote"): lambda body: standing(3),
            ("POST", "/admin/rollback"): lambda body: standing(2),
            ("POST", "/admin/canary"): lambda body: standing(2, 3),
            ("GET", "/admin/history"): lambda body: {"data": [EVENT]},
        }
    )
    with serving(application) as url, Client(url) as client:
        client.chat("visit", ASKED)
        assert client.tokenize("visit", ASKED) == [1, 2]
        assert [one.to_json() for one in client.adapters()] == [LISTED]
        assert client.promote("visit", 3, why="better").to_json() == standing(3)
        assert client.rollback("visit").to_json() == standing(2)
        assert client.canary("visit", 3, 0.1).to_json() == standing(2, 3)
        assert [event.to_json() for event in client.history("visit")] == [EVENT]
    keys = {path: headers["authorization"] for path, _, headers in application.asked}
    admin = {path for path, key in keys.items() if key == "Bearer admin"}
    assert admin == {"/admin/promote", "/admin/rollback", "/admin/canary", "/admin/history"}
    assert {keys[path] for path in keys.keys() - admin} == {"Bearer use"}
    bodies = {path: body for path, body, _ in application.asked}
    assert bodies["/admin/promote"] == {
        "name": "visit",
        "version": 3,
        "force": False,
        "why": "better",
    }
    assert bodies["/admin/rollback"] == {"name": "visit"}
    assert bodies["/admin/canary"] == {
        "name": "visit",
        "version": 3,
        "share": 0.1,
        "force": False,
    }


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (401, API_KEY),
        (403, ADMIN_KEY),
        (404, "adapters"),
        (413, "smaller"),
        (429, "7 s"),
        (500, "log"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(status: int, fix: str) -> None:
    refusal = (status, {"error": {"message": "no model named visit", "type": "x"}})
    with (
        serving(Application({CHAT: lambda body: refusal})) as url,
        Client(url) as client,
        pytest.raises(UserError) as caught,
    ):
        client.chat("visit", ASKED)
    [problem] = caught.value.problems
    assert "no model named visit" in problem.what and str(status) in problem.what
    assert problem.where == url + "/v1/chat/completions"
    assert fix in (problem.fix or "")


@pytest.mark.parametrize(
    "said", [b"<html>hello</html>", [], {"choices": []}, {"choices": [{}], "usage": {}}]
)
def test_an_answer_that_is_no_answer_is_named(said: Any) -> None:
    answer = b"[1]" if said == [] else said
    with (
        serving(Application({CHAT: lambda body: answer})) as url,
        Client(url) as client,
        pytest.raises(UserError, match="does not come from an llm-lora server"),
    ):
        client.chat("visit", ASKED)


def test_nothing_there_no_answer_in_time_and_no_address() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(UserError, match="llm-lora serve"):
        client.adapters()
    slow = Application({CHAT: lambda body: ANSWER}, pause=1.0)
    with (
        serving(slow) as url,
        Client(url, timeout=0.1) as client,
        pytest.raises(UserError, match=r"no answer within 0\.1 s"),
    ):
        client.chat("visit", ASKED)
    for wrong in ("localhost:8000", "", "ftp://a", "http://", "http://[::1"):
        with pytest.raises(UserError, match="not a server address"):
            Client(wrong)
