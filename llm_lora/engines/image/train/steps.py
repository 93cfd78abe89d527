"""Adapters of saved steps, kept beside the final one so that users can go back to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_lora import run as runs


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
