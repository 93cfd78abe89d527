"""Comparison of two image runs, dimension by dimension, from their reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora import recipe as recipes
from llm_lora.report.image.document import DIMENSIONS
from llm_lora.run import Run

_TOLD = ("prompts", "embedder")
"""Keys of `judge` whose actual values are in the report, even if the recipe leaves them open."""


def compare(ours: Run, theirs: Run) -> dict[str, Any]:
    """Compare the figures of two runs.

    Returns:
        `ours` and `theirs`: the runs; `scores`: for each dimension the figures `ours` and
        `theirs` and their `difference`, None if one was not measured; `unlike`: the conditions of
        judging in which the runs differ, which make their figures less comparable.

    Raises:
        UserError: one of them has no report, or a file of it is damaged.
    """
    first, second = ours.read(ours.report), theirs.read(theirs.report)
    own, other = _judged_by(ours, first), _judged_by(theirs, second)
    return {
        "ours": str(ours.folder),
        "theirs": str(theirs.folder),
        "scores": {
            name: _row(first["scores"].get(name), second["scores"].get(name)) for name in DIMENSIONS
        },
        "unlike": [what for what, value in own.items() if other[what] != value],
    }


def _row(ours: float | None, theirs: float | None) -> dict[str, float | None]:
    difference = None if ours is None or theirs is None else round(ours - theirs, 6)
    return {"ours": ours, "theirs": theirs, "difference": difference}


def _judged_by(run: Run, report: dict[str, Any]) -> dict[str, Any]:
    """Everything that figures depend on besides the adapter."""
    recipe = recipes.load(run.recipe).model_dump(include={"judge", "generate"})
    return {
        "the base": report["base"]["digest"],
        "the embedder": report.get("embedder"),
        "the prompts": report.get("prompts"),
        # The yardsticks of fidelity and the style probe come from them.
        "the training pictures": _digests(run.dataset / "train.jsonl"),
        "the held-out pictures": _digests(run.dataset / "held_out.jsonl"),
        **{f"judge.{key}": value for key, value in recipe["judge"].items() if key not in _TOLD},
        "generate": recipe["generate"],
    }


def _digests(path: Path) -> list[str]:
    return sorted(json.loads(row)["sha256"] for row in files.read_text(path).split("\n") if row)
