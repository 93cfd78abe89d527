"""Shared fixtures: a small recipe over the medical template that trains in seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.commands import Command, RunCommand
from support.places import ROOT, TEMPLATE

if TYPE_CHECKING:
    from support.browser import Page
    from support.picture_serving import Held

    from llm_lora.serving.painter import PictureServer
    from llm_lora.store.store import Store


# Tests must not depend on a model hub, and must not try to reach one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# TRL, once imported, silences every vLLM that is started afterwards; tests read its log.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")

RECIPE = """
task: text
name: small
base: tiny
data:
  train: train.jsonl
  held_out: held_out.jsonl
  schema: answer.schema.json
  system: Read the message and answer with the triage JSON.
train:
  epochs: 1
  learning_rate: 2.0e-3
  batch_size: 8
  max_tokens: 512
  evaluate_every: 4
generate:
  max_new_tokens: 48
  batch_size: 16
check:
  better_than_base: false
  better_than_baselines: false
"""


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a command that has run before, so that its modules exist as bytecode.

    The test environment may forbid Python to write bytecode; every start would then compile all.
    """
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("bytecode"))}


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 96 training pairs and 12 held-out ones: about a dozen steps."""
    folder = tmp_path_factory.mktemp("small")

    def copy(name: str, rows: list[str]) -> None:
        (folder / name).write_text("".join(rows))

    copy("train.jsonl", (TEMPLATE / "train.jsonl").read_text().splitlines(keepends=True)[:96])
    held_out = (TEMPLATE / "held_out.jsonl").read_text().splitlines(keepends=True)
    seen = [row for row in held_out if json.loads(row)["part"] == "seen"]
    unseen = [row for row in held_out if json.loads(row)["part"] == "unseen"]
    copy("held_out.jsonl", seen[:6] + unseen[:6])
    copy("answer.schema.json", [(TEMPLATE / "answer.schema.json").read_text()])
    copy("small.yaml", [RECIPE])
    return folder / "small.yaml"


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs `llm-lora` in this process: (exit code, stdout, stderr)."""
    from llm_lora import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llm-lora", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    monkeypatch.chdir(ROOT)
    return run


@pytest.fixture(scope="session")
def llm_lora() -> type[Command]:
    """Starts `llm-lora` with the given arguments."""
    return Command


@pytest.fixture(scope="session")
def small_run(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete, real run of the small recipe: NF4, QLoRA, both evaluations, report."""
    runs = tmp_path_factory.mktemp("runs")
    code, output = Command("train", small_recipe, "--runs", runs).finish()
    assert code == 0, output
    assert "Traceback" not in output
    (runs / "output.txt").write_text(output)
    return (runs / "small" / "latest").resolve()


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The browser tab that all playground tests share, in turn."""
    from support import browser

    with browser.browsing(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="session")
def picture_server() -> PictureServer:
    """The real picture server, with the embedded base."""
    from support import picture_serving

    return picture_serving.start()


@pytest.fixture
def held(picture_server: PictureServer) -> Iterator[Held]:
    """The server's painter, for tests that inspect it."""
    from support import picture_serving

    with picture_serving.holding(picture_server) as painter:
        yield painter


@pytest.fixture(scope="session")
def one_style(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one live picture adapter, `style`."""
    from support import picture_serving

    return picture_serving.one_style(tmp_path_factory.mktemp("one_style"))
