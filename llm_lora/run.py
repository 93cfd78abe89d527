"""A run: the folder of one execution of a recipe. Its manifest, written last, marks it finished."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.files import Json
from llm_lora.task import TASKS

LATEST = "latest"
STAMP = "%Y-%m-%dT%H-%M-%S"
STEP = "step-"
"""Prefix of the folders of saved steps: `step-100`."""

_TASK = re.compile(rf"^task: ({'|'.join(TASKS)})$", re.MULTILINE)
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d{1,11})\..*")
"""TensorBoard's files, named by the second in which they were created."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished run says of itself.

    Attributes:
        name: the recipe's, `profile` the one that was used, if any.
        passed: whether the gates of its report passed.
        seconds: how long training and evaluation took together.
        versions: of the installed libraries.
        files: digest of each result by its name.
    """

    name: str
    recipe_digest: str
    profile: str | None
    seed: int
    base_name: str
    base_digest: str
    dataset_fingerprint: str
    adapter_digest: str
    steps: int
    passed: bool
    seconds: float
    peak_memory_bytes: int
    versions: Mapping[str, str]
    files: Mapping[str, str]

    def to_json(self) -> Json:
        """The manifest as it is written, last of all files of a run."""
        return {
            "format": 1,
            "name": self.name,
            "recipe_digest": self.recipe_digest,
            "profile": self.profile,
            "seed": self.seed,
            "base": {"name": self.base_name, "digest": self.base_digest},
            "dataset_fingerprint": self.dataset_fingerprint,
            "adapter_digest": self.adapter_digest,
            "steps": self.steps,
            "passed": self.passed,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "versions": self.versions,
            "files": self.files,
        }


@dataclass(frozen=True)
class Places:
    """Where an engine writes what it trains; an engine without samples or steps ignores these."""

    adapter: Path
    checkpoints: Path
    metrics: Path
    tensorboard: Path
    samples: Path
    steps: Path


@dataclass(frozen=True)
class Run:
    """The folder of one execution; every property is a path in it."""

    folder: Path

    @property
    def name(self) -> str:
        """Name of the recipe that made the run."""
        return self.folder.parent.name

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def places(self) -> Places:
        """Where an engine writes in this run."""
        return Places(
            adapter=self.adapter,
            checkpoints=self.checkpoints,
            metrics=self.metrics,
            tensorboard=self.tensorboard,
            samples=self.samples,
            steps=self.steps,
        )

    @property
    def supervised(self) -> Path:
        """The adapter that preference training started from."""
        return self.folder / "supervised"

    @property
    def supervised_fit(self) -> Path:
        """The record of the supervised training before preference training."""
        return self.folder / "supervised_fit.json"

    @property
    def pairs(self) -> Path:
        """The pairs of answers that dpo trained on."""
        return self.folder / "pairs.jsonl"

    @property
    def preference_metrics(self) -> Path:
        """The metrics of dpo or grpo."""
        return self.folder / "preference.jsonl"

    @property
    def fit(self) -> Path:
        """The record of training (steps, curves, decisions); written when training has ended."""
        return self.folder / "fit.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def samples(self) -> Path:
        """Pictures painted during training."""
        return self.folder / "samples"

    @property
    def steps(self) -> Path:
        """Adapters of earlier steps, as folders `step-100`, if the task keeps them."""
        return self.folder / "steps"

    @property
    def pictures(self) -> Path:
        """Pictures painted for the evaluation."""
        return self.folder / "pictures"

    @property
    def measurements(self) -> Path:
        """The measurements of an image adapter, which its schema judges."""
        return self.folder / "measurements.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def inputs(self) -> Path:
        """Digests of the run's inputs; a resumed run must have the same."""
        return self.folder / "inputs.json"

    @property
    def finished(self) -> bool:
        """True once the manifest, the last file of a run, is in place."""
        return self.manifest.is_file()

    @property
    def started(self) -> datetime:
        """When the run began, from the name of its folder or else TensorBoard's first file.

        For a renamed folder without such a file, the time of its recipe is used.
        """
        try:
            stamp = self.folder.name[: len("2026-01-01T00-00-00")]
            return datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)
        except ValueError:
            names = [path.name for path in self.tensorboard.glob("events.*")]
            begun = [float(found[1]) for name in names if (found := _EVENTS.fullmatch(name))]
            seconds = min(begun, default=self.recipe.stat().st_mtime)
            return datetime.fromtimestamp(seconds, UTC)

    @property
    def task(self) -> str:
        """The task of the recipe that made the run.

        Raises:
            UserError: the recipe is missing or damaged.
        """
        # The line that `to_yaml` writes; parsing whole recipes would make listing runs slow.
        if said := _TASK.search(files.read_text(self.recipe)):
            return said[1]
        raise UserError("the recipe has no task", where=str(self.recipe), fix="restore the file")

    def adapter_after(self, step: int | None) -> Path:
        """The final adapter, or the one saved after a number of steps.

        Raises:
            UserError: that step was not kept (lists those that were).
        """
        if step is None:
            return self.adapter
        kept = steps_in(self.steps)
        if step not in kept:
            known = ", ".join(map(str, sorted(kept))) or "none"
            raise UserError(
                f"the adapter of step {step} was not kept",
                where=str(self.folder),
                fix=f"kept steps: {known} (set by train.save_every and train.keep)",
            )
        return kept[step]

    def require_trained(self) -> None:
        """Require that training has ended and that its data still exists.

        Raises:
            UserError: training has not ended, or the data is missing.
        """
        self.read(self.fit)
        if not self.dataset.is_dir():
            raise UserError(
                "the run has no dataset folder", where=str(self.folder), fix="train again"
            )

    def read(self, path: Path) -> Json:
        """Read one of the run's JSON files.

        Raises:
            UserError: the run has not written it yet, or it is damaged.
        """
        if not path.is_file():
            raise UserError(
                f"this run has no {path.name} yet",
                where=str(self.folder),
                fix="finish it: llm-lora train RECIPE --resume",
            )
        try:
            value: Json = json.loads(files.read_text(path))
        except json.JSONDecodeError as error:
            raise UserError(
                f"damaged: {error.msg}",
                where=f"{path}:{error.lineno}",
                fix="train again, or restore the file",
            ) from None
        return value

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, which marks the run as finished."""
        files.write_json(self.manifest, manifest.to_json())

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the run for this process; the system releases the lock when the process ends.

        Raises:
            UserError: another process is working on it.
        """
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    "another process is working on this run",
                    where=str(self.folder),
                    fix="wait for it, or stop it first",
                ) from None
            yield

    def become_latest(self) -> None:
        """Point `runs/NAME/latest` at this run, atomically."""
        link = self.folder.parent / LATEST
        temporary = link.with_name(f".{LATEST}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.folder.name)
        temporary.replace(link)


def steps_in(folder: Path) -> dict[int, Path]:
    """The step folders in a folder, by step number."""
    found = {path.name.removeprefix(STEP): path for path in folder.glob(f"{STEP}*")}
    return {int(number): path for number, path in found.items() if number.isdecimal()}


def create(root: Path, name: str, recipe_yaml: Callable[[Path], str]) -> Run:
    """Create a new run folder with the resolved recipe; never reuses an existing one.

    Args:
        root: the folder of all runs, usually `runs`.
        name: the recipe's name.
        recipe_yaml: returns the resolved recipe with paths relative to the run's folder.

    Raises:
        UserError: the folder cannot be created.
    """
    stamp = datetime.now(UTC).strftime(STAMP)
    # Resolved, so that paths in the recipe hold even if the folder of runs is a link.
    run = Run(root.resolve() / name / f"{stamp}-{secrets.token_hex(2)}")
    try:
        run.folder.mkdir(parents=True)
    except OSError as error:
        raise files.write_error(error, run.folder) from error
    files.write_text(run.recipe, recipe_yaml(run.folder))
    return run


def find(path: Path) -> Run:
    """The run at a path: a run folder, `runs/NAME/latest` or `runs/NAME`.

    Raises:
        UserError: there is no run at that path.
    """
    for folder in (path, path / LATEST):
        if (folder / "recipe.yaml").is_file():
            return Run(folder.resolve())
    root = path.parent if path.parent.is_dir() else Path("runs")
    known = [str(run.folder) for run in every(root)]
    raise UserError(
        "no run here",
        where=str(path),
        fix=f"known runs: {', '.join(known[:5])}" if known else "list them: llm-lora runs",
    )


def every(root: Path) -> list[Run]:
    """All runs below a folder, oldest first."""
    recipes = [*root.glob("*/recipe.yaml"), *root.glob("*/*/recipe.yaml")]
    folders = {file.parent.resolve() for file in recipes}
    return [Run(folder) for folder in sorted(folders, key=lambda folder: folder.name)]


def unfinished(
    root: Path, name: str, recipe_yaml: Callable[[Path], str], asked_by: str = "--resume"
) -> Run:
    """The newest unfinished run of the same resolved recipe, which `--resume` continues.

    Args:
        root, name, recipe_yaml: as for `create`.
        asked_by: the option or key that requested it, for messages.

    Raises:
        UserError: there is none, or the recipe has changed since (names the run).
    """
    candidates = [run for run in every(root / name) if not run.finished]
    for run in reversed(candidates):
        if files.read_text(run.recipe) == recipe_yaml(run.folder):
            return run
    if candidates:
        before = files.read_text(candidates[-1].recipe).splitlines()
        now = recipe_yaml(candidates[-1].folder).splitlines()
        changed = [line.strip() for line in now if line not in before]
        changed = changed or [line.strip() for line in before if line not in now]
        raise UserError(
            f"the recipe has changed since this run was interrupted: {'; '.join(changed[:3])}",
            where=str(candidates[-1].folder),
            fix=f"undo the change, or start a new run without {asked_by}",
        )
    raise UserError(
        f"no unfinished run of {name}", where=str(root / name), fix=f"leave out {asked_by}"
    )
