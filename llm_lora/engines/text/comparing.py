"""Comparison of other forms of a model with the form that was trained, on held-out answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llm_lora.base import Base, Chat, Encoded
from llm_lora.engines.shared import free_memory, full_disk, out_of_memory
from llm_lora.engines.text.answers import load_trained
from llm_lora.example import Example
from llm_lora.progress import Listener, Progress, silent

_FIX = "leave measuring out: --no-measure; merging itself needs little memory"


@dataclass(frozen=True)
class Form:
    """One of the forms in which a model can be served."""

    base: Base
    adapter: Path | None
    bits: int


@dataclass(frozen=True)
class Nearness:
    """Means over the tokens of held-out answers, given the tokens before them.

    `loss` is the cross entropy of the answer's tokens, in nats; `kl` the divergence of this form's
    distribution from the reference's, in nats; `same` the share of tokens for which both rank the
    same token first.
    """

    loss: float
    kl: float
    same: float


def compare(
    reference: Form,
    others: Mapping[str, Form],
    chat: Chat,
    examples: Sequence[Example],
    *,
    precision: str,
    scratch: Path,
    listener: Listener = silent,
) -> tuple[Nearness, dict[str, Nearness]]:
    """Measure a reference and other forms; one model is in memory at a time.

    Args:
        reference: the form that the others are compared with.
        others: each with a name.
        chat, examples: the prompts and answers to measure on.
        precision: the recipe's `train.precision`.
        scratch: a folder for the reference's distributions: 4 bytes for each answer token and
            each word of the vocabulary.
        listener: called after each example.

    Raises:
        UserError: out of memory or disk space, or a model cannot be loaded.
    """
    rows = [chat.encode(example) for example in examples]
    total = len(rows) * (1 + len(others))
    found: dict[str, Nearness] = {}
    own = Nearness(0.0, 0.0, 0.0)
    for number, (name, form) in enumerate([("", reference), *others.items()]):
        sums = torch.zeros(3, dtype=torch.float64)
        with out_of_memory(_FIX), full_disk(scratch), torch.inference_mode():
            loaded = load_trained(
                form.base, adapter=form.adapter, bits=form.bits, precision=precision
            )
            for i, row in enumerate(rows):
                logs = _distributions(loaded.model, row, loaded.device)
                place = scratch / f"{i}.safetensors"
                if number == 0:
                    save_file({"logs": logs}, place)
                sums += _sums(load_file(place)["logs"], logs, row)
                done = number * len(rows) + i + 1
                listener(Progress(stage="measuring", done=done, total=total))
            del loaded
        free_memory()
        loss, kl, same = (sums / sum(row.answer_tokens for row in rows)).tolist()
        if number == 0:
            own = Nearness(loss, kl, same)
        else:
            found[name] = Nearness(loss, kl, same)
    return own, found


def _answer(row: Encoded) -> slice:
    return slice(row.prompt_tokens, row.prompt_tokens + row.answer_tokens)


def _distributions(model: Any, row: Encoded, where: torch.device) -> torch.Tensor:
    """Log-probabilities [answer tokens, vocabulary] of the next token, in fp32."""
    ids = torch.tensor([row.input_ids[: _answer(row).stop]], device=where)
    logits = model(input_ids=ids, logits_to_keep=row.answer_tokens + 1).logits[0, :-1]
    logs: torch.Tensor = logits.float().log_softmax(-1).cpu()
    return logs


def _sums(reference: torch.Tensor, logs: torch.Tensor, row: Encoded) -> torch.Tensor:
    """Sums over an answer's tokens of loss, divergence and agreement."""
    tokens = torch.tensor(row.input_ids[_answer(row)])
    loss = -logs.gather(1, tokens[:, None]).double().sum()
    kl = (reference.exp() * (reference - logs)).double().sum()
    same = (reference.argmax(-1) == logs.argmax(-1)).double().sum()
    return torch.stack([loss, kl, same])
