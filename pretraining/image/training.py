"""Training that can be stopped and resumed at any time, and its command line."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pretraining import checkpoints

log = logging.getLogger("pretraining")


def command_line(about: str | None, work: str, *, steps: int, decay: int) -> argparse.Namespace:
    """Options of all trainings: `work`, `steps`, `decay`, `minutes`, `threads`, `seed`."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("work", type=Path, help=work)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--decay", type=int, default=decay, help="last steps of a falling rate")
    parser.add_argument("--minutes", type=float, help="stop after so long; start again to go on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    return given


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
    """The learning rate of a step: warm-up, plateau, decay to zero."""
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
        """Update the average with the parameters after a step."""
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

    The generator is seeded by the step, so a resumed run draws the same as an uninterrupted one.
    `look(step)` is called with the averaged weights in place. Returns whether all steps are done.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = Average(parameters, plan.ema)
    first, spent = 0, 0.0
    if plan.checkpoint.exists():
        facts = checkpoints.restore(plan.checkpoint, model, [optimizer], average.values)
        first, spent = facts["step"], facts["cpu"]
    log.info("%.2fM parameters, %d steps done of %d", _count(parameters) / 1e6, first, plan.steps)
    smooth: float | None = None
    started = saved = time.monotonic()
    cpu = time.process_time()
    step = first

    def save() -> None:
        facts = {"step": step, "cpu": spent + time.process_time() - cpu}
        checkpoints.write(plan.checkpoint, model, [optimizer], facts, average.values)

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
