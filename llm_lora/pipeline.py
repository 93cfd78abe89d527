"""The straight line: recipe → dataset → run → fit → adapter → report → manifest, for any task."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_lora import files, run, versions
from llm_lora.errors import UserError
from llm_lora.progress import Fit, Watcher
from llm_lora.recipe import AnyRecipe
from llm_lora.run import Run
from llm_lora.tasks import AnyPrepared, Task
from llm_lora.tasks import task as tasks


def prepare(recipe: AnyRecipe) -> AnyPrepared:
    """A recipe with everything that it names, read and checked; no heavy import.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    return tasks.of(recipe.task).prepare(recipe)


def train(
    recipe: AnyRecipe,
    watch: Watcher,
    *,
    root: Path = Path("runs"),
    store: Path = Path("store"),
    resume: bool = False,
    only: Path | None = None,
) -> Run:
    """Run the whole line; what an earlier, interrupted run has finished is not done again.

    Args:
        root: the folder of all runs.
        store: published adapters, where the recipe compares with the live one.
        resume: go on with the newest unfinished run of this recipe.
        only: the one run that may be gone on with, as `resume_from_checkpoint` names it.

    Raises:
        Interrupted: the user stopped it; `resume=True` continues.
        UserError: a mistake in recipe, data or machine.
    """
    started = time.monotonic()
    task = tasks.of(recipe.task)
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
            f"another run is the newest unfinished one of {recipe.name}: {here.folder}",
            where=str(only),
            fix="leave resume_from_checkpoint out, and use --resume",
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
    """Write the dataset and what the run works on; a resumed run must find the same.

    Raises:
        UserError: data, base or another input were changed since the run was interrupted.
    """
    inputs = prepared.inputs()
    if here.inputs.is_file():
        before = here.read(here.inputs)
        changed = [name for name, digest in inputs.items() if before.get(name) != digest]
        if changed:
            raise UserError(
                f"changed since that run was interrupted: {', '.join(changed)}",
                where=str(here.folder),
                fix="undo the change, or start anew without --resume",
            )
    # Also of a resumed run: the same pictures may lie elsewhere now.
    prepared.dataset.write(here.dataset)
    files.write_json(here.inputs, inputs)


def _learn(task: Task, prepared: AnyPrepared, here: Run, watch: Watcher, *, resume: bool) -> Fit:
    if here.fit.is_file():
        watch.say("training was finished before; its adapter is used")
        return Fit.from_json(here.read(here.fit), here.fit)
    fit = task.learn(prepared, here, watch, resume=resume)
    files.write_json(here.fit, asdict(fit))
    return fit


def reopen(here: Run) -> AnyPrepared:
    """What a trained run was made from, read from its own folder.

    Raises:
        UserError: training is not finished, or the base or a file of the run is gone or changed.
    """
    return tasks.of(here.task).reopen(here)


def evaluate(
    prepared: AnyPrepared,
    here: Run,
    watch: Watcher,
    *,
    fit: Fit,
    started: float,
    store: Path = Path("store"),
) -> dict[str, Any]:
    """Measure the adapter, report, write its figures into it; then the run is finished.

    Args:
        started: when the command began, as `time.monotonic` tells it.
        store: published adapters, where the recipe compares with the live one.

    Returns:
        the document written to `report.json`.

    Raises:
        UserError: the adapter is damaged or belongs to another base, or memory ran out.
    """
    # While its files are renewed the run does not count as finished.
    here.manifest.unlink(missing_ok=True)
    task = tasks.of(prepared.recipe.task)
    document = task.evaluate(prepared, here, watch, fit=fit, started=started, store=store)
    adapter = task.seal(prepared, here, scores=task.headline(document))
    results = (
        *(here.recipe, here.metrics, here.answers, here.measurements),
        *(here.report, here.page),
    )
    here.finish(
        {
            "format": 1,
            "name": prepared.recipe.name,
            "recipe_digest": prepared.recipe.digest(),
            "profile": prepared.recipe.profile,
            "seed": prepared.recipe.train.seed,
            "base": {"name": prepared.base.name, "digest": prepared.base.digest},
            "dataset_fingerprint": prepared.dataset.fingerprint,
            "adapter_digest": adapter.digest,
            "steps": fit.steps,
            "passed": document["passed"],
            "seconds": document["seconds"],
            "peak_memory_bytes": document["peak_memory_bytes"],
            "versions": versions.installed(),
            "files": {path.name: files.file_sha256(path) for path in results if path.is_file()},
        }
    )
    shutil.rmtree(here.checkpoints, ignore_errors=True)
    return document
