"""Mends a wrong result of vLLM's LoRA product on CPUs; imported by vLLM's own workers.

For rows without an adapter, vLLM 0.32 takes index -1 for the last LoRA slot, so requests to the
base get the share of whatever adapter lies there: one that other requests of the batch use, or one
that was unloaded long ago, since unloading does not empty a slot. Here the inner product of these
rows becomes zero, and with it what is added to them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

Shrink = Callable[..., None]


class RowsWithoutAdapter:
    """What `--worker-extension-cls` names; adds nothing to the worker, its import does the work."""


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
    operations.bgmv_shrink = wrapper.bgmv_shrink = only_rows_with_adapter(operations.bgmv_shrink)


_mend()
