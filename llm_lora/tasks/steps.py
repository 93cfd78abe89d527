"""The steps of the pipeline that each task takes in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

from llm_lora.adapter import Adapter
from llm_lora.errors import UserError
from llm_lora.progress import AnyDataset, Fit, Watcher
from llm_lora.recipe import AnyRecipe
from llm_lora.report import Report, Versus
from llm_lora.run import Run
from llm_lora.task import TASKS, load


class AnyBase(Protocol):
    """The frozen model."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...


class AnyPrepared(Protocol):
    """A recipe with its base, schema and data, read and checked."""

    @property
    def recipe(self) -> AnyRecipe: ...
    @property
    def base(self) -> AnyBase: ...
    @property
    def dataset(self) -> AnyDataset: ...

    def inputs(self) -> dict[str, str | None]:
        """Digests of all inputs of the run, by name."""


class Steps(Protocol):
    """The steps of a task, a module; `prepared` is the result of its own `prepare`."""

    def prepare(self, recipe: Any) -> AnyPrepared:
        """Read and check the base and the data, without heavy imports.

        Raises:
            UserError: a mistake in any of them.
        """

    def learn(self, prepared: Any, here: Run, watch: Watcher, *, resume: bool) -> Fit:
        """Train the adapter of a run.

        Raises:
            Interrupted: the user stopped it.
            UserError: the engine cannot train it.
        """

    def seal(self, prepared: Any, here: Run, scores: dict[str, Any] | None = None) -> Adapter:
        """Complete the adapter folder with all files needed to use it, and verify it from disk."""

    def evaluate(
        self,
        prepared: Any,
        here: Run,
        watch: Watcher,
        *,
        fit: Fit,
        started: float,
        store: Path,
    ) -> Report:
        """Evaluate the adapter on held-out data, and write the report.

        Raises:
            UserError: the adapter is damaged or belongs to another base, or memory ran out.
        """

    def compare(self, ours: Run, theirs: Run) -> Versus:
        """The differences between the scores of two runs of this task.

        Raises:
            UserError: one of them was not evaluated, or they have nothing in common.
        """

    def reopen(self, here: Run) -> AnyPrepared:
        """The inputs of a trained run, read from its own folder.

        Raises:
            UserError: training is not finished, the run is of another task, or the base or a file
                of the run is missing or changed.
        """


def of(task: str) -> Steps:
    """The steps of a task."""
    return cast(Steps, load(TASKS[task].steps))


def compare(ours: Run, theirs: Run) -> Versus:
    """The differences between the scores of two runs.

    Raises:
        UserError: they are of different tasks, or one was not evaluated.
    """
    if ours.task != theirs.task:
        raise UserError(
            f"the runs have different tasks: {ours.task} and {theirs.task}",
            where=f"{ours.folder}, {theirs.folder}",
            fix="compare runs of the same task; llm-lora runs lists them",
        )
    return of(ours.task).compare(ours, theirs)
