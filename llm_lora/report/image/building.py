"""The report of an image adapter, from its measurements to the files of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm_lora import files
from llm_lora.data.image import PictureDataset
from llm_lora.progress import Fit
from llm_lora.recipe.image import ImageRecipe
from llm_lora.report.document import RecipeIdentity
from llm_lora.report.image import page
from llm_lora.report.image.document import AdapterIdentity, BaseIdentity, ImageReport
from llm_lora.run import Run
from llm_lora.schema import AnswerSchema
from llm_lora.scores.image import DIMENSIONS, Measurements
from llm_lora.scores.image import gates as picture_gates


def build(
    *,
    recipe: RecipeIdentity,
    base: BaseIdentity,
    adapter: AdapterIdentity,
    held_out: Mapping[str, int],
    measured: Measurements,
    gates: Mapping[str, float],
    seconds: float,
    peak_memory_bytes: int,
    schema: AnswerSchema | None = None,
) -> ImageReport:
    """The report of measurements.

    Args:
        recipe, base, adapter: what was measured.
        held_out: the number of held-out pictures it was judged with.
        measured: the measurements.
        gates: dimension → lowest figure.
        seconds: the total time.
        peak_memory_bytes: the peak of the whole run.
        schema: bounds on the measurements.
    """
    outcomes = picture_gates.judge(gates, measured, schema)
    return ImageReport(
        recipe=recipe,
        base_identity=base,
        adapter_identity=adapter,
        held_out=held_out,
        dimensions=measured.dimensions,
        strengths=measured.strengths,
        embedder=measured.embedder,
        prompts=measured.prompts,
        scores={name: measured.scores.get(name) for name in DIMENSIONS},
        reasons=measured.reasons,
        gates=outcomes,
        passed=all(outcome.passed for outcome in outcomes),
        seconds=round(seconds, 1),
        peak_memory_bytes=peak_memory_bytes,
    )


def write(
    folder: Path,
    report: ImageReport,
    *,
    recipe: ImageRecipe,
    dataset: PictureDataset,
    fit: Fit,
    samples: Path,
) -> None:
    """Write `report.html` and, last, `report.json`.

    Args:
        folder: of the run.
        report: the result of `build`.
        recipe: the recipe of the run.
        dataset: the training pictures, and those set aside.
        fit: the result of training.
        samples: the folder of sample pictures from training.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    run = Run(folder)
    html = page.render(folder, report, recipe=recipe, dataset=dataset, fit=fit, samples=samples)
    files.write_text(run.page, html)
    files.write_json(run.report, report.to_json())
