"""Saving of image training on its way: checkpoints to continue from, and the adapters of steps.

Checkpoints are written atomically, without pickle, and the last two are kept. Adapters of saved
steps lie beside the final one, so that users can go back to them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from llm_lora import files
from llm_lora import run as runs
from llm_lora.engines.shared import checkpoint_step, mark_whole, newest_checkpoint

_KEPT = 2
_TENSORS = ("weights", "average", "best", "optimizer")


@dataclass(frozen=True)
class Rungs:
    """The memory-saving measures that are on.

    `split` is the number of parts in which each batch goes through the model.
    """

    checkpointing: bool
    cache: bool
    split: int = 1


@dataclass(frozen=True)
class State:
    """Progress of the training.

    `pending` holds the losses since the last row of the metrics, `climbed` the decisions reported
    about memory-saving measures.
    """

    step: int
    rungs: Rungs
    best_step: int = 0
    best_loss: float | None = None
    pending: tuple[float, ...] = ()
    scaler: dict[str, float] = field(default_factory=dict)
    climbed: tuple[str, ...] = ()

    def stepped(self, loss: float) -> State:
        """The state after one more step."""
        return replace(self, step=self.step + 1, pending=(*self.pending, loss))


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to continue.

    Attributes:
        state: its progress.
        weights, average, best: the adapter's weights, their moving average, and those of the best
            step; the latter two are empty if they are not kept.
        optimizer, rest: the optimizer's state, as `Optimizer.state` returns it.
    """

    state: State
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    rest: str

    def write(self, folder: Path) -> Path:
        """Write it below a folder, and delete all but the newest checkpoints.

        Raises:
            UserError: the disk is full or the folder may not be written.
        """
        place = folder / f"checkpoint-{self.state.step}"
        shutil.rmtree(place, ignore_errors=True)
        for name in _TENSORS:
            _write(place / f"{name}.safetensors", getattr(self, name))
        files.write_text(place / "optimizer.json", self.rest)
        files.write_json(place / "state.json", asdict(self.state))
        # Only now does it count, and only then may older ones go: a kill at any moment leaves one.
        mark_whole(place)
        others = (path for path in folder.glob("checkpoint-*") if path != place)
        for path in sorted(others, key=checkpoint_step, reverse=True)[_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
        return place


def newest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint below a folder, in the CPU's memory."""
    place = newest_checkpoint(folder)
    if place is None:
        return None
    state = json.loads(files.read_text(place / "state.json"))
    state["rungs"] = Rungs(**state["rungs"])
    state |= {name: tuple(state[name]) for name in ("pending", "climbed")}
    tensors = {name: load_file(place / f"{name}.safetensors") for name in _TENSORS}
    rest = files.read_text(place / "optimizer.json")
    return Checkpoint(state=State(**state), rest=rest, **tensors)


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    # Copies: 8-bit optimizers share lookup tables between parameters, which safetensors refuses.
    how: Any = {"copy": True, "memory_format": torch.contiguous_format}
    files.write_bytes(path, save({name: one.to("cpu", **how) for name, one in tensors.items()}))


@dataclass(frozen=True)
class Steps:
    """A folder with the adapters of a run's saved steps, each a complete adapter folder.

    Attributes:
        folder: the folder that holds them.
        count: how many of the newest are kept, besides the best.
        save: writes weights as an adapter folder.
    """

    folder: Path
    count: int
    save: Callable[[Mapping[str, torch.Tensor], Path], None]

    def keep(self, weights: Mapping[str, torch.Tensor], step: int, best: int) -> None:
        """Keep the adapter after a step, and delete those that are too old.

        Args:
            weights: as the adapter would have them if training ended now.
            step: the number of steps done.
            best: the step with the lowest held-out loss.

        Raises:
            UserError: the disk is full or the folder may not be written.
        """
        if not self.count:
            return
        self.save(weights, self.folder / f"{runs.STEP}{step}")
        every = runs.steps_in(self.folder)
        for old in sorted(every)[: -self.count]:
            if old != best:
                shutil.rmtree(every[old], ignore_errors=True)
