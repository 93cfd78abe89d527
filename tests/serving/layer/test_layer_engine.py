"""The layer around a real vLLM engine: behaviour that no stand-in shows."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import hostile_requests
from support.adapter_folders import lora, report_of, write_adapter
from support.layer_parts import config

from llm_lora import machine as plan
from llm_lora.base import text as bases
from llm_lora.schema.answer import AnswerSchema
from llm_lora.serving.launch import vllm as flags
from llm_lora.store.store import Store

pytest.importorskip("vllm", reason="vLLM is not installed: make env installs it")
pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "A headache for three days, fever 38.5."}]


@dataclass
class Server:
    """A running server and the store that it serves from."""

    address: str
    store: Store
    folder: Path

    def chat(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": QUESTION, **more}
        return httpx.post(self.address + CHAT, json=body, timeout=120)

    def publish(self, name: str, seed: int, scale: float, *, live: bool = False) -> int:
        """A version of random weights with strength `scale`."""
        weights = lora(bases.resolve("tiny"), seed=seed)
        scaled = {key: value * scale for key, value in weights.items()}
        folder = write_adapter(self.folder / f"{name}-{seed}", tensors=scaled)
        version = self.store.publish(folder, name, report=report_of(folder), by="test")
        if live:
            self.store.promote(name, version.number, by="test")
        return version.number

    def running(self) -> float:
        """Number of requests that the engine is working on."""
        text = httpx.get(self.address + "/metrics", timeout=30).text
        return sum(map(float, re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", text, re.M)))


def wait_for(condition: Callable[[], bool], otherwise: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("engine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Server(f"http://127.0.0.1:{port}", Store(folder / "store"), folder)
    found.publish("qa", 1, 0.05, live=True)
    config(folder, max_resident=2).write(folder / "serving.json")
    # The same flags that `llm-lora serve` uses.
    hardware = plan.detect()
    command = flags.engine(bases.resolve("tiny"), "tiny", "127.0.0.1", port, 1024, hardware)
    command += [*flags.lora(3, [4], hardware), "--middleware", flags.LAYER]
    environment = flags.environment(os.environ, folder / "serving.json")
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            deadline = time.monotonic() + 400
            while True:
                try:
                    if httpx.get(found.address + "/ready", timeout=30).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                late = time.monotonic() > deadline
                assert process.poll() is None and not late, log.read_text()[-4000:]
                time.sleep(0.5)
            yield found
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def test_the_live_version_is_loaded_and_probed_before_anybody_asks(server: Server) -> None:
    (adapter,) = httpx.get(server.address + "/v1/adapters", timeout=30).json()["data"]
    assert [row["loaded"] for row in adapter["versions"]] == [True]


def test_an_answer_fits_the_schema_without_the_client_asking(server: Server) -> None:
    schema = AnswerSchema.load(server.store.version("qa").folder / "answer.schema.json")
    for seed in range(3):
        got = server.chat("qa", temperature=1.0, seed=seed, max_tokens=300)
        answer = got.json()
        if answer["choices"][0]["finish_reason"] == "stop":
            assert schema.judge(answer["choices"][0]["message"]["content"]).valid
            assert got.headers["x-llm-lora-verdict"] == "valid"
        else:
            assert got.headers["x-llm-lora-verdict"] == "truncated"


def test_the_layers_constraint_is_what_response_format_would_be(server: Server) -> None:
    schema = AnswerSchema.load(server.store.version("qa").folder / "answer.schema.json")
    asked = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema.document, "strict": True},
    }
    texts = {
        server.chat("qa", seed=1, max_tokens=100, **more).json()["choices"][0]["message"]["content"]
        for more in ({}, {"response_format": asked})
    }
    assert len(texts) == 1


def test_a_version_without_effect_is_refused_by_the_probe(server: Server) -> None:
    number = server.publish("qa", 2, 1e-15)
    server.store.promote("qa", number, by="test")
    got = server.chat("qa", max_tokens=5)
    assert got.status_code == 200 and got.json()["llm_lora"]["version"] == 1
    alias = server.store.alias("qa")
    assert alias.live == 1 and "exactly like the base" in alias.refused[number]
    named = server.chat(f"qa@{number}", max_tokens=5)
    assert named.status_code == 422 and f"qa@{number}" in named.json()["error"]["message"]


def test_a_client_that_hangs_up_ends_the_work_in_the_engine(server: Server) -> None:
    body = {"model": "qa", "messages": QUESTION, "llm_lora": {"schema": "off"}}
    body |= {"max_tokens": 900, "min_tokens": 900, "ignore_eos": True}
    with httpx.stream(
        "POST", server.address + CHAT, json={**body, "stream": True}, timeout=60
    ) as stream:
        lines = stream.iter_lines()  # kept: once its generator is collected, httpx hangs up
        next(lines)
        wait_for(lambda: server.running() == 1, "the engine does not say that it works")
    wait_for(lambda: server.running() == 0, "a streamed answer goes on for nobody")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.address + CHAT, json=body, timeout=0.3)
    wait_for(lambda: server.running() == 0, "a whole answer goes on for nobody")


def test_streams_survive_a_promotion_and_the_next_request_gets_the_new_version(
    server: Server,
) -> None:
    number = server.publish("qa", 3, 0.05)
    events: list[dict[str, Any]] = []
    begun = threading.Event()

    def read() -> None:
        body = {"model": "qa", "messages": QUESTION, "stream": True, "max_tokens": 400}
        body |= {"llm_lora": {"schema": "off"}, "ignore_eos": True}
        with httpx.stream("POST", server.address + CHAT, json=body, timeout=120) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    events.append(json.loads(line.removeprefix("data: ")))
                    begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    server.store.promote("qa", number, by="test")
    began = time.monotonic()
    got = server.chat("qa", max_tokens=1)
    seconds = time.monotonic() - began
    reader.join()
    assert got.json()["llm_lora"]["version"] == number
    old = server.store.version("qa", 1).served_name
    assert {event["model"] for event in events} == {old}
    assert events[-1]["choices"] == [] or events[-1]["choices"][0]["finish_reason"] == "length"
    assert seconds < 5
    print(f"promotion to first answer: {seconds * 1000:.0f} ms")


def test_closed_routes_are_closed_on_the_real_server(server: Server) -> None:
    for path in ("/v1/load_lora_adapter", "/adapters", "/invocations", "/detokenize"):
        got = httpx.post(server.address + path, json={"model": "qa"}, timeout=30)
        assert got.status_code == 404 and got.json()["error"]["code"] == "unknown_route"


def test_seeds_are_kept_while_prompts_are_worked_on_in_parts(server: Server) -> None:
    """More tokens at once than one engine step accepts; on a CPU it kills plain vLLM."""

    def ask(number: int) -> int:
        text = [{"role": "user", "content": f"{number} " + "cough " * 200}]
        return server.chat("qa", messages=text, temperature=1.0, seed=3, max_tokens=4).status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(16))) == {200}


def test_no_request_ends_the_engine(server: Server) -> None:
    """Each runs beside another and beside a stream: rows of a batch can harm each other."""
    over = threading.Event()

    def stream() -> None:
        body = {"model": "qa", "messages": QUESTION, "stream": True, "max_tokens": 200}
        body |= {"llm_lora": {"schema": "off"}, "ignore_eos": True}
        while not over.is_set():
            with httpx.stream("POST", server.address + CHAT, json=body, timeout=60) as answer:
                answer.read()

    def ask(item: tuple[str, dict[str, Any], str]) -> str | None:
        path, fields, model = item
        body = {"model": model, "max_tokens": 8, **fields}
        if path == CHAT:
            body.setdefault("messages", QUESTION)
        got = httpx.post(server.address + path, json=body, timeout=60)
        # The engine silently gives up on some client grammars midway.
        failed = got.status_code >= 500 and "structured_outputs" not in fields
        return f"{got.status_code} {path} {fields}"[:200] if failed else None

    rows = [(CHAT, hostile_requests.CHAT), ("/v1/completions", hostile_requests.COMPLETION)]
    rows.append(("/tokenize", hostile_requests.TOKENIZE))
    items = [
        (path, fields, model)
        for path, requests in rows
        for fields in requests
        for model in ("qa", "tiny")
    ]
    background = threading.Thread(target=stream)
    background.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            failed = [one for one in pool.map(ask, items) if one]
    finally:
        over.set()
        background.join()
    assert httpx.get(server.address + "/health", timeout=30).status_code == 200
    assert server.chat("qa", max_tokens=5).status_code == 200
    wait_for(lambda: server.running() == 0, "something goes on for nobody")
    assert failed == [], "\n".join(failed)
