"""Tasks: what the pipeline asks of a module that knows text, or pictures."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from llm_lora.adapter import Adapter
from llm_lora.errors import UserError
from llm_lora.progress import AnyDataset, Fit, Watcher
from llm_lora.recipe import AnyRecipe
from llm_lora.run import Run

_MODULES = {"text": "llm_lora.tasks.text.task", "image": "llm_lora.tasks.image"}


class AnyBase(Protocol):
    """The frozen model."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...


class AnyPrepared(Protocol):
    """A recipe with everything that it names, read and checked."""

    @property
    def recipe(self) -> AnyRecipe: ...
    @property
    def base(self) -> AnyBase: ...
    @property
    def dataset(self) -> AnyDataset: ...

    def inputs(self) -> dict[str, str | None]:
        """Digests of all that the run works on, by what to call it."""


class Task(Protocol):
    """What the module of a task does; `prepared` is what its own `prepare` gave."""

    def prepare(self, recipe: Any) -> AnyPrepared:
        """Read and check the base and the data; no heavy import.

        Raises:
            UserError: whatever is wrong with any of them.
        """

    def learn(self, prepared: Any, here: Run, watch: Watcher, *, resume: bool) -> Fit:
        """Train the adapter of a run.

        Raises:
            Interrupted: the user stopped it.
            UserError: whatever the engine cannot do.
        """

    def seal(self, prepared: Any, here: Run, scores: dict[str, Any] | None = None) -> Adapter:
        """Put into the adapter folder what using it faithfully needs, then verify it from disk."""

    def evaluate(
        self,
        prepared: Any,
        here: Run,
        watch: Watcher,
        *,
        fit: Fit,
        started: float,
        store: Path,
    ) -> dict[str, Any]:
        """Measure the adapter on what it never saw, and write the report.

        Returns:
            the document written to `report.json`; every task's has `scores`, `gates`, `passed`,
            `seconds` and `peak_memory_bytes`.

        Raises:
            UserError: the adapter is damaged or belongs to another base, or memory ran out.
        """

    def headline(self, document: dict[str, Any]) -> dict[str, Any]:
        """The few figures of a report that travel with the adapter."""

    def compare(self, ours: Run, theirs: Run) -> dict[str, Any]:
        """How the figures of two runs of this task differ.

        Raises:
            UserError: one of them was not measured, or they have nothing in common.
        """

    def reopen(self, here: Run) -> AnyPrepared:
        """What a trained run was made from, read from its own folder.

        Raises:
            UserError: training is not finished, the run is of another task, or the base or a file
                of the run is gone or changed.
        """


def of(task: str) -> Task:
    """The module of a task."""
    return cast(Task, importlib.import_module(_MODULES[task]))


def compare(ours: Run, theirs: Run) -> dict[str, Any]:
    """How the figures of two runs differ.

    Raises:
        UserError: they are of different tasks, or one was not measured.
    """
    if ours.task != theirs.task:
        raise UserError(
            f"one run is of task {ours.task}, the other of task {theirs.task}",
            where=f"{ours.folder}, {theirs.folder}",
            fix="compare runs of one task; llm-lora runs lists them",
        )
    return of(ours.task).compare(ours, theirs)


if TYPE_CHECKING:
    from llm_lora.tasks import image as image_task
    from llm_lora.tasks.text import task as text_task

    _TASKS: tuple[Task, ...] = (text_task, image_task)
