"""TRL's SFTTrainer over examples that are token ids already, in an order planned before."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from trl import SFTTrainer

from llm_lora.engines import batches


class PlannedTrainer(SFTTrainer):
    """Takes batches as planned; on a CPU it scores only what carries loss."""

    def __init__(
        self, *, order: list[list[int]], pad_id: int, concatenated: bool, **options: Any
    ) -> None:
        self._order = order
        self._collate = (
            batches.concatenate if concatenated else lambda rows: batches.pad(rows, pad_id)
        )
        super().__init__(data_collator=self._collate, **options)

    def get_train_dataloader(self) -> Any:
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_sampler=batches.Order(self._order),
            collate_fn=self._collate,
            # A generator of its own: drawing the worker seed must not move the global state.
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the answers' tokens, weighted where weights are given.

        TRL knows no weights. It scores only the positions with a label where it has Triton; on a
        CPU it scores all of them, with entropies that nobody reads: two fifths more time on a
        small base.
        """
        weights = inputs.pop(batches.WEIGHTS, None)
        if return_outputs or (weights is None and self.args.device.type != "cpu"):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        # The label of column i is predicted at column i - 1.
        first = int((labels[:, 1:] != batches.IGNORED).any(dim=0).nonzero()[0])
        targets = labels[:, first + 1 :]
        scored = targets != batches.IGNORED
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        keep = labels.shape[1] - first
        logits = model(**rest, use_cache=False, logits_to_keep=keep).logits[:, :-1]
        losses = F.cross_entropy(logits[scored].float(), targets[scored], reduction="none")
        if weights is not None:
            losses = losses * weights[:, first + 1 :][scored]
        return losses.sum() / (scored.sum() if num_items_in_batch is None else num_items_in_batch)
