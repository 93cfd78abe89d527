"""Soundness of lint: with an enforceable schema, every complete constrained answer fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from support import lint_soundness
from support.places import ROOT, TESTS

from llm_lora.grammar.lint import lint
from llm_lora.grammar.matching import BACKENDS, Backend
from llm_lora.schema.answer import AnswerSchema


def measured(backend: str, made: int, answers: int, *more: str) -> dict[str, object]:
    """Run in a separate process, which ends with any hanging compiler of outlines-core."""
    command = [sys.executable, "-m", "support.lint_soundness", backend, "--made", str(made)]
    done = subprocess.run(
        [*command, "--answers", str(answers), *more],
        capture_output=True,
        text=True,
        check=True,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_schemas_by_hand(backend: str) -> None:
    found = measured(backend, 0, 10)
    assert found["unsound"] == []
    assert int(str(found["enforceable"])) >= 20 and int(str(found["told"])) >= 10


def test_the_measurement_finds_a_promise_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def credulous(schema: AnswerSchema, backend: Backend, **more: object) -> object:
        found = lint(schema, backend, **more)  # type: ignore[arg-type]
        return replace(found, enforceable=found.refused is None)

    monkeypatch.setattr(lint_soundness, "lint", credulous)
    unsound = lint_soundness.measure("vllm", 0)["unsound"]
    assert any(line.startswith("open:") for line in unsound), unsound


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_made_schemas(backend: str) -> None:
    """A part of the check in docs/schema.md, whose `--made 300` takes minutes and gigabytes."""
    found = measured(backend, 24, 4, "--tokens", "2")
    assert found["unsound"] == []
    assert int(str(found["schemas"])) >= 100
    assert int(str(found["enforceable"])) >= 30 and int(str(found["token_answers"])) >= 20
