"""How long one answer takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

PROMPTS = 32
"""Prompts asked at most, spread over all."""

_Prompt = TypeVar("_Prompt")


def latency(
    ask: Callable[[_Prompt], object],
    prompts: Sequence[_Prompt],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any] | None:
    """Ask prompts one at a time: how many (`n`), median and 95th percentile in milliseconds, by
    nearest rank; None without prompts. `clock` tells the time in seconds."""
    if not prompts:
        return None
    chosen = prompts[:: -(-len(prompts) // PROMPTS)]
    # The first one twice, so that nothing is set up while the clock runs.
    ask(chosen[0])
    taken = []
    for prompt in chosen:
        began = clock()
        ask(prompt)
        taken.append(1000 * (clock() - began))
    taken.sort()
    at = {share: taken[math.ceil(share * len(taken)) - 1] for share in (0.5, 0.95)}
    return {"n": len(taken), "p50_ms": round(at[0.5], 1), "p95_ms": round(at[0.95], 1)}
