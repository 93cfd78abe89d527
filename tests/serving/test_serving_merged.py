"""A merged model served in the place of base and adapter, behind the same layer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import Command
from support.fake_vllm import FakeVllm
from support.in_process import ask, chat
from support.layer_parts import config, publish
from support.made_runs import make_run
from support.served import TOKENS, Served, greedy

from llm_lora.adapter import folder as adapters
from llm_lora.data.text.dataset import Dataset
from llm_lora.errors import UserError
from llm_lora.machine import GIB, Hardware, free_port
from llm_lora.schema.answer import AnswerSchema
from llm_lora.serving.launch import text as preflight
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.launch.text import Wanted
from llm_lora.serving.layer.layer import Layer
from llm_lora.store.store import Store, Version

CPU = Hardware(cores=2, memory_bytes=16 * GIB)


def refused(**wanted: Any) -> str:
    with pytest.raises(UserError) as caught:
        preflight.examine(Wanted(port=free_port(), **wanted), CPU)
    return str(caught.value)


def test_merged_goes_with_one_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    for wanted in ({"sources": tuple(runs)}, {"sources": (runs[0],), "base": "tiny"}):
        assert "--merged needs exactly the one run" in refused(merged=tmp_path, **wanted)


def test_what_is_no_merged_model_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for folder in (tmp_path / "nowhere", run, run / "adapter"):
        assert "not a merged model" in refused(merged=folder, sources=(run,))


class Behind:
    """The layer before a merged model: version 1 of a store with two."""

    def __init__(self, folder: Path) -> None:
        store = Store(folder / "store")
        self.version, self.other = (publish(store, folder, "qa", seed) for seed in (1, 2))
        store.promote("qa", 1, by="test")
        self.server = FakeVllm()
        # A name that the stand-in accepts as a model of its own.
        self.server.adapters[self.version.served_name] = "merged"
        made = config(folder, base_name=self.version.served_name, merged=True)
        self.layer = Layer(self.server, made)


@pytest.fixture
def behind(tmp_path: Path) -> Behind:
    return Behind(tmp_path)


def test_the_version_answers_under_all_its_names_with_its_schema(behind: Behind) -> None:
    for name in ("qa", "qa@1", behind.version.served_name):
        got = asyncio.run(chat(behind.layer, name))
        assert got.status == 200 and got.json["llm_lora"]["version"] == 1
        body = behind.server.asked[-1][1]
        assert body["model"] == behind.version.served_name
        assert "json" in body["structured_outputs"]
    assert behind.server.loads == [] and behind.server.unloads == []


def test_no_other_version_answers(behind: Behind) -> None:
    got = asyncio.run(chat(behind.layer, "qa@2"))
    assert got.status == 404 and "it serves no other" in got.error["message"]
    assert asyncio.run(chat(behind.layer, "tiny")).status == 404


def test_the_list_of_adapters_has_that_version_alone(behind: Behind) -> None:
    (row,) = asyncio.run(ask(behind.layer, "GET", "/v1/adapters")).json["data"]
    assert [one["number"] for one in row["versions"]] == [1]


@pytest.fixture(scope="module")
def merged(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merging") / "merged"
    code, output = Command("merge", small_run, "--out", folder, "--no-measure").finish()
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def served(
    small_run: Path, merged: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    pytest.importorskip("vllm", reason="vLLM is not installed: make env installs it")
    port = free_port()
    options = ("--port", port, "--extra-vllm", "--dtype float32")
    command = Command("serve", small_run, "--merged", merged, *options)
    found = Served(command, Store(small_run / "serving" / "store"), f"http://127.0.0.1:{port}")
    try:
        found.wait_ready()
        yield found
    finally:
        command.process.terminate()
        command.finish(90)


@pytest.mark.slow
def test_the_merged_model_answers_token_for_token_as_transformers_does(
    served: Served, small_run: Path, merged: Path
) -> None:
    held_out = Dataset.read(small_run / "dataset").held_out
    prompts = [
        [{"role": message.role, "content": message.content} for message in example.prompt]
        for example in held_out[:6]
    ]
    answers = [
        served.chat(
            "small",
            prompt,
            max_tokens=TOKENS,
            return_token_ids=True,
            llm_lora={"schema": "off"},
        )["choices"][0]["token_ids"]
        for prompt in prompts
    ]
    assert answers == greedy(None, prompts, folder=merged)
    assert answers != greedy(None, prompts)


@pytest.mark.slow
def test_its_schema_is_enforced_without_asking(served: Served, small_run: Path) -> None:
    schema = AnswerSchema.load(small_run / "adapter" / adapters.SCHEMA)
    question = [{"role": "user", "content": "A headache for three days, fever 38.5."}]
    answer = served.chat("small", question, max_tokens=600)
    assert schema.judge(answer["choices"][0]["message"]["content"]).valid
    assert (answer["llm_lora"]["adapter"], answer["llm_lora"]["verdict"]) == ("small", "valid")


@pytest.mark.slow
def test_a_merged_model_of_another_run_or_a_changed_one_is_refused(
    small_run: Path, merged: Path, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other")
    assert "merged from an adapter other than that of" in refused(merged=merged, sources=(other,))
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in merged.iterdir():
        (changed / path.name).symlink_to(path)
    config_file = changed / "config.json"
    document = json.loads(config_file.read_text()) | {"rope_theta": 1.0}
    config_file.unlink()
    config_file.write_text(json.dumps(document))
    assert "a file of the merged model was changed" in refused(merged=changed, sources=(small_run,))


@pytest.mark.slow
def test_vllm_is_told_of_the_merged_model_alone(small_run: Path, merged: Path) -> None:
    plan = preflight.examine(Wanted(port=free_port(), sources=(small_run,), merged=merged), CPU)
    command = flags.command(plan)
    assert command[command.index("--model") + 1] == str(merged.resolve())
    assert "--enable-lora" not in command and "--worker-extension-cls" not in command
    version: Version = Store(plan.store).publish(
        plan.served[0].adapter.path, "small", report=plan.served[0].report, by="test"
    )
    assert plan.base_name == version.served_name
