"""TRL's SFTTrainer over examples of token ids, in a planned order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from trl import SFTTrainer

from llm_lora.data.text import Course
from llm_lora.engines.text import batches


def planned_loader(trainer: Any, order: list[list[int]]) -> Any:
    """The loader of a trainer's examples, in the planned batches."""
    loader: DataLoader[Any] = DataLoader(
        trainer.train_dataset,
        batch_sampler=batches.Order(order),
        collate_fn=trainer.data_collator,
        # A generator of its own: drawing the worker seed must not move the global state.
        generator=torch.Generator(),
    )
    return trainer.accelerator.prepare(loader)


class PlannedTrainer(SFTTrainer):
    """Trains on planned batches; on a CPU it computes logits only where there is loss."""

    def __init__(
        self,
        *,
        order: list[list[int]],
        pad_id: int,
        concatenated: bool,
        course: Course | None = None,
        **options: Any,
    ) -> None:
        """`course` constrains the validation loss; everything else goes to TRL."""
        self._order = order
        self._course = course
        collate = batches.concatenate if concatenated else lambda rows: batches.pad(rows, pad_id)
        super().__init__(data_collator=collate, **options)

    def get_train_dataloader(self) -> Any:
        return planned_loader(self, self._order)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the answers' tokens, weighted where weights are given.

        With a course, the validation loss is computed over the tokens that the constraint allows,
        unweighted: a token that the constraint forces costs nothing, as in constrained decoding.

        TRL has no token weights. With Triton it computes logits only at labelled positions; on a
        CPU it computes all of them, and entropies that nothing uses: 40% more time on a small base.
        """
        weights = inputs.pop(batches.WEIGHTS, None)
        course = None if model.training else self._course
        if course is not None:
            labels = inputs["labels"]
            logits, targets, scored = _scored(model, inputs)
            allowed = _allowed(course, labels.tolist(), logits.shape[-1]).to(logits.device)
            chosen = logits[scored].float().masked_fill(~allowed, -torch.inf)
            loss = F.cross_entropy(chosen, targets[scored])
            return (loss, {}) if return_outputs else loss
        if return_outputs or (weights is None and self.args.device.type != "cpu"):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        logits, targets, scored = _scored(model, inputs)
        losses = F.cross_entropy(logits[scored].float(), targets[scored], reduction="none")
        if weights is not None:
            losses = losses * weights[:, -targets.shape[1] :][scored]
        return losses.sum() / (scored.sum() if num_items_in_batch is None else num_items_in_batch)


def _scored(
    model: Any, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [rows, columns, vocabulary] from the first label on, targets, and which count."""
    labels = inputs["labels"]
    # The label of column i is predicted at column i - 1. Columns before the first label of any row
    # (prompts) need no logits, which are the largest tensor of a step.
    first = int((labels[:, 1:] != batches.IGNORED).any(dim=0).nonzero()[0])
    targets = labels[:, first + 1 :]
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    keep = labels.shape[1] - first
    logits = model(**rest, use_cache=False, logits_to_keep=keep).logits[:, :-1]
    return logits, targets, targets != batches.IGNORED


def _allowed(course: Course, labels: list[list[int]], vocabulary: int) -> torch.Tensor:
    """The tokens allowed at each label that counts, row by row, [labels, vocabulary].

    If examples share a row, tokens without loss separate their answers.
    """
    answers = [
        list(run)
        for row in labels
        for counts, run in itertools.groupby(row, key=lambda label: label != batches.IGNORED)
        if counts
    ]
    rows = torch.from_numpy(np.concatenate([course.allowed(answer) for answer in answers]))
    # Logits beyond the tokenizer's vocabulary come from padding of the model's output matrix.
    return F.pad(rows, (0, vocabulary - rows.shape[1]))
