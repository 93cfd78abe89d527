"""How sure a mean is: bootstrap intervals, and a paired test of the difference of two.

Examples are the unit: what is drawn again, and whose two scores may change places, is a whole
held-out example with all its fields. Everything is seeded, so the same answers give the same
figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
"""Confidence of the intervals."""

DRAWS = 2000
"""Bootstrap samples; with them the ends of an interval move by a few percent of its width."""

SIGNS = 10_000
"""Random sign patterns of the permutation test where not all can be tried."""

_EXACT = 12
"""Up to this many differences other than 0 every sign pattern is tried."""

_CHUNK = 4_000_000
"""Numbers held in memory at a time."""

_SEED = 17
_NORMAL = NormalDist()

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """The mean difference of paired scores: its interval, and how likely one at least as large
    is where which is which is chance (two-sided)."""

    mean: float
    interval: Interval
    p: float


def means(
    columns: Sequence[Sequence[float]], low: float = 0.0, high: float = 1.0
) -> list[Interval]:
    """The interval of the mean of each column; empty where the columns are.

    Bias-corrected and accelerated bootstrap (Efron 1987; Efron and Tibshirani 1993, 14.10). It
    knows only the values that it has seen: where all n are the same it would claim certainty. There
    the exact binomial bound says how many others may exist unseen (Clopper and Pearson 1934): a
    share up to 1 - (alpha / 2)^(1 / n), which lie anywhere from `low` to `high`.
    """
    import numpy as np

    return _means(np.array(columns, dtype=np.float64).T, low, high)


def differences(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> list[Difference]:
    """For each pair of columns of scores from 0 to 1: ours less theirs, example by example.

    The test flips the signs of the differences (Fisher 1935): every pattern where few differ, else
    random ones, counted with the one that was found (Phipson and Smyth 2010).
    """
    import numpy as np

    apart = np.array(ours, dtype=np.float64).T - np.array(theirs, dtype=np.float64).T
    if not apart.size:
        return []
    chance = _flipped(apart)
    return [
        Difference(float(column.mean()), interval, p)
        for column, interval, p in zip(apart.T, _means(apart, -1.0, 1.0), chance, strict=True)
    ]


def adjusted(chances: Sequence[float]) -> list[float]:
    """The p-values of several tests at once, corrected for their number (Holm 1979).

    >>> adjusted([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found = [1.0] * len(chances)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        least = max(least, min(1.0, (len(chances) - rank) * chances[index]))
        found[index] = least
    return found


def _means(values: Floats, low: float, high: float) -> list[Interval]:
    if not values.size:
        return []
    drawn = _resampled(values)
    return [_bca(column, draws, low, high) for column, draws in zip(values.T, drawn.T, strict=True)]


def _resampled(values: Floats) -> Floats:
    """Column means of bootstrap samples [draws, columns] of the rows of `values`."""
    import numpy as np

    count = len(values)
    random = np.random.default_rng(_SEED)
    drawn = []
    step = max(1, _CHUNK // count)
    for start in range(0, DRAWS, step):
        size = min(step, DRAWS - start)
        picked = random.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(picked.ravel(), minlength=size * count).reshape(size, count)
        drawn.append(times @ values / count)
    return np.concatenate(drawn)


def _bca(column: Floats, drawn: Floats, low: float, high: float) -> Interval:
    import numpy as np

    mean, tail = float(column.mean()), (1 - LEVEL) / 2
    if np.ptp(column) < 1e-12:
        unseen = 1 - tail ** (1 / len(column))
        return mean - unseen * (mean - low), mean + unseen * (high - mean)
    # Means that are equal but for the order of the sum are ties.
    below = np.count_nonzero(drawn < mean - 1e-12) + np.count_nonzero(drawn <= mean + 1e-12)
    share = min(max(below / 2 / len(drawn), 0.5 / len(drawn)), 1 - 0.5 / len(drawn))
    bias = _NORMAL.inv_cdf(share)
    centred = column - mean
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))

    def quantile(chance: float) -> float:
        moved = bias + _NORMAL.inv_cdf(chance)
        return _NORMAL.cdf(bias + moved / (1 - acceleration * moved))

    ends = np.quantile(drawn, [quantile(tail), quantile(1 - tail)])
    return float(ends[0]), float(ends[1])


def _flipped(apart: Floats) -> list[float]:
    """For each column, the chance of a sum as far from 0 when signs are random."""
    import numpy as np

    wanted = np.abs(apart.sum(axis=0)) - 1e-9
    chances = [1.0] * apart.shape[1]
    many = []
    for index, column in enumerate(apart.T):
        told = column[column != 0]
        if len(told) > _EXACT:
            many.append(index)
        elif len(told):
            patterns = (np.arange(2 ** len(told))[:, None] >> np.arange(len(told))) & 1
            sums = (1 - 2 * patterns) @ told
            chances[index] = float(np.mean(np.abs(sums) >= wanted[index]))
    if many:
        random = np.random.default_rng(_SEED)
        hits = np.zeros(len(many))
        step = max(1, _CHUNK // len(apart))
        for start in range(0, SIGNS, step):
            size = min(step, SIGNS - start)
            signs = 1.0 - 2 * random.integers(0, 2, (size, len(apart)), dtype=np.int8)
            hits += np.count_nonzero(np.abs(signs @ apart[:, many]) >= wanted[many], axis=0)
        for index, count in zip(many, hits, strict=True):
            chances[index] = float(1 + count) / (1 + SIGNS)
    return chances
