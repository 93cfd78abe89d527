"""The order of training: every batch of a whole run, fixed before the first step.

One list for all epochs makes a resumed run identical to an uninterrupted one: resuming skips the
batches already done, and the next batch does not depend on any random state.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Final, NotRequired, TypedDict

import torch
from torch.utils.data import Sampler

IGNORED = -100
"""Label of a token that carries no loss (torch's cross entropy)."""

WEIGHTS: Final = "weights"
"""Column with each token's loss weight; without it, all labelled tokens count the same."""


class Row(TypedDict):
    """The tokens of one example, with their labels."""

    input_ids: list[int]
    labels: list[int]
    weights: NotRequired[list[float]]


_MULTIPLE = 32
_POOL = 16
"""Batches that are sorted by length together: similar lengths in a batch, and still a new shuffle
in every epoch."""


def plan(
    lengths: Sequence[int], *, epochs: float, batch_size: int, grouped: bool, seed: int
) -> list[list[int]]:
    """Plan the example indices of every batch of the run.

    Args:
        lengths: tokens of each example.
        epochs: passes over the examples; a fraction ends within the last pass.
        batch_size: examples in a batch.
        grouped: put examples of similar length together, to reduce padding.
        seed: the only thing that the order depends on.
    """
    generator = random.Random(seed)
    batches: list[list[int]] = []
    per_epoch = -(-len(lengths) // batch_size)
    wanted = max(1, round(epochs * per_epoch))
    while len(batches) < wanted:
        order = list(range(len(lengths)))
        # Shuffled before and after the sort by length: pools and the order of batches stay random,
        # only the composition of a batch depends on length.
        generator.shuffle(order)
        if grouped:
            pool = batch_size * _POOL
            order = [
                index
                for start in range(0, len(order), pool)
                for index in sorted(order[start : start + pool], key=lambda i: lengths[i])
            ]
        epoch = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        if grouped:
            generator.shuffle(epoch)
        batches += epoch
    return batches[:wanted]


def tokens_after(
    order: Sequence[Sequence[int]], lengths: Sequence[int], accumulate: int
) -> list[int]:
    """Tokens seen after 0, 1, 2, … optimizer steps of `accumulate` batches each."""
    each = [sum(lengths[i] for i in batch) for batch in order]
    steps = [sum(each[i : i + accumulate]) for i in range(0, len(each), accumulate)]
    return list(itertools.accumulate(steps, initial=0))


class Order(Sampler[list[int]]):
    """A planned order as a torch batch sampler."""

    def __init__(self, batches: Sequence[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def pad(rows: Sequence[Row], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows of `input_ids` and `labels` → tensors [rows, longest], padded on the right.

    The length is rounded up, so that few shapes occur and the allocator can reuse freed memory.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    longest = -(-longest // _MULTIPLE) * _MULTIPLE
    ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    weights = torch.zeros((len(rows), longest))
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[i, :length] = torch.tensor(row["input_ids"])
        labels[i, :length] = torch.tensor(row["labels"])
        mask[i, :length] = 1
        if WEIGHTS in row:
            weights[i, :length] = torch.tensor(row[WEIGHTS])
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {**batch, WEIGHTS: weights} if WEIGHTS in rows[0] else batch


def concatenate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Rows → one row [1, tokens] without padding; positions restart with each example.

    If no attention mask is given, transformers builds a block-diagonal one from the restarting
    positions, so the examples of a row do not attend to each other.
    """
    ids = [token for row in rows for token in row["input_ids"]]
    # Otherwise an example's first token would be predicted from the end of the previous example.
    labels = [token for row in rows for token in [IGNORED, *row["labels"][1:]]]
    positions = [position for row in rows for position in range(len(row["input_ids"]))]
    batch = {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
    }
    if WEIGHTS in rows[0]:
        batch[WEIGHTS] = torch.tensor([[weight for row in rows for weight in row[WEIGHTS]]])
    return batch
