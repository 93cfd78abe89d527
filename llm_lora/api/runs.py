"""Training from Python: recipes, data checks, runs and their reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from llm_lora import pipeline
from llm_lora import run as runs
from llm_lora.errors import UserError
from llm_lora.progress import Fit, Silent, Watcher
from llm_lora.recipe import AnyRecipe, read_for_machine
from llm_lora.report import Report, read_report

if TYPE_CHECKING:
    from llm_lora.data.image import PictureDataset
    from llm_lora.data.text import Dataset
    from llm_lora.report.image import ImageReport
    from llm_lora.report.text import TextReport

AnyPath: TypeAlias = "str | PathLike[str]"
_Report = TypeVar("_Report", bound=Report)


@dataclass(frozen=True)
class Run(PathLike[str]):
    """A run: the folder of one execution of a recipe. It may be given wherever a path may."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """Name of the recipe that made the run."""
        return self._run.name

    @property
    def adapter(self) -> Path:
        """The adapter's folder, as PEFT, diffusers and vLLM read it."""
        return self._run.adapter

    @property
    def report(self) -> TextReport:
        """The held-out report of a text run.

        Raises:
            UserError: the run is not of a text recipe or was not evaluated yet, or its report is
                damaged.
        """
        # Imported here, as are all reports: each task has its own.
        from llm_lora.report.text import TextReport

        return self._read(TextReport, "image_report")

    @property
    def image_report(self) -> ImageReport:
        """The held-out report of an image run.

        Raises:
            UserError: as for `report`.
        """
        from llm_lora.report.image import ImageReport

        return self._read(ImageReport, "report")

    def _read(self, kind: type[_Report], other: str) -> _Report:
        found = read_report(self._run)
        if not isinstance(found, kind):
            raise UserError(
                f"this run has task {self._run.task}", where=str(self.folder), fix=f"use {other}"
            )
        return found

    def evaluate(self, *, store: AnyPath = "store", watch: Watcher | None = None) -> bool:
        """Evaluate the adapter on its held-out data again, and rewrite the report.

        Args:
            store: published adapters, for recipes that compare with the live one.
            watch: receives the progress.

        Returns:
            whether all gates passed.

        Raises:
            UserError: training is not finished, or the base or a file of the run is missing or
                changed.
        """
        here = self._run
        prepared = pipeline.reopen(here)
        fit = Fit.from_json(here.read(here.fit), here.fit)
        with here.claimed():
            report = pipeline.evaluate(
                prepared,
                here,
                watch or Silent(),
                fit=fit,
                started=time.monotonic(),
                store=Path(store),
            )
        return report.passed

    @property
    def _run(self) -> runs.Run:
        return runs.Run(self.folder)


def load_run(path: AnyPath) -> Run:
    """The run at a path: a run folder, `runs/NAME/latest` or `runs/NAME`.

    Raises:
        UserError: there is no run at that path.
    """
    return Run(runs.find(Path(path)).folder)


def load_recipe(
    path: AnyPath, *, overrides: Sequence[str] = (), profile: str = "auto"
) -> AnyRecipe:
    """Read a recipe.

    Args:
        path: the YAML file, in llm-lora's or lora-scripts' format.
        overrides: settings that override the file, such as `lora.rank=32`.
        profile: the name of one of its profiles; `auto` picks the one that fits this machine.

    Raises:
        UserError: all mistakes in the recipe.
    """
    return read_for_machine(Path(path), overrides, profile)[0].recipe


def check_data(
    recipe: AnyPath | AnyRecipe, *, overrides: Sequence[str] = (), profile: str = "auto"
) -> Dataset | PictureDataset:
    """Check every record of a recipe's data without training.

    Args:
        recipe: the recipe or its file.
        overrides: as for `load_recipe`; only with a file.
        profile: as for `load_recipe`; only with a file.

    Raises:
        UserError: a mistake in the recipe, the base or the schema, or too little usable data.
    """
    read = _recipe(recipe, overrides, profile)
    return cast("Dataset | PictureDataset", pipeline.prepare(read).dataset)


def train(
    recipe: AnyPath | AnyRecipe,
    *,
    overrides: Sequence[str] = (),
    profile: str = "auto",
    runs: AnyPath = "runs",
    store: AnyPath = "store",
    resume: bool = False,
    watch: Watcher | None = None,
) -> Run:
    """Check the data, train an adapter, and evaluate it on held-out data.

    A failed gate is a result, not an error: see `report`.

    Args:
        recipe: the recipe or its file.
        overrides: as for `load_recipe`; only with a file.
        profile: as for `load_recipe`; only with a file.
        runs: the folder of all runs.
        store: published adapters, for recipes that compare with the live one.
        resume: continue the newest unfinished run of this recipe.
        watch: receives the progress.

    Raises:
        Interrupted: Ctrl-C or SIGTERM stopped it; `resume=True` continues.
        UserError: a mistake in recipe, data or machine.
    """
    here = pipeline.train(
        _recipe(recipe, overrides, profile),
        watch or Silent(),
        root=Path(runs),
        store=Path(store),
        resume=resume,
    )
    return Run(here.folder)


def _recipe(recipe: AnyPath | AnyRecipe, overrides: Sequence[str], profile: str) -> AnyRecipe:
    if isinstance(recipe, str | PathLike):
        return load_recipe(recipe, overrides=overrides, profile=profile)
    if overrides or profile != "auto":
        raise TypeError("overrides and profile apply to a file, not to a recipe already read")
    return recipe
