"""Recording of image training: metrics.jsonl, TensorBoard, samples, live progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_lora.engines.image.sheets import Pixels, write_picture
from llm_lora.engines.shared import Log
from llm_lora.progress import Listener, Progress

_PICTURE_SUFFIX = ".png"


class Record:
    """Records training metrics and samples, and reports progress to the listener."""

    def __init__(
        self,
        metrics: Path,
        tensorboard: Path,
        samples: Path,
        listener: Listener,
        *,
        shown: Sequence[int],
        steps_per_epoch: float,
        step: int,
        peak_memory: Callable[[], int],
    ) -> None:
        """`shown` is the order's; `step` is where an interrupted training continues."""
        self._samples = samples
        self._listener = listener
        self._shown = shown
        self._steps_per_epoch = steps_per_epoch
        self._first = step
        self._peak_memory = peak_memory
        self._loss: float | None = None
        self._validation: float | None = None
        self._log = Log(metrics, tensorboard, step)
        self.rows = self._log.rows
        self._started = time.monotonic()

    def losses(self, step: int, losses: Sequence[float], rate: float, length: float) -> None:
        """Record the losses of the last steps, the learning rate and the gradient norm.

        In fp16 gradients overflow now and then; such a step is skipped and has no gradient norm.
        """
        values = {"loss": sum(losses) / len(losses), "learning_rate": rate}
        if math.isfinite(length):
            values["gradient_norm"] = length
        self._row(step, values)

    def validation(self, step: int, loss: float) -> None:
        """Record the loss on held-out pictures."""
        self._validation = loss
        self._row(step, {"validation_loss": loss})

    def painted(self, step: int, pictures: Sequence[Pixels]) -> None:
        """Write sample pictures, in the order of their prompts."""
        for number, picture in enumerate(pictures):
            name = f"{number:02}{_PICTURE_SUFFIX}"
            write_picture(self._samples / f"step-{step}" / name, picture)
            self._log.writer.add_image(f"samples/{number:02}", picture, step, dataformats="HWC")
        self._log.writer.flush()

    def stepped(self, step: int, loss: float) -> None:
        """Report a finished step."""
        self._loss = loss
        self._listener(self._progress(step))

    def close(self) -> None:
        """Close the TensorBoard writer."""
        self._log.close()

    def _row(self, step: int, values: dict[str, float]) -> None:
        progress = self._progress(step)
        row = {
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 3),
            **values,
            "pictures": self._shown[step],
            "pictures_per_second": round(progress.pictures_per_second or 0.0, 2),
            "seconds": round(time.monotonic() - self._started, 1),
        }
        self._log.add(row, values)
        self._listener(progress)

    def _progress(self, step: int) -> Progress:
        elapsed = max(time.monotonic() - self._started, 1e-6)
        done, total = step - self._first, len(self._shown) - 1
        return Progress(
            stage="training",
            done=step,
            total=total,
            loss=self._loss,
            validation_loss=self._validation,
            pictures_per_second=(self._shown[step] - self._shown[self._first]) / elapsed,
            memory_bytes=self._peak_memory(),
            seconds_left=(total - step) * elapsed / done if done else None,
        )
