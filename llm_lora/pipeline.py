"""The training pipeline: recipe → dataset → run → fit → adapter → report → manifest."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path

from llm_lora import files, run, versions
from llm_lora.errors import UserError
from llm_lora.progress import Fit, Watcher
from llm_lora.recipe import AnyRecipe
from llm_lora.report import Report
from llm_lora.run import Run
from llm_lora.tasks import AnyPrepared, Steps, steps


def prepare(recipe: AnyRecipe) -> AnyPrepared:
    """Read and check a recipe's base, schema and data, without heavy imports.

    Raises:
        UserError: a mistake in any of them.
    """
    return steps.of(recipe.task).prepare(recipe)


def train(
    recipe: AnyRecipe,
    watch: Watcher,
    *,
    root: Path = Path("runs"),
    store: Path = Path("store"),
    resume: bool = False,
    only: Path | None = None,
) -> Run:
    """Run the whole pipeline; stages that an interrupted run has finished are not repeated.

    Args:
        root: the folder of all runs.
        store: published adapters, for recipes that compare with the live one.
        resume: continue the newest unfinished run of this recipe.
        only: the only run that may be continued, as named by `resume_from_checkpoint`.

    Raises:
        Interrupted: the user stopped it; `resume=True` continues.
        UserError: a mistake in recipe, data or machine.
    """
    started = time.monotonic()
    task = steps.of(recipe.task)
    watch.stage("Checking data")
    prepared = task.prepare(recipe)
    watch.checked(recipe.task, prepared.dataset)
    if resume:
        asked_by = "--resume" if only is None else "resume_from_checkpoint"
        here = run.unfinished(root, recipe.name, recipe.to_yaml, asked_by)
    else:
        here = run.create(root, recipe.name, recipe.to_yaml)
    if only is not None and here.folder != only.resolve():
        raise UserError(
            f"the newest unfinished run of {recipe.name} is another one: {here.folder}",
            where=str(only),
            fix="leave out resume_from_checkpoint, and use --resume",
        )
    with here.claimed():
        _begin(prepared, here)
        watch.began(here)

        watch.stage("Training")
        fit = _learn(task, prepared, here, watch, resume=resume)
        task.seal(prepared, here)
        evaluate(prepared, here, watch, fit=fit, started=started, store=store)
        here.become_latest()
    return here


def _begin(prepared: AnyPrepared, here: Run) -> None:
    """Write the dataset and the digests of the inputs, which a resumed run must match.

    Raises:
        UserError: data, base or another input has changed since the run was interrupted.
    """
    inputs = prepared.inputs()
    if here.inputs.is_file():
        before = here.read(here.inputs)
        changed = [name for name, digest in inputs.items() if before.get(name) != digest]
        if changed:
            raise UserError(
                f"changed since this run was interrupted: {', '.join(changed)}",
                where=str(here.folder),
                fix="undo the change, or start a new run without --resume",
            )
    # Written again for a resumed run, because the same pictures may have moved.
    prepared.dataset.write(here.dataset)
    files.write_json(here.inputs, inputs)


def _learn(task: Steps, prepared: AnyPrepared, here: Run, watch: Watcher, *, resume: bool) -> Fit:
    # fit.json is written only after training has ended, so with it the adapter is complete, and an
    # interruption can only have hit the evaluation. Without it, training resumes from a checkpoint.
    if here.fit.is_file():
        watch.say("training had finished already; using its adapter")
        return Fit.from_json(here.read(here.fit), here.fit)
    fit = task.learn(prepared, here, watch, resume=resume)
    files.write_json(here.fit, asdict(fit))
    return fit


def reopen(here: Run) -> AnyPrepared:
    """The inputs of a trained run, read from its own folder.

    Raises:
        UserError: training is not finished, or the base or a file of the run is missing or changed.
    """
    return steps.of(here.task).reopen(here)


def evaluate(
    prepared: AnyPrepared,
    here: Run,
    watch: Watcher,
    *,
    fit: Fit,
    started: float,
    store: Path = Path("store"),
) -> Report:
    """Evaluate the adapter, write the report, store its scores with it, and finish the run.

    Args:
        started: the start of the command on the clock of `time.monotonic`.
        store: published adapters, for recipes that compare with the live one.

    Raises:
        UserError: the adapter is damaged or belongs to another base, or memory ran out.
    """
    # The run does not count as finished while its files are rewritten.
    here.manifest.unlink(missing_ok=True)
    task = steps.of(prepared.recipe.task)
    report = task.evaluate(prepared, here, watch, fit=fit, started=started, store=store)
    adapter = task.seal(prepared, here, scores=report.headline())
    results = (
        *(here.recipe, here.metrics, here.answers, here.measurements),
        *(here.report, here.page),
    )
    here.finish(
        run.Manifest(
            name=prepared.recipe.name,
            recipe_digest=prepared.recipe.digest(),
            profile=prepared.recipe.profile,
            seed=prepared.recipe.train.seed,
            base_name=prepared.base.name,
            base_digest=prepared.base.digest,
            dataset_fingerprint=prepared.dataset.fingerprint,
            adapter_digest=adapter.digest,
            steps=fit.steps,
            passed=report.passed,
            seconds=report.seconds,
            peak_memory_bytes=report.peak_memory_bytes,
            versions=versions.installed(),
            files={path.name: files.file_sha256(path) for path in results if path.is_file()},
        )
    )
    shutil.rmtree(here.checkpoints, ignore_errors=True)
    return report
