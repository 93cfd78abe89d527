"""Fused forward and backward pass of a linear layer and its LoRA.

PEFT computes base and adapter separately, then scales the adapter's full-size output and adds it;
the backward pass does the same. Fused, each result is accumulated in place and only matrices of the
adapter's rank are scaled. Results are equal up to rounding (`benchmarks/image_step.py` measures the
gain).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

_NAME = "default"


class _Product(torch.autograd.Function):
    """x @ (weight + scale up @ down)^T + bias, for a frozen weight.

    Shapes: x is … x in, weight out x in, down rank x in, up out x rank.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.T
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        # Scales and adds within the product: no second tensor of the output's size.
        out.addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(rows, inner, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        back = grad @ up  # Of the adapter's rank; serves the gradients of both x and down.
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (grad @ weight).addmm_(back, down, alpha=ctx.scale).view(ctx.shape)
        to_down = (back.T @ rows).mul_(ctx.scale)
        to_up = (grad.T @ inner).mul_(ctx.scale)
        return to_x, None, None, to_down, to_up, None


def fuse(layer: Any) -> None:
    """Let one of PEFT's layers compute base and adapter together, if possible.

    It is possible for linear layers and 1 x 1 convolutions without dropout.
    """
    base = layer.get_base_layer()
    if not isinstance(layer.lora_dropout[_NAME], torch.nn.Identity):
        return
    if isinstance(base, torch.nn.Linear):
        layer.forward = lambda x: _together(layer, base, x)
    elif isinstance(base, torch.nn.Conv2d) and base.kernel_size == (1, 1) == base.stride:
        layer.forward = lambda x: _together(layer, base, x.movedim(1, -1)).movedim(-1, 1)


def _together(layer: Any, base: Any, x: torch.Tensor) -> torch.Tensor:
    weight = base.weight.flatten(1)
    down, up = (
        half[_NAME].weight.flatten(1).to(weight.dtype) for half in (layer.lora_A, layer.lora_B)
    )
    bias, scale = base.bias, layer.scaling[_NAME]
    result: torch.Tensor = _Product.apply(x.to(weight.dtype), weight, bias, down, up, scale)
    return result
