"""Train what you serve: the tiny base and a run's adapter in a real vLLM server."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_lora import base as bases
from llm_lora.chat import Chat
from llm_lora.dataset import Dataset
from llm_lora.schema import AnswerSchema

pytest.importorskip("vllm", reason="vLLM is not installed: make env installs it")
pytestmark = pytest.mark.slow


class Server:
    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            self.address + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        answer: dict[str, Any] = json.loads(text) if text else {}
        return answer


@pytest.fixture(scope="module")
def server(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(bases.resolve("tiny").path), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    command += ["--enforce-eager", "--enable-lora", "--max-lora-rank", "16"]
    command += ["--lora-modules", f"small={small_run / 'adapter'}"]
    command += [
        "--structured-outputs-config",
        '{"backend":"guidance","disable_any_whitespace":true}',
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            found = Server(port)
            deadline = time.monotonic() + 400
            while True:
                try:
                    found.ask("/health")
                    break
                except (OSError, AssertionError):
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


def messages(run: Path, count: int) -> list[Any]:
    return [example.prompt for example in Dataset.read(run / "dataset").held_out[:count]]


def as_json(prompt: Any) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt]


def test_the_server_builds_the_token_ids_that_training_used(
    server: Server, small_run: Path
) -> None:
    chat = Chat.load(bases.resolve("tiny").path)
    for prompt in messages(small_run, 12):
        served = server.ask("/tokenize", {"model": "small", "messages": as_json(prompt)})
        assert served["tokens"] == chat.prompt_ids(prompt)


def test_the_adapter_answers_as_it_did_in_the_report_and_not_as_the_base(
    server: Server, small_run: Path
) -> None:
    rows = [json.loads(line) for line in (small_run / "answers.jsonl").open(encoding="utf-8")]
    reported = {
        row["id"]: row["answer"]
        for row in rows
        if (row["model"], row["form"]) == ("adapter", "unconstrained")
    }
    held_out = Dataset.read(small_run / "dataset").held_out
    alike, length, differs_from_base = 0, 0, 0
    for example in held_out:
        body = {"messages": as_json(example.prompt), "temperature": 0, "max_tokens": 48}
        adapter, base = (
            server.ask("/v1/chat/completions", {"model": name, **body})["choices"][0]
            for name in ("small", "tiny")
        )
        text = adapter["message"]["content"]
        pairs = zip(text, reported[example.id], strict=False)
        alike += sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        length += len(reported[example.id])
        differs_from_base += text != base["message"]["content"]
    # bf16 sums differ between the two programs, so near ties may fall otherwise later on.
    assert alike >= length * 0.7
    assert differs_from_base == len(held_out)


def test_the_servers_constraint_gives_answers_that_fit_the_schema(
    server: Server, small_run: Path
) -> None:
    schema = AnswerSchema.load(small_run / "adapter" / "answer.schema.json")
    for prompt in messages(small_run, 3):
        answer = server.ask(
            "/v1/chat/completions",
            {
                "model": "small",
                "messages": as_json(prompt),
                "temperature": 0,
                "max_tokens": 600,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": schema.document},
                },
            },
        )["choices"][0]
        assert answer["finish_reason"] == "stop"
        assert schema.judge(answer["message"]["content"]).valid
