"""Bootstrap confidence intervals of figures, and a paired permutation test of two.

A figure is computed from sums over examples: a share from the number of answers that have it, an F1
from the hits and values of all answers. The unit is the example: a held-out example is resampled,
or its two answers swapped, with all its counts, since the fields of one answer are not independent.
Everything is seeded, so the same answers give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
"""Number of random patterns of swaps in the permutation test, if not all can be tried."""

_EXACT = 12
"""Up to this many examples with different answers, every pattern of swaps is tried."""

_CHUNK = 4_000_000
"""Number of values held in memory at a time."""

_SEED = 17
_NORMAL = NormalDist()

Interval = tuple[float, float]

Statistic = Callable[["Floats"], "Floats"]
"""Maps sums over examples [..., columns] to figures [..., figures]; undefined ones are NaN."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Difference:
    """The difference of a figure of two sets of answers, its interval, and the two-sided p-value:
    the chance of a difference at least as large if the two answers of each pair were
    interchangeable."""

    value: float
    interval: Interval
    p: float


def estimates(table: Sequence[Sequence[float]], statistic: Statistic) -> list[Estimate | None]:
    """Figures from 0 to 1 with their intervals; None for one that is undefined.

    Bias-corrected and accelerated bootstrap (Efron 1987; Efron and Tibshirani 1993, 14.10). It
    resamples only observed examples, so it would claim certainty if all are alike. In that case
    the exact binomial bound (Clopper and Pearson 1934) limits the share of other, unseen examples:
    it is at most 1 - (alpha / 2)^(1 / n), and their values may lie anywhere from 0 to 1.

    Args:
        table: the counts of each example, [examples, columns].
        statistic: computes the figures from the columns' sums.
    """
    import numpy as np

    counts = np.array(table, dtype=np.float64)
    found = statistic(counts.sum(axis=0))
    drawn = statistic(_resampled(counts))
    # A figure rests on the examples that change it; the others say nothing of its certainty.
    without = statistic(counts.sum(axis=0) - counts)
    alone = statistic(counts)
    return [
        None
        if np.isnan(value)
        else Estimate(
            float(value),
            _bca(
                float(value),
                drawn[:, index],
                without[:, index],
                (0.0, 1.0),
                int(np.count_nonzero(~np.isnan(alone[:, index]))),
            ),
        )
        for index, value in enumerate(found)
    ]


def differences(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], statistic: Statistic
) -> list[Difference | None]:
    """The difference of each figure, ours minus theirs; None where either is undefined.

    The test swaps the two answers of examples (Fisher 1935): in every pattern if few differ, else
    in random ones, to which the observed one is added (Phipson and Smyth 2010).

    Args:
        ours: the counts of each example, [examples, columns].
        theirs: the same of the other answers, in the same order.
        statistic: computes the figures from the columns' sums.
    """
    import numpy as np

    both = np.array([ours, theirs], dtype=np.float64)
    width = both.shape[-1]

    def apart(sums: Floats) -> Floats:
        found: Floats = statistic(sums[..., :width]) - statistic(sums[..., width:])
        return found

    counts = np.concatenate(both, axis=1)
    found = apart(counts.sum(axis=0))
    drawn = apart(_resampled(counts))
    without = apart(counts.sum(axis=0) - counts)
    chances = _swapped(both, statistic, found)
    return [
        None
        if np.isnan(value)
        else Difference(
            float(value),
            _bca(float(value), drawn[:, index], without[:, index], (-1.0, 1.0), len(counts)),
            chances[index],
        )
        for index, value in enumerate(found)
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


def _resampled(counts: Floats) -> Floats:
    """Column sums of bootstrap samples [draws, columns] of the rows of `counts`."""
    import numpy as np

    # A sample is drawn as the number of times that each row occurs in it: the sums are then one
    # matrix product, and the same rows are drawn for every column.
    size = len(counts)
    random = np.random.default_rng(_SEED)
    drawn = []
    step = max(1, _CHUNK // size)
    for start in range(0, DRAWS, step):
        draws = min(step, DRAWS - start)
        picked = random.integers(0, size, (draws, size)) + np.arange(draws)[:, None] * size
        times = np.bincount(picked.ravel(), minlength=draws * size).reshape(draws, size)
        drawn.append(times @ counts)
    return np.concatenate(drawn)


def _bca(
    value: float, drawn: Floats, without: Floats, limits: tuple[float, float], examples: int
) -> Interval:
    """The BCa interval of one figure (Efron and Tibshirani 1993, equations 14.9 to 14.15).

    Args:
        value: the figure.
        drawn: its value in each bootstrap sample; NaN where it is undefined.
        without: its value without each example, for the jackknife.
        limits: its lowest and highest possible value.
        examples: the number of examples that it rests on.
    """
    import numpy as np

    tail = (1 - LEVEL) / 2
    drawn, without = (column[~np.isnan(column)] for column in (drawn, without))
    if not len(without) or np.ptp(without) < 1e-12:
        unseen = 1 - tail ** (1 / max(1, examples))
        low, high = limits
        return value - unseen * (value - low), value + unseen * (high - value)
    # Values that differ only by rounding are ties; half of them count as below.
    below = np.count_nonzero(drawn < value - 1e-12) + np.count_nonzero(drawn <= value + 1e-12)
    share = min(max(below / 2 / len(drawn), 0.5 / len(drawn)), 1 - 0.5 / len(drawn))
    bias = _NORMAL.inv_cdf(share)
    pull = without.mean() - without
    acceleration = float((pull**3).sum() / (6 * (pull**2).sum() ** 1.5))

    def quantile(chance: float) -> float:
        moved = bias + _NORMAL.inv_cdf(chance)
        return _NORMAL.cdf(bias + moved / (1 - acceleration * moved))

    ends = np.quantile(drawn, [quantile(tail), quantile(1 - tail)])
    return float(ends[0]), float(ends[1])


def _swapped(both: Floats, statistic: Statistic, found: Floats) -> list[float]:
    """For each figure, the chance of a difference as far from 0 if answers are swapped at random.

    `both` has our counts and theirs [2, examples, columns], `found` the observed differences.
    """
    import numpy as np

    total, apart = both.sum(axis=(0, 1)), both[0] - both[1]
    apart = apart[np.any(apart != 0, axis=1)]
    wanted = np.abs(found) - 1e-9

    def hits(signs: Floats) -> NDArray[np.intp]:
        moved = signs @ apart
        differing = statistic((total + moved) / 2) - statistic((total - moved) / 2)
        # A figure that a swap leaves undefined is no evidence of a difference.
        far: NDArray[np.bool_] = np.abs(np.nan_to_num(differing)) >= wanted
        count: NDArray[np.intp] = far.sum(axis=0)
        return count

    if len(apart) <= _EXACT:
        patterns = (np.arange(2 ** len(apart))[:, None] >> np.arange(len(apart))) & 1
        signs = (1 - 2 * patterns).astype(np.float64)
        return [float(count) / len(patterns) for count in hits(signs)]
    random = np.random.default_rng(_SEED)
    counted = np.ones(len(found), dtype=np.intp)
    step = max(1, _CHUNK // max(apart.shape))
    for start in range(0, SIGNS, step):
        size = min(step, SIGNS - start)
        signs = 1.0 - 2 * random.integers(0, 2, (size, len(apart)), dtype=np.int8)
        counted += hits(signs.astype(np.float64))
    return [float(count) / (1 + SIGNS) for count in counted]
