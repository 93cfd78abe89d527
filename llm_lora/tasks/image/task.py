"""The image task: training, contents of its adapters, and evaluation by painted pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from llm_lora import engines, files, versions
from llm_lora import run as runs
from llm_lora.adapter import Adapter, Manifest, Origin
from llm_lora.adapter import folder as adapters
from llm_lora.data.image import PictureDataset
from llm_lora.progress import Fit, Watcher
from llm_lora.recipe.image import ImageRecipe
from llm_lora.report import RecipeIdentity
from llm_lora.report.image import AdapterIdentity, BaseIdentity, ImageReport
from llm_lora.report.image import building as picture_report
from llm_lora.report.image import compare as compare
from llm_lora.run import Run
from llm_lora.scores.image import Measurements
from llm_lora.scores.image import gates as picture_gates
from llm_lora.tasks.image.prepared import Prepared, base_of, prepare
from llm_lora.tasks.reopening import recipe_of, schema_of

__all__ = ["Prepared", "compare", "evaluate", "learn", "prepare", "reopen", "seal"]


def learn(prepared: Prepared, here: Run, watch: Watcher, *, resume: bool) -> Fit:
    """Train the adapter of a run.

    Raises:
        Interrupted: the user stopped it.
        UserError: the engine failed (see `engines.image.fit`).
    """
    fit: Fit = engines.load(prepared.recipe.task).fit(
        prepared.recipe,
        prepared.dataset,
        prepared.base,
        here.places,
        resume=resume,
        listener=watch.progress,
        tell=watch.say,
    )
    return fit


def seal(prepared: Prepared, here: Run, scores: dict[str, Any] | None = None) -> Adapter:
    """Complete the folders of the adapter and of the kept steps with what generation needs; then
    verify them from disk.
    """
    for folder in runs.steps_in(here.steps).values():
        _seal(prepared, folder, None)
    return _seal(prepared, here.adapter, scores)


def _seal(prepared: Prepared, folder: Path, scores: dict[str, Any] | None) -> Adapter:
    recipe, base, generate = prepared.recipe, prepared.base, prepared.recipe.generate
    schema = prepared.schema
    if schema is not None:
        files.write_text(folder / adapters.SCHEMA, schema.text)
    files.write_json(
        folder / adapters.MANIFEST,
        Manifest(
            name=recipe.name,
            task=recipe.task,
            digest=adapters.digest(folder),
            base=Origin(
                name=base.name,
                revision=base.revision,
                digest=base.digest,
                architecture=base.family,
                prediction=base.prediction,
            ),
            schema_digest=schema.digest if schema else None,
            trigger=recipe.data.trigger,
            sampling={
                "steps": generate.steps,
                "guidance": generate.guidance,
                "negative_prompt": generate.negative_prompt,
                "width": generate.width or prepared.resolution,
                "height": generate.height or prepared.resolution,
                "scheduler": generate.scheduler,
            },
            dataset_fingerprint=prepared.dataset.fingerprint,
            recipe_digest=recipe.digest(),
            scores=scores,
            versions=versions.installed(),
        ).to_json(),
    )
    return adapters.read(folder)


def evaluate(
    prepared: Prepared,
    here: Run,
    watch: Watcher,
    *,
    fit: Fit,
    started: float,
    store: Path = Path("store"),
) -> ImageReport:
    """Generate pictures with the adapter, measure the six dimensions, write the report.

    Raises:
        UserError: the adapter is damaged or belongs to another base, or memory ran out.
    """
    recipe, base = prepared.recipe, prepared.base
    adapter = adapters.read(here.adapter)
    adapters.require_base(adapter, base)
    engine = engines.load(recipe.task)
    watch.stage("Judging")
    judged = engine.judge(
        recipe,
        prepared.dataset,
        base,
        adapter=here.adapter,
        pictures=here.pictures,
        fit=fit,
        listener=watch.progress,
        tell=watch.say,
    )
    measured = Measurements.from_json(judged, "the engine", "update it")
    report = picture_report.build(
        recipe=RecipeIdentity(recipe.name, recipe.digest(), recipe.profile),
        base=BaseIdentity(base.name, base.digest, base.family),
        adapter=AdapterIdentity(
            digest=adapter.digest,
            rank=adapter.rank,
            alpha=adapter.alpha,
            modules=len(adapter.modules),
            bytes=(here.adapter / adapters.WEIGHTS).stat().st_size,
            trigger=recipe.data.trigger,
        ),
        held_out={"all": len(prepared.dataset.held_out)},
        measured=measured,
        gates=recipe.check.gates(),
        seconds=time.monotonic() - started,
        peak_memory_bytes=max(fit.peak_memory_bytes, engine.peak_memory_bytes()),
        schema=prepared.schema,
    )
    files.write_json(here.measurements, picture_gates.record(measured))
    picture_report.write(
        here.folder,
        report,
        recipe=recipe,
        dataset=prepared.dataset,
        fit=fit,
        samples=here.samples,
    )
    return report


def reopen(here: Run, *, unchanged: bool = True) -> Prepared:
    """Reopen the inputs of a trained run, read from its own folder.

    Args:
        here: the run.
        unchanged: require its picture files; otherwise only their metadata is read.

    Raises:
        UserError: training is not finished, the run is of another task, or the base or a file of
            the run is missing or changed.
    """
    recipe = recipe_of(
        here,
        ImageRecipe,
        other="this run is of task {task}, but this command needs an image run",
        fix="name a run of an image recipe; llm-lora runs lists them",
    )
    schema = schema_of(here.adapter)
    dataset = PictureDataset.read(here.dataset, unchanged=unchanged)
    return Prepared(recipe, base_of(recipe), schema, dataset)
