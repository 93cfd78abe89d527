"""Comparison of two image runs, dimension by dimension, from their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_lora import files
from llm_lora import recipe as recipes
from llm_lora.record import Record
from llm_lora.report.document import Versus
from llm_lora.report.image.document import ImageReport
from llm_lora.run import Run
from llm_lora.scores.image import DIMENSIONS

_TOLD = ("prompts", "embedder")
"""Keys of `judge` whose actual values are in the report, even if the recipe leaves them open."""


@dataclass(frozen=True)
class Row(Record):
    """A dimension's two figures and their difference, None if one was not measured."""

    ours: float | None
    theirs: float | None
    difference: float | None


@dataclass(frozen=True)
class ImageVersus(Versus):
    """Two runs, dimension by dimension.

    `unlike` are the conditions of judging in which they differ, which make their figures less
    comparable.
    """

    scores: Mapping[str, Row]
    unlike: tuple[str, ...]


def compare(ours: Run, theirs: Run) -> ImageVersus:
    """Compare the figures of two runs.

    Raises:
        UserError: one of them has no report, or a file of it is damaged.
    """
    first, second = ImageReport.of(ours), ImageReport.of(theirs)
    own, other = _judged_by(ours, first), _judged_by(theirs, second)
    return ImageVersus(
        ours=str(ours.folder),
        theirs=str(theirs.folder),
        scores={name: _row(first.scores.get(name), second.scores.get(name)) for name in DIMENSIONS},
        unlike=tuple(what for what, value in own.items() if other[what] != value),
    )


def _row(ours: float | None, theirs: float | None) -> Row:
    difference = None if ours is None or theirs is None else round(ours - theirs, 6)
    return Row(ours, theirs, difference)


def _judged_by(run: Run, report: ImageReport) -> dict[str, object]:
    """Everything that figures depend on besides the adapter."""
    recipe = recipes.load(run.recipe).model_dump(include={"judge", "generate"})
    return {
        "the base": report.base_identity.digest,
        "the embedder": report.embedder,
        "the prompts": report.prompts,
        # The yardsticks of fidelity and the style probe come from them.
        "the training pictures": _digests(run.dataset / "train.jsonl"),
        "the held-out pictures": _digests(run.dataset / "held_out.jsonl"),
        **{f"judge.{key}": value for key, value in recipe["judge"].items() if key not in _TOLD},
        "generate": recipe["generate"],
    }


def _digests(path: Path) -> list[str]:
    return sorted(json.loads(row)["sha256"] for row in files.read_text(path).split("\n") if row)
