"""The shipped recipe for a style, whole: trained, judged, and looked at by another classifier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.long]


def run(*command: object, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LLM_LORA_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that `llm-lora train recipes/style_lora.yaml` leaves on a machine without a GPU."""
    folder = tmp_path_factory.mktemp("style")
    recipe = ROOT / "recipes" / "style_lora.yaml"
    command = ("llm_lora.cli", "train", recipe, "--profile", "cpu", "--runs", folder / "runs")
    done = run(*command, cache=folder / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "runs" / "style_lora" / "latest").resolve()


def test_it_passes_its_own_bounds(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    assert report["passed"] and report["gates"]
    assert all(score is not None for score in report["scores"].values())
    styles = [row["style"] for row in report["strengths"] if row["strength"] <= 1]
    assert styles == sorted(styles) and styles[0] < 0.2 and styles[-1] > 0.6


def test_a_classifier_of_drawn_styles_finds_the_style(made: Path) -> None:
    """The classifier learned from drawings alone; the bounds are the script's own."""
    done = run(
        "benchmarks.style_strength", made, "--json", cache=made / "cache"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["strength"]: row for row in json.loads(done.stdout)["strengths"]}
    assert rows[0.8]["taken"] > rows[0.4]["taken"] and rows[0.8]["style"] > 10 * rows[0.0]["style"]
