"""`llm-lora serve` with real vLLM, the layer and a store with two trained adapters.

One server for the whole file; the last tests kill parts of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support import browser
from support.commands import Command
from support.served import ADMIN_KEY, API_KEY, TOKENS, Served, greedy, runs_on, scaled

from llm_lora.data.text.dataset import Dataset
from llm_lora.machine import free_port
from llm_lora.run import Run
from llm_lora.schema.answer import AnswerSchema
from llm_lora.serving.layer.routes import ROUTES, Access
from llm_lora.store.store import Store

pytest.importorskip("vllm", reason="vLLM is not installed: make env installs it")
pytestmark = pytest.mark.slow

PLACES = 2
"""Adapter versions that are loaded at once: fewer than the store has."""


@pytest.fixture(scope="module")
def runs(
    small_run: Path, small_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run]:
    """Two runs of the small recipe that answer differently."""
    root = tmp_path_factory.mktemp("other")
    settings = ("train.seed=7", "train.max_steps=6", "lora.rank=8", "generate.max_new_tokens=8")
    sets = [part for setting in settings for part in ("--set", setting)]
    code, output = Command("train", small_recipe, "--runs", root, *sets).finish()
    assert code == 0, output
    return Run(small_run), Run((root / "small" / "latest").resolve())


def serve(store: Store, folder: Path) -> Served:
    port = free_port()
    command = Command(
        *("serve", "--store", store.root, "--port", port, "--max-adapters", PLACES),
        *("--api-keys", folder / "api", "--admin-keys", folder / "admin"),
        *("--access-log", folder / "access.jsonl"),
        # In float32 both programs compute the same, so answers compare exactly.
        *("--extra-vllm", "--dtype float32"),
    )
    return Served(command, store, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def served(runs: tuple[Run, Run], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    store = Store(folder / "store")
    for run in runs:
        store.publish(run.adapter, "triage", report=run.read(run.report), by="test")
    store.publish(runs[1].adapter, "asleep", report=runs[1].read(runs[1].report), by="test")
    store.promote("triage", 1, by="test", force=True)
    for name, key in (("api", API_KEY), ("admin", ADMIN_KEY)):
        (folder / name).write_text(key + "\n")
        (folder / name).chmod(0o600)
    found = serve(store, folder)
    try:
        found.wait_ready()
        yield found
    finally:
        found.command.process.terminate()
        try:
            found.command.finish(90)
        finally:
            found.command.process.kill()


@pytest.fixture(scope="module")
def prompts(runs: tuple[Run, Run]) -> list[list[dict[str, str]]]:
    held_out = Dataset.read(runs[0].dataset).held_out
    return [
        [{"role": message.role, "content": message.content} for message in example.prompt]
        for example in held_out
    ]


def test_the_schema_is_enforced_without_asking(
    served: Served, runs: tuple[Run, Run], prompts: list[Any]
) -> None:
    schema = AnswerSchema.load(runs[0].adapter / "answer.schema.json")
    for prompt in prompts[:3]:
        question = [message for message in prompt if message["role"] == "user"]
        answer = served.chat("triage", question, max_tokens=600)
        text = answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert schema.judge(text).valid
        assert (answer["llm_lora"]["adapter"], answer["llm_lora"]["version"]) == ("triage", 1)
        # The system prompt of training was filled in.
        assert served.text("triage", prompt, max_tokens=600) == text


def test_an_answer_that_is_cut_off_says_so(served: Served, prompts: list[Any]) -> None:
    body = {"model": "triage", "messages": prompts[0], "max_tokens": 5}
    response = served.client.post("/v1/chat/completions", json=body)
    assert response.headers["x-llm-lora-verdict"] == "truncated"


def test_names_that_do_not_answer_get_a_list_of_those_that_do(served: Served) -> None:
    for model in ("nobody", "asleep", "triage@9", "../triage"):
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        response = served.client.post("/v1/chat/completions", json=body)
        assert response.status_code == 404, (model, response.text)
        assert "triage@1" in response.json()["error"]["message"]
    listed = [model["id"] for model in served.client.get("/v1/models").json()["data"]]
    assert {"tiny", "triage", "triage@1", "triage@2", "asleep@1"} <= set(listed)
    assert "asleep" not in listed


def test_every_route_that_the_server_has_is_closed_or_on_the_list(served: Served) -> None:
    """Ask every route in vLLM's log, and every route of the layer, without a key."""
    (log,) = served.store.root.glob(".serving/*/vllm.log")
    found = re.findall(r"Route: (\S+), (?:Methods: ([A-Z, ]+)|Endpoint)", log.read_text())
    paths = {path: methods.split(", ") if methods else ["GET"] for path, methods in found}
    assert {"/v1/load_lora_adapter", "/invocations"} <= set(paths), "the log tells the routes"
    ours = ROUTES["text"]
    paths |= {path: [method] for path, (method, _) in ours.items()}
    with httpx.Client(timeout=60) as nobody:
        for path, methods in paths.items():
            for method in {*methods, "GET", "POST", "DELETE", "OPTIONS"}:
                for spelt in {path, path + "/", "/" + path, path.upper()}:
                    expected = {404, 405}
                    if spelt in ours and ours[spelt][0] == method:
                        expected = {200} if ours[spelt][1] is Access.OPEN else {401}
                    url = served.url + re.sub(r"{[^}]*}", "x", spelt)
                    status = nobody.request(method, url).status_code
                    assert status in expected, (method, spelt, status)


def test_a_key_for_use_is_none_for_administration(served: Served) -> None:
    body = {"name": "triage", "version": 2}
    assert served.client.post("/admin/promote", json=body).status_code == 403
    wrong = {"Authorization": "Bearer a-wrong-key-0123456789"}
    assert served.client.get("/v1/models", headers=wrong).status_code == 401
    assert served.store.alias("triage").live == 1


def test_the_openai_client_works_unchanged(served: Served, prompts: list[Any]) -> None:
    import openai

    client = openai.OpenAI(base_url=served.url + "/v1", api_key=API_KEY)
    assert "triage" in {model.id for model in client.models.list()}
    asked: dict[str, Any] = {"model": "triage", "messages": prompts[0], "max_tokens": 600}
    whole = client.chat.completions.create(**asked, temperature=0)
    text = whole.choices[0].message.content
    assert text and isinstance(json.loads(text), dict)
    pieces = list(client.chat.completions.create(**asked, temperature=0, stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == text
    done = client.completions.create(model="tiny", prompt="The patient", max_tokens=4)
    assert done.usage is not None and done.usage.completion_tokens == 4
    with pytest.raises(openai.NotFoundError, match=r"triage@1"):
        client.chat.completions.create(**{**asked, "model": "nobody"})


def test_the_commands_speak_to_a_running_server(
    served: Served, runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LORA_API_KEY", API_KEY)
    monkeypatch.setenv("LLM_LORA_ADMIN_KEY", ADMIN_KEY)

    def say(*arguments: object) -> str:
        code, output = Command(*arguments, "--url", served.url).finish()
        assert code == 0, output
        return output

    rows = {line.split()[0]: line.split() for line in say("adapters").splitlines()[1:]}
    assert rows["triage@1"][1:3] == ["live", "tiny"] and "yes" in rows["triage@1"]
    assert {"triage@2", "asleep@1"} <= rows.keys()
    assert "triage → version 2" in say("promote", "triage", 2, "--force", "--why", "a try")
    assert "10.0% of the requests" in say("canary", "triage", 1, "--share", "10%", "--force")
    assert "triage → version 1" in say("rollback", "triage")
    assert "a try" in say("history", "triage")
    code, output = Command("evaluate", runs[0].folder, "--via", served.url).finish()
    assert (code, "token ids" in output.lower()) == (0, True), output


@browser.needed
def test_the_playground_shows_answers_and_verdicts_of_two_versions(
    served: Served, runs: tuple[Run, Run], prompts: list[Any], tmp_path: Path
) -> None:
    patient = scaled(runs[0].adapter, tmp_path / "patient", 1.0, max_new_tokens=600)
    for adapter in (patient, runs[1].adapter):
        served.store.publish(adapter, "page", report=None, by="test")
    served.store.promote("page", 1, by="test", force=True)
    with browser.browsing(tmp_path) as tab:
        tab.show()
        tab.open(served.url)
        tab.wait("!document.querySelector('#key-card').hidden")
        tab.write("#key", API_KEY)
        tab.click("#key-form .main")
        tab.wait("!document.querySelector('#send').disabled")
        tab.choose(".adapter", "page")
        tab.click("#compare")
        tab.write("#message", prompts[0][-1]["content"])
        tab.click("#send")
        verdicts = "[...document.querySelectorAll('.verdict')].map(one => one.innerText)"
        tab.wait(f"{verdicts}.every(one => one.startsWith('✓') || one.startsWith('✗'))", 120)
        # The second run stops after a few tokens.
        assert tab.evaluate(verdicts) == ["✓ fits the schema", "✗ cut off"]
        who = tab.evaluate("[...document.querySelectorAll('.who')].map(one => one.innerText)")
        assert who == ["page@1", "page@2"]
        tab.screenshot(tmp_path / "playground.png")
        # The first look, before the key is given, is refused.
        assert [error for error in tab.errors if "401" not in error] == []


def test_two_adapters_and_the_base_answer_in_one_batch_as_peft_does(
    served: Served, runs: tuple[Run, Run], prompts: list[Any]
) -> None:
    """Compare token for token, after enough loads that no slot of the server is empty."""
    for number in range(1, 5):
        name = f"filler-{number}"
        adapter = scaled(runs[0].adapter, served.store.root.parent / name, 1 + number / 10)
        served.store.publish(adapter, name, report=None, by="test")
        assert served.text(f"{name}@1", prompts[0], max_tokens=1)
    wanted = {
        "triage@1": greedy(runs[0], prompts[:6]),
        "triage@2": greedy(runs[1], prompts[:6]),
        "tiny": greedy(None, prompts[:6]),
    }
    assert wanted["triage@1"] != wanted["triage@2"] != wanted["tiny"]

    def ask(job: tuple[str, int]) -> list[int]:
        model, number = job
        answer = served.chat(
            model,
            prompts[number],
            max_tokens=TOKENS,
            return_token_ids=True,
            llm_lora={"schema": "off"},
        )
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    jobs = [(model, number) for number in range(6) for model in wanted]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = dict(zip(jobs, pool.map(ask, jobs), strict=True))
    alone = {job: ask(job) for job in jobs}
    expected = {(model, number): wanted[model][number] for model, number in jobs}
    assert alone == expected
    assert together == expected


@dataclass(frozen=True)
class Seen:
    """One answer: times of request and end, the version that it names, its text."""

    began: float
    ended: float
    prompt: int
    version: int
    text: str


def test_nothing_is_lost_while_the_alias_moves(served: Served, prompts: list[Any]) -> None:
    """200 requests over 8 connections, half of them streamed, while the alias moves 20 times."""
    sample = prompts[:4]
    alone = {
        (number, version): served.text(f"triage@{version}", prompt, max_tokens=TOKENS)
        for number, prompt in enumerate(sample)
        for version in (1, 2)
    }
    assert all(alone[number, 1] != alone[number, 2] for number in range(4))
    moves = [(0.0, 0.0, 1)]
    left = iter(range(200))
    seen: list[Seen] = []
    lock = threading.Lock()
    over = threading.Event()

    def ask_on() -> None:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        with httpx.Client(base_url=served.url, timeout=120, headers=headers) as client:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                ask = _streamed if number % 2 else _whole
                began = time.monotonic()
                version, text = ask(client, sample[number % 4])
                one = Seen(began, time.monotonic(), number % 4, version, text)
                with lock:
                    seen.append(one)

    def move() -> None:
        random.seed(1)
        for count in range(20):
            began = time.monotonic()
            response = served.promote(2 - count % 2)
            assert response.status_code == 200, response.text
            moves.append((began, time.monotonic(), 2 - count % 2))
            # Until the next twentieth of the requests is done.
            while len(seen) < min(200, 9 * (count + 1)) and not over.is_set():
                time.sleep(random.uniform(0.01, 0.03))

    with ThreadPoolExecutor(9) as pool:
        askers = [pool.submit(ask_on) for _ in range(8)]
        mover = pool.submit(move)
        for one in askers:
            one.result()
        over.set()
        mover.result()
    assert len(seen) == 200 and len(moves) == 21
    assert {one.version for one in seen} == {1, 2}
    for one in seen:
        assert one.text == alone[one.prompt, one.version], one
        assert one.version in _live(moves, one), (one, moves)
    assert served.store.alias("triage").live == 1
    swaps = sorted(done - began for began, done, _ in moves[1:])
    print(f"promote: median {swaps[10] * 1000:.0f} ms, longest {swaps[-1] * 1000:.0f} ms")


def _live(moves: list[tuple[float, float, int]], one: Seen) -> set[int]:
    """Versions that were live at any time between start and end of a request."""
    ends = [done for _, done, _ in moves[1:]] + [float("inf")]
    return {
        version
        for (began, _, version), end in zip(moves, ends, strict=True)
        if began <= one.ended and end >= one.began
    }


def _body(prompt: Any, *, stream: bool) -> dict[str, Any]:
    return {
        "model": "triage",
        "messages": prompt,
        "temperature": 0,
        "max_tokens": TOKENS,
        "stream": stream,
    }


def _whole(client: httpx.Client, prompt: Any) -> tuple[int, str]:
    response = client.post("/v1/chat/completions", json=_body(prompt, stream=False))
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["llm_lora"]["version"], answer["choices"][0]["message"]["content"]


def _streamed(client: httpx.Client, prompt: Any) -> tuple[int, str]:
    body = _body(prompt, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    events = [json.loads(one) for one in data[:-1]]
    assert not any("error" in event for event in events)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    (judged,) = [event["llm_lora"] for event in events if "llm_lora" in event]
    return judged["version"], "".join(delta.get("content") or "" for delta in deltas)


def test_a_killed_server_comes_back_with_the_same_answers(
    served: Served, prompts: list[Any]
) -> None:
    assert served.promote(2).status_code == 200
    before = [served.text("triage", prompt, max_tokens=TOKENS) for prompt in prompts[:3]]
    alias, old = served.store.alias("triage"), served.processes()
    killed = served.server
    killed.kill()
    psutil.wait_procs(old, timeout=30)
    assert not any(map(runs_on, old[1:])), "no worker outlives the server"
    served.wait_ready()
    assert served.server.pid != killed.pid
    assert served.store.alias("triage") == alias
    after = [served.text("triage", prompt, max_tokens=TOKENS) for prompt in prompts[:3]]
    assert after == before


def test_500_connections_at_once_are_answered_or_told_to_come_back(
    served: Served, prompts: list[Any]
) -> None:
    body = {"model": "triage", "messages": prompts[0], "max_tokens": 1}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    limits = httpx.Limits(max_connections=None)

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=served.url, headers=headers, timeout=240, limits=limits
        ) as client:
            asked = (client.post("/v1/chat/completions", json=body) for _ in range(500))
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    counts = Counter(answer.status_code for answer in answers)
    assert counts.keys() <= {200, 429} and counts[200] >= 256, counts
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert served.text("triage", prompts[0], max_tokens=1)


def test_a_killed_launcher_leaves_no_process_behind_and_the_next_one_goes_on(
    served: Served, prompts: list[Any]
) -> None:
    before = [served.text("triage", prompt, max_tokens=TOKENS) for prompt in prompts[:3]]
    alias, children = served.store.alias("triage"), served.processes()
    assert len(children) >= 3
    os.kill(served.command.process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert [one.cmdline() for one in alive if runs_on(one)] == []
    with pytest.raises(httpx.TransportError):
        served.client.get("/health")
    again = serve(served.store, served.store.root.parent)
    try:
        again.wait_ready()
        assert again.store.alias("triage") == alias
        after = [again.text("triage", prompt, max_tokens=TOKENS) for prompt in prompts[:3]]
        assert after == before
    finally:
        again.command.process.terminate()
        again.command.finish(90)
