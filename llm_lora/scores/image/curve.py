"""Analysis of an image training log: under-fitting, over-fitting, divergence.

Single losses of a diffusion model say next to nothing, because each has another noise level. So
this uses means over stretches of the log, and the loss on held-out pictures with the same noise
every time (kohya's validation loss).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

_STRETCH = 0.2
"""Share of the log whose mean represents its beginning and its end."""
_SURE = 5
"""Number of standard errors by which the loss must rise to count as risen."""
_LATE = 1 / 3
"""The last share of the training, in which little should be left to learn."""
_LEAST = 3
"""Fewest usable measurements; for the held-out loss, the one before the first step counts."""
_LEVEL = 0.15
"""Share of the total fall from which the last third counts as still falling."""
_KEPT = 0.95
"""Share of the fall that must be kept at the end; below it the loss counts as risen again."""
_LEAST_FALL = 1e-3
"""Share by which the bare base's loss must fall; below it nothing counts as learned."""


@dataclass(frozen=True)
class Reading:
    """Result of the analysis.

    `learned` is the share by which training lowered the held-out loss, 0 if it hardly fell; `kept`
    is the share of that fall that is left at the adapter's step; `level` is one minus the share of
    the fall in the last third of the log, 1 if the log ends with a rise. All are None if the log is
    too short. `findings` are sentences.
    """

    learned: float | None
    kept: float | None
    level: float | None
    loss: tuple[float, float] | None
    held_out: tuple[float, ...]
    findings: tuple[str, ...]


def read(curve: Sequence[Mapping[str, Any]], step: int) -> Reading:
    """Analyse the log of a training.

    Args:
        curve: rows with step and either loss or validation_loss.
        step: the step of the adapter.
    """
    losses = [float(row["loss"]) for row in curve if row.get("loss") is not None]
    watched = {
        int(row["step"]): float(row["validation_loss"])
        for row in curve
        if row.get("validation_loss") is not None
    }
    loss, broken = _ends(losses), _broken(losses)
    values = tuple(watched[at] for at in sorted(watched))
    if len(values) < _LEAST:
        short = (
            "the loss on held-out pictures was measured too rarely to judge: lower train.save_every"
        )
        return Reading(None, None, None, loss, values, (*broken, short))
    first, best, last = values[0], min(values), max(watched)
    taken = max((at for at in watched if at <= step), default=last)
    fall = first - best
    if fall <= _LEAST_FALL * first or not math.isfinite(fall):
        never = (
            f"the loss on held-out pictures never fell more than {_LEAST_FALL:.1%} below that of "
            "the bare base: nothing was learned that generalises; try another "
            "train.learning_rate"
        )
        return Reading(0.0, 0.0, 1.0, loss, values, (*broken, never))
    kept = max(0.0, min(1.0, (first - watched[taken]) / fall))
    late = min(value for at, value in watched.items() if at <= last * (1 - _LATE))
    risen = (watched[last] - best) / fall
    level = 1.0 if risen > 1 - _KEPT else 1 - (late - best) / fall
    after = (watched[last] - watched[taken]) / fall
    return Reading(
        learned=fall / first if first > 0 else 1.0,
        kept=kept,
        level=level,
        loss=loss,
        held_out=values,
        findings=(*broken, *_sentences(kept, level, after, loss)),
    )


def _stretch(losses: Sequence[float]) -> int:
    return max(1, round(len(losses) * _STRETCH))


def _ends(losses: Sequence[float]) -> tuple[float, float] | None:
    """The mean loss at the beginning and at the end."""
    if not losses:
        return None
    count = _stretch(losses)
    return fmean(losses[:count]), fmean(losses[-count:])


def _broken(losses: Sequence[float]) -> tuple[str, ...]:
    """A sentence if the loss rose by more than its noise."""
    count = _stretch(losses)
    begin, end = losses[:count], losses[-count:]
    if count < _LEAST:
        return ()
    error = math.sqrt((variance(begin) + variance(end)) / count)
    if fmean(end) - fmean(begin) <= _SURE * error:
        return ()
    return (
        f"the training loss rose from {fmean(begin):.3g} to {fmean(end):.3g}: training diverged; "
        "divide train.learning_rate by 3",
    )


def _sentences(
    kept: float, level: float, after: float, loss: tuple[float, float] | None
) -> tuple[str, ...]:
    found = []
    if kept < _KEPT:
        falling = loss is not None and loss[1] < loss[0]
        found.append(
            f"the loss on held-out pictures rose again by {1 - kept:.0%} of what it had fallen"
            + (" while the training loss went on falling: over-fitted" if falling else "")
            + "; set train.patience, or train for fewer epochs"
        )
    if after > 1 - _KEPT:
        found.append(
            f"the loss on held-out pictures rose after the step that was taken, by {after:.0%} of "
            "what it had fallen: longer training would over-fit"
        )
    if level < 1 - _LEVEL:
        found.append(
            f"{1 - level:.0%} of the fall of the loss on held-out pictures came in the last third: "
            "under-fitted; train for more epochs"
        )
    return tuple(found) or (
        "the loss on held-out pictures fell, levelled out, and did not rise again",
    )
