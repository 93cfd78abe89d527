"""The image task: base, dataset, training, adapter folder and report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora import engines, files, versions
from llm_lora import recipe as recipes
from llm_lora import run as runs
from llm_lora.adapter import Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.webui import files as lora_files
from llm_lora.base import PictureBase
from llm_lora.base import image as picture_base
from llm_lora.data.image import PictureDataset
from llm_lora.data.image import dataset as pictures
from llm_lora.errors import UserError
from llm_lora.progress import Fit, Watcher
from llm_lora.recipe.image import ImageRecipe
from llm_lora.report import RecipeIdentity
from llm_lora.report.image import AdapterIdentity, BaseIdentity, ImageReport
from llm_lora.report.image import building as picture_report
from llm_lora.report.image import compare as compare
from llm_lora.run import Run
from llm_lora.schema import AnswerSchema
from llm_lora.scores.image import Measurements
from llm_lora.scores.image import gates as picture_gates
from llm_lora.vision import judges
from llm_lora.weights import header


@dataclass(frozen=True)
class Prepared:
    """An image recipe with everything that it names, read and checked."""

    recipe: ImageRecipe
    base: PictureBase
    schema: AnswerSchema | None
    dataset: PictureDataset

    @property
    def resolution(self) -> int:
        """Side in pixels of the square size of training."""
        return self.recipe.data.resolution or self.base.resolution

    def inputs(self) -> dict[str, str | None]:
        """Digests of all inputs of a run."""
        start = self.recipe.train.start_from
        return {
            "dataset": self.dataset.fingerprint,
            "order of pictures": self.dataset.order,
            "base": self.base.digest,
            "schema": self.schema.digest if self.schema else None,
            "start_from": header.sampled_sha256(lora_files.weights_file(start)) if start else None,
        }


def prepare(recipe: ImageRecipe) -> Prepared:
    """Find the base, read and check the pictures; no heavy import.

    Raises:
        UserError: any problem with them.
    """
    try:
        base = _base(recipe)
        schema = _schema(recipe)
        judges.find(recipe.judge)
        if recipe.train.start_from is not None:
            _require_start(recipe.train.start_from)
    except UserError as error:
        # Unreadable folders are reported together with it, not at the next attempt.
        raise UserError([*error.problems, *pictures.unreadable(recipe.data)]) from None
    resolution = recipe.data.resolution or base.resolution
    dataset = pictures.prepare(
        recipe,
        resolution,
        tokenizer=base.config / "tokenizer",
        learned=_learned(recipe.train.start_from),
    )
    return Prepared(recipe, base, schema, dataset)


def _schema(recipe: ImageRecipe) -> AnswerSchema | None:
    """The bounds that measurements must fit."""
    path = recipe.data.answer_schema
    if path is None:
        return None
    schema = AnswerSchema.load(path)
    picture_gates.require_known(schema)
    return schema


def _base(recipe: ImageRecipe) -> PictureBase:
    return picture_base.resolve(recipe.base, recipe.revision, prediction=recipe.train.prediction)


def _require_start(start: Path) -> None:
    """Require weights to start from.

    Raises:
        UserError: there are none, or they are pickled.
    """
    path = lora_files.weights_file(start)
    if not path.is_file():
        raise UserError(
            f"train.start_from: no {adapters.WEIGHTS} here" if start.is_dir()
            else "train.start_from: no such folder or file",
            where=str(start),
            fix="name the folder adapter/ of a run, or a .safetensors file",
        )  # fmt: skip
    if path.suffix != ".safetensors":
        raise UserError(
            f"train.start_from: pickled weights ({path.suffix}), which may run code on loading",
            where=str(start),
            fix="name a .safetensors file",
        )


def _learned(start: Path | None) -> frozenset[str]:
    """Digests of the pictures that an adapter learned, if it is in its run's folder."""
    homes = (start.parent, start.parent.parent) if start is not None and start.is_dir() else ()
    for home in homes:
        folder = Run(home).dataset
        if (folder / pictures.CHECK).is_file():
            return frozenset(
                one.sha256 for one in PictureDataset.read(folder, unchanged=False).train
            )
    return frozenset()


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
        adapter=here.adapter,
        checkpoints=here.checkpoints,
        metrics=here.metrics,
        tensorboard=here.folder / "tensorboard",
        samples=here.samples,
        steps=here.steps,
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
        {
            "format": 1,
            "name": recipe.name,
            "task": recipe.task,
            "digest": adapters.digest(folder),
            "base": {
                "name": base.name,
                "revision": base.revision,
                "digest": base.digest,
                "architecture": base.family,
                "prediction": base.prediction,
            },
            "schema_digest": schema.digest if schema else None,
            "trigger": recipe.data.trigger,
            "sampling": {
                "steps": generate.steps,
                "guidance": generate.guidance,
                "negative_prompt": generate.negative_prompt,
                "width": generate.width or prepared.resolution,
                "height": generate.height or prepared.resolution,
                "scheduler": generate.scheduler,
            },
            "dataset_fingerprint": prepared.dataset.fingerprint,
            "recipe_digest": recipe.digest(),
            "scores": scores,
            "versions": versions.installed(),
        },
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
    here.require_trained()
    recipe = recipes.load(here.recipe)
    if not isinstance(recipe, ImageRecipe):
        raise UserError(
            f"this run is of task {recipe.task}, but this command needs an image run",
            where=str(here.folder),
            fix="name a run of an image recipe; llm-lora runs lists them",
        )
    path = here.adapter / adapters.SCHEMA
    schema = AnswerSchema.load(path) if path.is_file() else None
    dataset = PictureDataset.read(here.dataset, unchanged=unchanged)
    return Prepared(recipe, _base(recipe), schema, dataset)
