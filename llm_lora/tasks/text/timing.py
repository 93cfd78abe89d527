"""Latency of single answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from llm_lora.scores import Latency

PROMPTS = 32
"""Maximum number of prompts timed, spread evenly over all."""

_Prompt = TypeVar("_Prompt")


def latency(
    ask: Callable[[_Prompt], object],
    prompts: Sequence[_Prompt],
    clock: Callable[[], float] = time.monotonic,
) -> Latency | None:
    """Ask prompts one at a time and measure the latency, by nearest rank.

    None without prompts. `clock` returns seconds.
    """
    if not prompts:
        return None
    chosen = prompts[:: -(-len(prompts) // PROMPTS)]
    # A warm-up first, so that no set-up time is measured.
    ask(chosen[0])
    taken = []
    for prompt in chosen:
        began = clock()
        ask(prompt)
        taken.append(1000 * (clock() - began))
    taken.sort()
    at = {share: taken[math.ceil(share * len(taken)) - 1] for share in (0.5, 0.95)}
    return Latency(len(taken), p50_ms=round(at[0.5], 1), p95_ms=round(at[0.95], 1))
