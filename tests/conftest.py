"""Shared fixtures: a small recipe over the medical template that trains in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser import Page
    from picture_serving import Held

    from llm_lora.serving.picture_server import PictureServer
    from llm_lora.store import Store

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "data_templates" / "medical_qa"

RunCommand = Callable[..., tuple[int, str, str]]

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


class Command:
    """`llm-lora` as a separate process, as users run it."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_lora.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "160"},
        )

    def finish(self, timeout: float = 600) -> tuple[int, str]:
        """The exit code and the whole output."""
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output

    def wait_until(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        """Wait until the command has done something; fails with its output if it ends first."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"ended early:\n{self.process.communicate()[0]}")
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"took too long:\n{self.process.communicate()[0]}")
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Interrupt it, like Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill it, like a power failure."""
        self.process.kill()
        self.process.wait()


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
    import browser

    with browser.browsing(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="session")
def picture_server() -> PictureServer:
    """The real picture server, with the embedded base."""
    import picture_serving

    return picture_serving.start()


@pytest.fixture
def held(picture_server: PictureServer) -> Iterator[Held]:
    """The server's painter, for tests that inspect it."""
    import picture_serving

    with picture_serving.holding(picture_server) as painter:
        yield painter


@pytest.fixture(scope="session")
def one_style(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one live picture adapter, `style`."""
    import picture_serving

    return picture_serving.one_style(tmp_path_factory.mktemp("one_style"))
