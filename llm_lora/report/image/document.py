"""Reports of image adapters: measurements → `report.json` and `report.html`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.data.image import PictureDataset
from llm_lora.progress import Fit
from llm_lora.recipe.image import ImageRecipe
from llm_lora.report.image import page as picture_page
from llm_lora.schema import AnswerSchema
from llm_lora.scores.image import gates as picture_gates

REPORT = "report.json"
PAGE = "report.html"

DIMENSIONS = picture_gates.DIMENSIONS
"""The dimensions in which an adapter is judged, in the order of the report."""


def build(
    *,
    recipe: Mapping[str, Any],
    base: Mapping[str, Any],
    adapter: Mapping[str, Any],
    held_out: Mapping[str, int],
    measured: Mapping[str, Any],
    gates: Mapping[str, float],
    seconds: float,
    peak_memory_bytes: int,
    schema: AnswerSchema | None = None,
) -> dict[str, Any]:
    """The document of `report.json`.

    Args:
        recipe: its `name`, `digest` and `profile`.
        base: its `name`, `digest` and `family`.
        adapter: its `digest`, `rank`, `alpha`, `modules` (how many), `bytes` and `trigger`.
        held_out: the number of held-out pictures it was judged with.
        measured: under `scores` a figure for each dimension, None where it could not be measured,
            under `reasons` why not; under `dimensions` the details of each (`name`, `method`,
            `source`, `picture` as a path from the run's folder, `shows`, `facts`, `findings`),
            under `strengths` rows of `strength`, `change`, `style`, `alignment`; other keys are
            kept as they are.
        gates: dimension → lowest figure.
        seconds: the total time.
        peak_memory_bytes: the peak of the whole run.
        schema: bounds on the measurements.
    """
    reasons = measured.get("reasons", {})
    scores = {name: measured["scores"].get(name) for name in DIMENSIONS}
    outcomes = picture_gates.judge(gates, measured, schema)
    return {
        "recipe": dict(recipe),
        "base": dict(base),
        "adapter": dict(adapter),
        "held_out": dict(held_out),
        **{key: value for key, value in measured.items() if key not in ("scores", "reasons")},
        "scores": scores,
        "reasons": dict(reasons),
        "gates": outcomes,
        "passed": all(outcome["passed"] for outcome in outcomes),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory_bytes,
    }


def write(
    folder: Path,
    document: Mapping[str, Any],
    *,
    recipe: ImageRecipe,
    dataset: PictureDataset,
    fit: Fit,
    samples: Path,
) -> None:
    """Write `report.html` and, last, `report.json`.

    Args:
        folder: of the run.
        document: the result of `build`.
        recipe: the recipe of the run.
        dataset: the training pictures, and those set aside.
        fit: the result of training.
        samples: the folder of sample pictures from training.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    html = picture_page.render(
        folder, document, recipe=recipe, dataset=dataset, fit=fit, samples=samples
    )
    files.write_text(folder / PAGE, html)
    files.write_json(folder / REPORT, document)
