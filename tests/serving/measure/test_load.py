"""The load generator: every request asked once, timed, counted, and bounded in number."""

from __future__ import annotations

from typing import Any

import pytest
from support.local_server import Application, serving

from llm_lora.serving.measure import load
from llm_lora.serving.measure.load import Load, Timing

PATH = "/v1/chat/completions"


def delta(text: str | None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text} if text is not None else {"role": "x"}}]}


def answer(body: dict[str, Any]) -> Any:
    if body.get("stream"):
        usage = {"choices": [], "usage": {"completion_tokens": 3}}
        return [delta(None), delta("a"), delta("b"), delta("c"), usage, "[DONE]"]
    return {"choices": [{"message": {"content": "abc"}}], "usage": {"completion_tokens": 5}}


def test_plain_and_streamed_answers_are_timed_and_counted() -> None:
    application = Application({("POST", PATH): answer}, pause=0.05)
    bodies = [{"model": "m", "stream": number % 2 == 0} for number in range(12)]
    told: list[int] = []
    with serving(application) as url:
        found = load.run(url, bodies, concurrency=3, key="k1", tell=told.append)
    assert found.failures == []
    assert [timing.tokens for timing in found.timings] == [3, 5] * 6
    assert told == list(range(1, 13))
    # Never more at once than connections, but truly concurrent.
    assert application.most == 3
    assert {headers["authorization"] for _, _, headers in application.asked} == {"Bearer k1"}
    # A busy machine lengthens pauses, the clock of an event loop shortens them slightly.
    pause = 0.95 * application.pause
    for streamed, plain in zip(found.timings[::2], found.timings[1::2], strict=True):
        # The first text comes with the second event, after two of seven pauses.
        assert streamed.first is not None and 2 * pause <= streamed.first < streamed.total
        assert streamed.total >= 7 * pause
        assert plain.first is None and plain.total >= pause
    assert min(timing.first / timing.total for timing in found.timings[::2] if timing.first) < 0.5
    # Waiting for a connection is not timed: the sum stays within the time of the connections.
    slowest = max(timing.total for timing in found.timings)
    spent = sum(timing.total for timing in found.timings)
    assert slowest < found.seconds < spent <= 3 * found.seconds
    summary = found.summary()
    assert summary["tokens_per_second"] == round(48 / found.seconds, 1)
    assert summary["latency_p99_ms"] == round(slowest * 1000, 1)
    assert summary["first_token_p50_ms"] >= 2000 * pause


@pytest.mark.parametrize(
    ("given", "failure"),
    [
        ((503, {"error": {"message": "full"}}), "status 503"),
        ([delta("a")], "broke off"),
        ([delta("a"), {"error": {"message": "engine died"}}, "[DONE]"], "engine died"),
    ],
    ids=["refused", "cut", "error in the stream"],
)
def test_what_fails_is_told_and_counts_no_tokens(given: Any, failure: str) -> None:
    with serving(Application({("POST", PATH): lambda body: given})) as url:
        found = load.run(url, [{"stream": True}] * 2, concurrency=2)
    assert len(found.failures) == 2
    assert all(failure in told for told in found.failures)
    assert found.tokens_per_second == 0
    assert found.summary()["failed"] == 2
    assert found.summary()["latency_p50_ms"] is None


def test_a_server_that_is_not_there_fails_every_request() -> None:
    found = load.run("http://127.0.0.1:9", [{}] * 3, concurrency=2)
    assert len(found.failures) == 3


def test_percentiles_are_values_that_were_measured() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert load.percentile(hundred, 0.5) == 50
    assert load.percentile(hundred, 0.99) == 99
    assert load.percentile([7.0], 0.99) == 7
    assert load.percentile([], 0.5) is None


def test_loads_are_joined_one_after_the_other() -> None:
    one = Load(2.0, (Timing(1.0, tokens=10), Timing(2.0, tokens=10)))
    other = Load(3.0, (Timing(3.0, tokens=30),))
    both = load.joined([one, other])
    assert both.tokens_per_second == 10
    assert both.summary()["latency_p99_ms"] == 3000
