"""Metrics and access log: correct counts, few series, no contents unless asked."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import time
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support import vllm_forms as forms
from support.vllm_forms import INVALID, SCHEMA, VALID

from llm_lora.errors import UserError
from llm_lora.serving.layer.access_log import NAME_LIMIT, AccessLog
from llm_lora.serving.layer.asgi import call
from llm_lora.serving.layer.exchange import Exchange
from llm_lora.serving.layer.metrics import BASE, Metrics

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def ended(outcome: str = "valid", **facts: Any) -> Exchange:
    given = {"started": time.monotonic() - 0.3, "prompt_tokens": 20, "answer_tokens": 9}
    return forms.exchange(outcome=outcome, status=200, finish_reason="stop", **given | facts)


def series(text: bytes) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return series(metrics.text())[f"llm_lora_{name}", tuple(sorted(labels.items()))]


def test_requests_are_counted_by_version_and_outcome() -> None:
    metrics = Metrics()
    for outcome in ("valid", "valid", "invalid", "truncated", "aborted", "error", "unjudged"):
        metrics.count(ended(outcome))
    metrics.count(ended("not_json", version=forms.version(number=4)))
    third = {"adapter": "medical-qa", "version": "3"}
    assert value(metrics, "requests_total", **third, outcome="valid") == 2
    assert value(metrics, "requests_total", **third, outcome="truncated") == 1
    assert value(metrics, "prompt_tokens_total", **third) == 140
    assert value(metrics, "answer_tokens_total", **third) == 63
    totals = metrics.totals(forms.version())
    assert (totals.requests, totals.judged, totals.valid, totals.valid_rate) == (7, 4, 2, 0.5)
    assert metrics.totals(forms.version(number=4)).valid_rate == 0
    assert metrics.totals(forms.version(number=5)).valid_rate is None


def test_reasons_are_counted_by_keyword_once_an_answer() -> None:
    metrics = Metrics()
    verdict = SCHEMA.judge('{"name":1,"dose":"x"}')
    assert len(verdict.reasons) == 2
    metrics.count(ended("invalid", verdict=verdict))
    labels = {"adapter": "medical-qa", "version": "3", "keyword": "type"}
    assert value(metrics, "invalid_reasons_total", **labels) == 1


def test_times_are_seconds_since_arrival() -> None:
    metrics = Metrics()
    exchange = ended(stream=True)
    exchange.first_token = exchange.started + 0.2
    metrics.count(exchange)
    assert value(metrics, "request_seconds_sum", adapter="medical-qa") == pytest.approx(
        0.3, abs=0.2
    )
    assert value(metrics, "first_token_seconds_sum", adapter="medical-qa") == pytest.approx(0.2)


def test_loads_retries_refusals_and_loaded_versions() -> None:
    metrics = Metrics()
    loaded: list[str] = []
    metrics.watch_loaded(lambda: len(loaded))
    loaded += ["a", "b"]
    metrics.load(0.25)
    metrics.refused(401)
    metrics.refused(401)
    metrics.count(ended(retried=True))
    assert value(metrics, "loaded_adapters") == 2
    assert value(metrics, "load_seconds_count") == 1
    assert value(metrics, "load_seconds_sum") == 0.25
    assert value(metrics, "refused_total", status="401") == 2
    assert value(metrics, "retries_total", adapter="medical-qa", version="3") == 1


def test_base_is_counted_under_a_name_that_no_adapter_can_have() -> None:
    metrics = Metrics()
    metrics.count(ended("unjudged", version=None, prompt_tokens=None))
    assert value(metrics, "requests_total", adapter=BASE, version="", outcome="unjudged") == 1
    assert not BASE[0].isalnum()


@given(st.lists(st.text(max_size=30), max_size=10))
def test_what_clients_write_never_becomes_a_label(names: list[str]) -> None:
    metrics, plain = Metrics(), Metrics()
    plain.count(ended())
    for name in ["medical-qa", *names]:
        metrics.count(ended(asked=name))
    assert series(metrics.text()).keys() == series(plain.text()).keys()


class TestExposed:
    """GET /metrics around an app that exposes its own metrics."""

    def exposed(
        self, *, status: int = 200, **headers: str
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        registry = prometheus_client.CollectorRegistry()
        prometheus_client.Counter("vllm_steps", "Steps", registry=registry).inc(5)
        inner = prometheus_client.make_asgi_app(registry)
        metrics = Metrics()
        metrics.count(ended())

        async def failing(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"starting"})

        async def app(scope: Any, receive: Any, send: Any) -> None:
            found = [(name.encode(), text.encode()) for name, text in headers.items()]
            scope = {**scope, "headers": found}
            await metrics.expose(inner if status == 200 else failing, scope, receive, send)

        reply = asyncio.run(call(app, "GET", "/metrics"))
        names = [name for name, _ in reply.headers]
        assert len(names) == len(set(names))
        return reply.status, {name.lower(): text for name, text in reply.headers}, reply.body

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"},
            {"accept-encoding": "gzip, deflate"},
        ],
    )
    def test_own_figures_follow_the_servers(self, headers: dict[str, str]) -> None:
        status, kept, body = self.exposed(**headers)
        found = {name for name, _ in series(body)}
        assert status == 200
        assert {"vllm_steps_total", "llm_lora_requests_total"} <= found
        assert int(kept.get(b"content-length", str(len(body)))) == len(body)
        assert b"text/plain" in kept[b"content-type"]
        assert b"content-encoding" not in kept

    def test_failure_of_the_server_stays_one(self) -> None:
        status, _, body = self.exposed(status=503)
        assert (status, body) == (503, b"starting")


# ---- access log


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_tells_what_became_of_a_request_without_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.jsonl"
    log = AccessLog(path)
    verdict = SCHEMA.judge('{"name":"secret disease","dose":1,"made up key":2}')
    exchange = ended("invalid", verdict=verdict, retried=True, stream=True, answers=("secret",))
    exchange.first_token = exchange.started + 0.1
    log.write(exchange, b'{"messages":"secret question"}')
    log.refused("r-2", "/v1/models", 401)
    first, second = rows(path)
    text = path.read_text()
    assert "secret" not in text
    assert "made up" not in text
    assert first["time"].endswith("Z")
    assert first["seconds"] == pytest.approx(0.3, abs=0.2)
    assert {key: first[key] for key in first if key not in ("time", "seconds")} == {
        "id": "r-1",
        "route": forms.CHAT,
        "status": 200,
        "asked": "medical-qa",
        "adapter": "medical-qa",
        "version": 3,
        "stream": True,
        "outcome": "invalid",
        "finish": "stop",
        "prompt_tokens": 20,
        "answer_tokens": 9,
        "first_token_seconds": 0.1,
        "retried": True,
        "reasons": ["additionalProperties"],
    }
    assert (second["status"], second["outcome"]) == (401, "refused")


def test_log_has_contents_where_asked_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path, contents=True)
    log.write(ended(answers=(VALID, INVALID)), b'{"messages": "\xff"}')
    assert rows(path)[0]["answers"] == [VALID, INVALID]
    assert rows(path)[0]["request"] == '{"messages": "�"}'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(name=st.text(max_size=300))
@example(name="x" * 1000)
def test_one_request_is_one_line_whatever_it_asked_for(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    path = tmp_path_factory.mktemp("log") / "access.jsonl"
    AccessLog(path).write(ended(asked=name))
    assert [row["asked"] for row in rows(path)] == [name[:NAME_LIMIT]]


def test_log_follows_a_rotated_file_and_appends(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    path.write_text('{"id": "older"}\n')
    log = AccessLog(path)
    log.write(ended())
    path.rename(tmp_path / "access.jsonl.1")
    log.write(ended(id="r-9"))
    assert [row["id"] for row in rows(tmp_path / "access.jsonl.1")] == ["older", "r-1"]
    assert [row["id"] for row in rows(path)] == ["r-9"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_full_disk_costs_lines_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    log = AccessLog(full)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            log.write(ended())
    assert len(caplog.records) == 1
    assert "/dev/full" in caplog.text


def test_without_a_path_nothing_is_logged() -> None:
    AccessLog(None).write(ended())


def test_log_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        AccessLog(tmp_path / "file" / "access.jsonl")
