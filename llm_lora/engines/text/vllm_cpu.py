"""Fixes for two faults of vLLM 0.32 on CPUs; imported by vLLM's own workers.

For rows without an adapter, vLLM reads index -1 as the last LoRA slot, so requests to the base get
the update of whatever adapter is there: one that other requests of the batch use, or one unloaded
long ago, since unloading does not clear a slot. Here the inner product of these rows is set to
zero, and so is the update.

A request with a seed stops the whole engine when its prompt is prefilled in chunks: vLLM undoes the
draws of a chunk by moving the generator's offset, and CPU generators have none. Here such a
generator restarts from its seed, which is equivalent, as none of the earlier draws is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

Shrink = Callable[..., None]


class Mended:
    """The class for `--worker-extension-cls`; empty, as importing this module does the work."""


class Rewinding(torch.Generator):
    """A CPU generator that can undo its draws."""

    def get_offset(self) -> int:
        """A constant: CPU generators have no offset."""
        return 0

    def set_offset(self, _: int) -> torch.Generator:
        """Restart from the seed."""
        return self.manual_seed(self.initial_seed())


def only_rows_with_adapter(shrink: Shrink) -> Shrink:
    """Wrap the first half of vLLM's LoRA product: zeros for rows with adapter index -1."""

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
    # By name: training does not depend on vLLM, and its types are not checked.
    operations: Any = importlib.import_module("vllm.lora.ops.torch_ops.lora_ops")
    wrapper: Any = importlib.import_module("vllm.lora.punica_wrapper.punica_cpu")
    # The model runner makes its generators by this name.
    torch.Generator = Rewinding  # type: ignore[misc]
    operations.bgmv_shrink = wrapper.bgmv_shrink = only_rows_with_adapter(operations.bgmv_shrink)


_mend()
