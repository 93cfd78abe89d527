"""Callbacks of the training loop: metrics, live progress, complete checkpoints, Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.progress import Listener, Progress
from llm_lora.run import Places

_COMPLETE = "complete"
"""Marker in a checkpoint folder, written last, with the sizes of all files."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is complete: fully written, with no file lost since."""
    whole = [marker.parent for marker in folder.glob(f"checkpoint-*/{_COMPLETE}") if _whole(marker)]
    return max(whole, key=checkpoint_step, default=None)


def checkpoint_step(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.rpartition("-")[2])


def _whole(marker: Path) -> bool:
    sizes = json.loads(files.read_text(marker))
    return all(
        (marker.parent / name).is_file() and (marker.parent / name).stat().st_size == size
        for name, size in sizes.items()
    )


def mark_whole(folder: Path) -> None:
    """Mark a checkpoint as fully written."""
    written = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    files.write_json(folder / _COMPLETE, written)


class Complete(TrainerCallback):
    """Marks each checkpoint as complete once all its files are on disk."""

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class StopEarly(TrainerCallback):
    """Stops when the validation loss has not improved for `patience` evaluations.

    It relies only on what checkpoints hold, so a resumed run stops where an uninterrupted one does;
    transformers' own callback restarts its count after a resume.
    """

    def __init__(self, patience: int, every: int) -> None:
        self._steps = patience * every

    def reached(self, state: TrainerState) -> bool:
        """Whether training should stop at this state."""
        best = state.best_global_step
        return best is not None and best > 0 and state.global_step - best >= self._steps

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        control.should_training_stop |= self.reached(state)


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if self.requested:
            control.should_save = True
            control.should_training_stop = True


class Log:
    """`metrics.jsonl`, row by row, and the same figures as TensorBoard events."""

    def __init__(self, path: Path, tensorboard: Path, step: int) -> None:
        """Begin both; `step` is where an interrupted training continues, or 0."""
        self.rows: list[dict[str, Any]] = []
        self._path = path
        # A resume repeats the steps after the checkpoint, so their old rows are dropped.
        if step and path.is_file():
            kept = _whole_rows(files.read_text(path))
            self.rows = [row for row in kept if row["step"] <= step]
        files.write_jsonl(path, self.rows)
        self.writer = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def add(self, row: dict[str, Any], figures: Mapping[str, float]) -> None:
        """Add a row, which has a step; `figures` are those of it that TensorBoard shows."""
        self.rows.append(row)
        # On disk at once: a kill or a power cut loses no more than the row being written.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in figures.items():
            self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Close the TensorBoard writer."""
        self.writer.close()


class Metrics(TrainerCallback):
    """Writes `metrics.jsonl` and TensorBoard events, and calls the listener."""

    def __init__(
        self,
        places: Places,
        listener: Listener,
        tokens: Sequence[int],
        steps_per_epoch: float,
    ) -> None:
        """`tokens` holds the number of tokens seen after 0, 1, 2, … steps."""
        self.rows: list[dict[str, Any]] = []
        self.peak_memory: Callable[[], int] = lambda: 0
        self._path = places.metrics
        self._tensorboard = places.tensorboard
        self._listener = listener
        self._tokens = tokens
        self.steps = len(tokens) - 1
        self._steps_per_epoch = steps_per_epoch
        self._started = 0.0
        self._first_step = 0
        self._last_loss: float | None = None
        self._last_validation: float | None = None

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self._log = Log(self._path, self._tensorboard, state.global_step)
        self.rows = self._log.rows
        self._started = time.monotonic()
        self._first_step = state.global_step

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        names = {
            "loss": "loss",
            "eval_loss": "validation_loss",
            "learning_rate": "learning_rate",
            "grad_norm": "gradient_norm",
            "rewards/accuracies": "preferred",
            "reward": "reward",
        }
        logged = logs or {}
        values = {ours: float(logged[theirs]) for theirs, ours in names.items() if theirs in logged}
        if "loss" not in values and "validation_loss" not in values:
            return
        if not all(math.isfinite(values.get(name, 0.0)) for name in ("loss", "validation_loss")):
            raise UserError(
                f"the loss became NaN at step {state.global_step}",
                where="train.learning_rate",
                fix="divide it by 3 or more and train again",
            )
        self._last_loss = values.get("loss", self._last_loss)
        self._last_validation = values.get("validation_loss", self._last_validation)
        progress = self._progress(state.global_step)
        row = {
            "step": state.global_step,
            "epoch": round(state.global_step / self._steps_per_epoch, 3),
            **values,
            "tokens": self._tokens[state.global_step],
            "tokens_per_second": round(progress.tokens_per_second or 0.0, 1),
            "seconds": round(time.monotonic() - self._started, 1),
        }
        self._log.add(row, values)
        self._listener(progress)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self._listener(self._progress(state.global_step))

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self._log.close()

    def _progress(self, step: int) -> Progress:
        elapsed = max(time.monotonic() - self._started, 1e-6)
        done = step - self._first_step
        return Progress(
            stage="training",
            done=step,
            total=self.steps,
            loss=self._last_loss,
            validation_loss=self._last_validation,
            tokens_per_second=(self._tokens[step] - self._tokens[self._first_step]) / elapsed,
            memory_bytes=self.peak_memory(),
            seconds_left=(self.steps - step) * elapsed / done if done else None,
        )


def _whole_rows(text: str) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut short by a kill or a full disk is skipped."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
