"""Train what you serve: the tiny base and a run's adapter in a real vLLM server."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.data.text.dataset import Dataset
from llm_lora.engines.text import engine as text
from llm_lora.machine import free_port
from llm_lora.schema.answer import AnswerSchema
from llm_lora.serving.measure import trial

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


@contextmanager
def running(model: Path, name: str, folder: Path, *flags: str) -> Iterator[Server]:
    """Plain vLLM, without anything of ours; fp32, so that near ties fall alike in both programs."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    command += ["--dtype", "float32", "--enforce-eager", *flags]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    found = Server(port)
    with trial.running(command, environment, found.address, folder / "log.txt"):
        yield found


@pytest.fixture(scope="module")
def server(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--enable-lora", "--max-lora-rank", "16"]
    flags += ["--lora-modules", f"small={small_run / 'adapter'}"]
    flags += [
        "--structured-outputs-config",
        '{"backend":"guidance","disable_any_whitespace":true}',
    ]
    with running(
        bases.resolve("tiny").path, "tiny", tmp_path_factory.mktemp("vllm"), *flags
    ) as found:
        yield found


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


def test_the_adapter_answers_token_for_token_as_in_our_engine(
    server: Server, small_run: Path
) -> None:
    held_out = Dataset.read(small_run / "dataset").held_out
    base = bases.resolve("tiny")
    # The server's form: the adapter over the base as it was published, not in 4 bits.
    answerer = text.Answerer(
        base, Chat.load(base.path), adapter=small_run / "adapter", bits=16, precision="fp32"
    )
    ours = answerer.answer([example.prompt for example in held_out], text.Sampling(48))
    differs_from_base = 0
    for example, answer in zip(held_out, ours, strict=True):
        body = {"messages": as_json(example.prompt), "temperature": 0, "max_tokens": 48}
        adapted, bare = (
            server.ask("/v1/chat/completions", {"model": name, **body})["choices"][0]
            for name in ("small", "tiny")
        )
        served = adapted["message"]["content"]
        assert served == answer.text
        differs_from_base += served != bare["message"]["content"]
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
