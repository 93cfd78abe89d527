"""The benchmarks start, and what they and the pretraining take from the project is there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.module_names import is_module, names
from support.places import ROOT

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
SCRIPTS = [*BENCHMARKS, *sorted((ROOT / "pretraining").rglob("*.py"))]
OURS = {"llm_lora", "pretraining"}

HELP = """
import contextlib, io, runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, script
    assert said.getvalue().startswith("usage:"), script
    print(script)
"""


def missing(code: str) -> list[str]:
    """The names that a script takes from the project's modules, and that are not there."""
    tree = ast.parse(code)
    held: dict[str, str] = {}
    lost = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            for one in node.names:
                inner = f"{node.module}.{one.name}"
                if is_module(inner):
                    held[one.asname or one.name] = inner
                elif one.name not in names(node.module or ""):
                    lost.append(inner)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = held.get(node.value.id)
            inner = f"{module}.{node.attr}"
            if module and node.attr not in names(module) and not is_module(inner):
                lost.append(inner)
    return lost


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_takes_from_the_project_is_there(script: Path) -> None:
    assert missing(script.read_text()) == []


def test_a_name_that_has_moved_is_found_missing() -> None:
    code = """
from llm_lora import files, pipeline
from llm_lora.run import Run, Stroll
from llm_lora.engines.text import engine
from llm_lora.walk import step
files.read_text, pipeline.seal, engine.fit, engine.fidget, Run.name
"""
    assert missing(code) == [
        "llm_lora.run.Stroll",
        "llm_lora.walk.step",
        "llm_lora.pipeline.seal",
        "llm_lora.engines.text.engine.fidget",
    ]


def test_every_benchmark_says_how_it_is_used() -> None:
    """All in one process, which imports the project once."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, *map(str, BENCHMARKS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*map(str, BENCHMARKS)]
