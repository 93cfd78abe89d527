"""Mends two faults of vLLM 0.32 on CPUs; imported by vLLM's own workers.

For rows without an adapter, it takes index -1 for the last LoRA slot, so requests to the base get
the share of whatever adapter lies there: one that other requests of the batch use, or one that was
unloaded long ago, since unloading does not empty a slot. Here the inner product of these rows
becomes zero, and with it what is added to them.

A request with a seed ends the whole engine when its prompt is worked on in parts: what was drawn
for a part is taken back by moving the generator's offset, and generators of a CPU have none. Here
such a generator begins anew, which is the same, as nothing that was drawn before counts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

Shrink = Callable[..., None]


class Mended:
    """What `--worker-extension-cls` names; adds nothing to the worker, its import does the work."""


class Rewinding(torch.Generator):
    """A generator for a CPU that takes back what it drew."""

    def get_offset(self) -> int:
        """Nothing that tells one moment from another."""
        return 0

    def set_offset(self, _: int) -> torch.Generator:
        """Begin anew with the seed."""
        return self.manual_seed(self.initial_seed())


def only_rows_with_adapter(shrink: Shrink) -> Shrink:
    """The first half of vLLM's LoRA product, with zeros where the index of the adapter is -1."""

    def mended(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        indices: torch.Tensor,
        *more: Any,
    ) -> None:
        shrink(inputs, weights, output, indices, *more)
        output.masked_fill_((indices < 0).unsqueeze(1), 0)

    return mended


def _mend() -> None:
    # By name: vLLM is no dependency of training, and its types are not looked at.
    operations: Any = importlib.import_module("vllm.lora.ops.torch_ops.lora_ops")
    wrapper: Any = importlib.import_module("vllm.lora.punica_wrapper.punica_cpu")
    # The model runner makes its generators by this name.
    torch.Generator = Rewinding  # type: ignore[misc]
    operations.bgmv_shrink = wrapper.bgmv_shrink = only_rows_with_adapter(operations.bgmv_shrink)


_mend()
