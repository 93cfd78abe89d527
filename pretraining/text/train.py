"""Pretraining of the tiny base on a CPU.

The learning rate rises, stays, and falls to zero over the last steps. The fall can start from any
checkpoint: `--resume CHECKPOINT --steps N --decay N`.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3ForCausalLM

from pretraining import checkpoints
from pretraining.text import model as tiny
from pretraining.text.evaluate import Examination
from pretraining.text.shards import ROW, stream

log = logging.getLogger("pretraining")

TOKENIZER = "tokenizer.json"
_MATRIX_RATE, _OTHER_RATE = 0.02, 3e-3
_WARM_UP = 60
_CLIP = 1.0


@dataclass(frozen=True)
class Plan:
    """What to train and how long."""

    base: Path
    checkpoints: Path
    steps: int
    decay: int
    batch: int = 12
    rows_per_shard: int = 1200
    report_every: int = 250
    cases: int = 48
    seed: int = 0
    resume: Path | None = None


def rate(step: int, plan: Plan) -> float:
    """The learning rate as a fraction of its peak."""
    rising = (step + 1) / _WARM_UP
    falling = (plan.steps - step) / plan.decay if plan.decay else 1.0
    return min(1.0, rising, max(falling, 0.02))


def _batches(plan: Plan, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches from step `first` on; a resumed run continues with unseen rows."""
    per_shard = plan.rows_per_shard // plan.batch
    shard_number, skip = divmod(first, per_shard)
    for shard in stream(plan.base / TOKENIZER, plan.seed, shard_number, plan.rows_per_shard):
        order = np.random.default_rng((plan.seed, shard_number)).permutation(plan.rows_per_shard)
        for number in range(skip, per_shard):
            rows = order[number * plan.batch : (number + 1) * plan.batch]
            ids, weights = (torch.from_numpy(part[rows]) for part in shard)
            yield ids.long(), weights
        shard_number, skip = shard_number + 1, 0


def _optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        tiny.Muon(inner, _MATRIX_RATE),
        torch.optim.AdamW(others, _OTHER_RATE, betas=(0.9, 0.97), weight_decay=0.0, fused=True),
    ]


def _loss(model: Qwen3ForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = F.linear(hidden, model.lm_head.weight)
    each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (each * weight).sum() / weight.sum()


def train(plan: Plan) -> None:
    """Train from random weights or from a checkpoint, and write the base."""
    plan.checkpoints.mkdir(parents=True, exist_ok=True)
    model = tiny.new_model(plan.base / TOKENIZER, plan.seed)
    optimizers = _optimizers(model)
    first = 0
    if plan.resume:
        first = checkpoints.restore(plan.resume, model, optimizers)["step"]
    highest = (_MATRIX_RATE, _OTHER_RATE)
    compiled = torch.compile(_loss)
    examination = Examination(plan.base / TOKENIZER, cases=plan.cases)
    log.info("%d parameters, step %d", sum(p.numel() for p in model.parameters()), first)
    average, started = 0.0, time.monotonic()
    for step, (ids, weights) in zip(range(first, plan.steps), _batches(plan, first), strict=False):
        for optimizer, top in zip(optimizers, highest, strict=True):
            optimizer.param_groups[0]["lr"] = top * rate(step, plan)
        loss = compiled(model, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(optimizers[1].param_groups[0]["params"], _CLIP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average = loss.item() if step == first else 0.95 * average + 0.05 * loss.item()
        done = step + 1
        if done % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            tokens = done * plan.batch * ROW / 1e6
            log.info("step %d %.1f min %.2fM tokens loss %.3f", done, minutes, tokens, average)
        if done % plan.report_every == 0 or done == plan.steps:
            path = plan.checkpoints / f"step{done}.safetensors"
            checkpoints.write(path, model, optimizers, {"step": done})
            log.info("step %d exact: %s", done, examination.short_report(model))
    tiny.save(model, model.state_dict(), plan.base)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="folder with tokenizer.json; gets the weights")
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--decay", type=int, default=1000, help="last steps of a falling rate")
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("torch").setLevel(logging.WARNING)
    torch.set_num_threads(given.threads)
    train(
        Plan(
            given.base, given.checkpoints, given.steps, given.decay,
            seed=given.seed, resume=given.resume,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
