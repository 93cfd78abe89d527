"""Adapters of saved steps, kept beside the last one, so that there is something to go back to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_lora import run as runs


@dataclass(frozen=True)
class Steps:
    """A folder with the adapters of a run's saved steps, each whole in a folder of its own.

    Attributes:
        folder: where they lie.
        count: how many are kept, the newest ones, besides the best.
        save: writes an adapter's weights as a folder.
    """

    folder: Path
    count: int
    save: Callable[[Mapping[str, torch.Tensor], Path], None]

    def keep(self, weights: Mapping[str, torch.Tensor], step: int, best: int) -> None:
        """Keep what the adapter is after a step, and let go of what is too old.

        Args:
            weights: as the adapter would have them if training ended now.
            step: how many steps are done.
            best: after how many of them the loss on held-out pictures was least.

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
