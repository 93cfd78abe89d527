"""A training that can be stopped at any time and goes on where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("pretraining")


@dataclass(frozen=True)
class Plan:
    """How long to train, how fast, and where the checkpoint is."""

    checkpoint: Path
    steps: int
    rate: float
    decay: int  # last steps, over which the rate falls to zero
    minutes: float | None = None  # of this start; the checkpoint tells where to go on
    warm_up: int = 50
    save_minutes: float = 3.0
    ema: float = 0.999
    seed: int = 0


def rate(step: int, plan: Plan) -> float:
    """The learning rate of a step: a rise, a level, a fall to zero."""
    rising = (step + 1) / plan.warm_up
    falling = (plan.steps - step) / plan.decay if plan.decay else 1.0
    return plan.rate * min(1.0, rising, falling)


class Average:
    """The exponential moving average of parameters, which follows faster at first."""

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their averages."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def train(
    model: nn.Module,
    plan: Plan,
    loss: Callable[[int, torch.Generator], Tensor],
    *,
    look: Callable[[int], None],
    look_every: int,
) -> bool:
    """Train by `loss(step, generator)`; the model ends with averaged weights.

    The generator is seeded by the step, so a resumed run draws what an unbroken one would have.
    `look(step)` is called with the averaged weights in place. Returns whether all steps are done.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = Average(parameters, plan.ema)
    first, spent = _restore(plan.checkpoint, model, optimizer, average)
    log.info("%.2fM parameters, %d steps done of %d", _count(parameters) / 1e6, first, plan.steps)
    smooth: float | None = None
    started = saved = time.monotonic()
    cpu = time.process_time()
    step = first

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.values,
            "step": step,
            "cpu": spent + time.process_time() - cpu,
        }
        _write(state, plan.checkpoint)

    for step in _steps(first, plan, started):
        optimizer.param_groups[0]["lr"] = rate(step - 1, plan)
        value = loss(step, torch.Generator().manual_seed(plan.seed * 1_000_003 + step))
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        if step % 50 == 0:
            used = spent + time.process_time() - cpu
            log.info("step %d loss %.4f, %.1f CPU minutes", step, smooth, used / 60)
        if time.monotonic() - saved > plan.save_minutes * 60:
            save()
            saved = time.monotonic()
        if step % look_every == 0 or step == plan.steps:
            average.swap()
            look(step)
            average.swap()
    save()
    average.swap()
    return step >= plan.steps


def _steps(first: int, plan: Plan, started: float) -> Iterator[int]:
    for step in range(first + 1, plan.steps + 1):
        if plan.minutes is not None and time.monotonic() - started > plan.minutes * 60:
            log.info("the time is up at step %d; the same command goes on", step - 1)
            return
        yield step


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _restore(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average
) -> tuple[int, float]:
    """Take over a checkpoint, where there is one; its steps and its seconds of CPU."""
    if not checkpoint.exists():
        return 0, 0.0
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for value, kept in zip(average.values, state["average"], strict=True):
        value.copy_(kept)
    return state["step"], state["cpu"]


def _write(state: dict[str, Any], checkpoint: Path) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    fresh = checkpoint.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(checkpoint)
