"""Bootstrap confidence intervals of means, and a paired permutation test of two.

The unit is the example: a held-out example is resampled, or its two scores swapped, with all its
fields, since the fields of one answer are not independent. Everything is seeded, so the same
answers give the same figures.
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
"""Confidence level of the intervals."""

DRAWS = 2000
"""Number of bootstrap samples; with it the ends of an interval vary by a few percent of its
width."""

SIGNS = 10_000
"""Number of random sign patterns in the permutation test, if not all can be tried."""

_EXACT = 12
"""Up to this many nonzero differences, every sign pattern is tried."""

_CHUNK = 4_000_000
"""Number of values held in memory at a time."""

_SEED = 17
_NORMAL = NormalDist()

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """The mean difference of paired scores, its interval, and the two-sided p-value: the chance of
    a difference at least as large if the two scores of each pair were interchangeable."""

    mean: float
    interval: Interval
    p: float


def means(
    columns: Sequence[Sequence[float]], low: float = 0.0, high: float = 1.0
) -> list[Interval]:
    """The interval of the mean of each column; empty if there are no values.

    Bias-corrected and accelerated bootstrap (Efron 1987; Efron and Tibshirani 1993, 14.10). It
    resamples only observed values, so it would claim certainty if all n are equal. In that case
    the exact binomial bound (Clopper and Pearson 1934) limits the share of other, unseen values: it
    is at most 1 - (alpha / 2)^(1 / n), and they may lie anywhere from `low` to `high`.
    """
    import numpy as np

    return _means(np.array(columns, dtype=np.float64).T, low, high)


def differences(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> list[Difference]:
    """The difference of each pair of columns of scores from 0 to 1, ours minus theirs.

    The test flips the signs of the differences (Fisher 1935): in every pattern if few differ, else
    in random ones, to which the observed one is added (Phipson and Smyth 2010).
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
    """The p-values of several tests, corrected for their number (Holm 1979).

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

    # A sample is drawn as the number of times that each row occurs in it: the means are then one
    # matrix product, and the same rows are drawn for every column.
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
    """The BCa interval of one mean (Efron and Tibshirani 1993, equations 14.9 to 14.15).

    The jackknife estimate of the acceleration has the closed form below, as the statistic is a
    mean.
    """
    import numpy as np

    mean, tail = float(column.mean()), (1 - LEVEL) / 2
    if np.ptp(column) < 1e-12:
        unseen = 1 - tail ** (1 / len(column))
        return mean - unseen * (mean - low), mean + unseen * (high - mean)
    # Means that differ only by rounding are ties; half of them count as below.
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
    """For each column, the chance of a sum at least as far from 0 with random signs."""
    import numpy as np

    wanted = np.abs(apart.sum(axis=0)) - 1e-9
    chances = [1.0] * apart.shape[1]
    many = []
    for index, column in enumerate(apart.T):
        nonzero = column[column != 0]
        if len(nonzero) > _EXACT:
            many.append(index)
        elif len(nonzero):
            patterns = (np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero))) & 1
            sums = (1 - 2 * patterns) @ nonzero
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
