"""Progress events and results of an engine; free of torch, for the code that displays them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llm_lora.errors import UserError
from llm_lora.run import Run


@dataclass(frozen=True)
class Progress:
    """One moment of training or answering.

    `seconds_left` is an estimate from the mean speed so far; `memory_bytes` is the peak so far
    (resident memory on a CPU, allocated device memory on a GPU).
    """

    stage: str
    done: int
    total: int
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    pictures_per_second: float | None = None
    memory_bytes: int | None = None
    seconds_left: float | None = None


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A listener that does nothing."""


@dataclass(frozen=True)
class Fit:
    """Result of a training.

    `curve` holds one row of figures per log, by name: step, epoch, loss, validation_loss, …
    `tokens` (or `pictures`, for image training) counts what was seen.
    """

    steps: int
    planned_steps: int
    tokens: int
    seconds: float
    cpu_seconds: float
    best_step: int
    best_validation_loss: float | None
    stopped_early: bool
    trainable_parameters: int
    base_parameters: int
    peak_memory_bytes: int
    decisions: tuple[str, ...]
    curve: tuple[Mapping[str, float], ...]
    pictures: int = 0

    @classmethod
    def from_json(cls, row: dict[str, Any], where: Path) -> Fit:
        """Read what `dataclasses.asdict` wrote.

        Raises:
            UserError: another version of llm-lora wrote it.
        """
        try:
            row = {**row, "decisions": tuple(row["decisions"]), "curve": tuple(row["curve"])}
            return cls(**row)
        except (KeyError, TypeError):
            raise UserError(
                "written by another version of llm-lora", where=str(where), fix="train again"
            ) from None


class Interrupted(Exception):
    """Training was stopped by the user; a checkpoint was saved."""

    def __init__(self, step: int, total: int, checkpoint: Path) -> None:
        super().__init__(f"stopped at step {step} of {total}")
        self.step = step
        self.total = total
        self.checkpoint = checkpoint


class AnyDataset(Protocol):
    """Checked data of any task."""

    @property
    def fingerprint(self) -> str: ...

    def summary(self) -> dict[str, Any]: ...

    def write(self, folder: Path) -> None: ...


class Watcher(Protocol):
    """Receives the pipeline's progress, for example to show it on the command line."""

    def stage(self, title: str) -> None:
        """A new stage begins."""

    def say(self, text: str) -> None:
        """A decision or a fact to print on a line."""

    def progress(self, progress: Progress) -> None:
        """The current stage made progress."""

    def checked(self, task: str, dataset: AnyDataset) -> None:
        """The dataset passed its check."""

    def began(self, here: Run) -> None:
        """The run's folder exists; from now on the run can be resumed."""


class Silent:
    """A `Watcher` that shows nothing."""

    def stage(self, title: str) -> None: ...

    def say(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def checked(self, task: str, dataset: AnyDataset) -> None: ...

    def began(self, here: Run) -> None: ...
