"""Statistics of generated pictures: on embeddings, and on pixels.

Embeddings are rows of unit length, as CLIP returns them: (pictures, dimensions). The product of two
is their cosine, which is 1 for equal pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TINY = 1e-12


def likeness_to_others(likeness: Floats) -> float:
    """The mean likeness of all pairs except those of equal number, which share their content.

    Args:
        likeness: (pictures, others); the first of the others belong to the pictures, in their
            order. Pairs that could not be compared are NaN, and at least one is left.
    """
    rest = likeness[~np.eye(*likeness.shape, dtype=np.bool_)]
    return float(np.nanmean(rest))


def known_mean(values: Floats) -> float | None:
    """The mean of the values that are not NaN; None if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def nearest(some: Floats, others: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """For each of some points, the cosine with the nearest of the others, and its index."""
    cosines = some @ others.T
    which = cosines.argmax(axis=1)
    return cosines[np.arange(len(some)), which], which


def agreement(vectors: Floats) -> float:
    """The mean cosine of all pairs of different rows, which need not have length 1.

    A row of zeros agrees with nothing. At least two rows.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > _TINY)
    total = rows.sum(axis=0)
    count = len(rows)
    return float((total @ total - (rows * rows).sum()) / (count * (count - 1)))


@dataclass(frozen=True)
class Probe:
    """A linear classifier of pictures: style or not."""

    direction: Floats
    """The axis: position is the product with it minus `offset`, scaled so that the means of the two
    training sides are at 0 and 1."""
    offset: float

    def position(self, points: Floats) -> Floats:
        """Positions of points between the plain pictures (0) and those of the style (1)."""
        found: Floats = points @ self.direction - self.offset
        return found

    def presence(self, points: Floats) -> Floats:
        """The position, clipped to 0 to 1."""
        return self.position(points).clip(0.0, 1.0)

    def accuracy(self, plain: Floats, style: Floats) -> float:
        """The share of pictures on the correct side of the middle; both classes count equally."""
        return float(((~self.takes(plain)).mean() + self.takes(style).mean()) / 2)

    def takes(self, points: Floats) -> NDArray[np.bool_]:
        """Which pictures are classified as the style: those nearer to it than to the plain ones."""
        return self.position(points) > 0.5


def probe(plain: Floats, style: Floats) -> Probe | None:
    """Train a classifier of style against plain; None if nothing separates them.

    Fisher's linear discriminant: the difference of both means, by the inverse of the covariance
    within both, shrunk towards a multiple of the identity as Ledoit and Wolf do (Journal of
    Multivariate Analysis 88, 2004), because there are fewer pictures than dimensions.
    """
    apart = style.mean(axis=0) - plain.mean(axis=0)
    within = np.concatenate([plain - plain.mean(axis=0), style - style.mean(axis=0)])
    direction = np.linalg.solve(_covariance(within), apart)
    length = float(apart @ direction)
    if length < _TINY:
        return None
    direction /= length
    return Probe(direction, float(plain.mean(axis=0) @ direction))


def cross_accuracy(plain: Floats, style: Floats, parts: int = 8) -> float:
    """The cross-validated accuracy of the probe, in `parts` folds.

    0.5, which is chance, if there are too few pictures to leave any out.
    """
    parts = min(parts, len(plain), len(style))
    found = []
    for part in range(parts if parts > 1 else 0):
        kept = [np.arange(len(side)) % parts != part for side in (plain, style)]
        learned = probe(plain[kept[0]], style[kept[1]])
        found.append(0.5 if learned is None else learned.accuracy(plain[~kept[0]], style[~kept[1]]))
    return float(np.mean(found)) if found else 0.5


def _covariance(rows: Floats) -> Floats:
    """The covariance of rows whose mean is zero, shrunk."""
    count, width = rows.shape
    raw: Floats = rows.T @ rows / count
    mean = float(np.trace(raw)) / width
    identity = np.eye(width)
    spread = float(((raw - mean * identity) ** 2).sum())
    noise = float(((rows * rows).sum(axis=1) ** 2).sum() / count - (raw * raw).sum()) / count
    share = min(noise / spread, 1.0) if spread > _TINY * mean * mean else 1.0
    shrunk: Floats = share * mean * identity + (1 - share) * raw + _TINY * identity
    return shrunk


def rank_share(some: Floats, others: Floats) -> float:
    """The probability that one of some is larger than one of the others; ties count half
    (Mann-Whitney)."""
    pairs = some[:, None] - others[None, :]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


def change(pictures: Sequence[NDArray[np.uint8]], others: Sequence[NDArray[np.uint8]]) -> float:
    """The root mean square difference of two lists of pictures, in steps of 0 to 255."""
    squares = [
        float(np.mean((one.astype(np.float32) - other) ** 2))
        for one, other in zip(pictures, others, strict=True)
    ]
    return float(np.sqrt(np.mean(squares)))


def steadiness(values: Sequence[float]) -> float:
    """How steadily values rise: the rise from first to last as a share of all rises and falls.

    1 if no step falls, 0 if there is no rise overall; a small fall costs little.
    """
    steps = np.diff(np.asarray(values, np.float64))
    way = float(np.abs(steps).sum())
    return max(0.0, float(steps.sum()) / way) if way > _TINY else 0.0


def margins(pictures: Floats, texts: Floats, own: Sequence[int]) -> Floats:
    """The margin by which each picture is nearer to its own text than to the others on average.

    A shift that a style causes for all texts alike cancels out. `own` is the number of each
    picture's text; at least two texts.
    """
    cosines = pictures @ texts.T
    rows = np.arange(len(own))
    mine = cosines[rows, np.asarray(own)]
    others = (cosines.sum(axis=1) - mine) / (len(texts) - 1)
    found: Floats = mine - others
    return found


def retrieved(pictures: Floats, texts: Floats, own: Sequence[int]) -> float:
    """The share of pictures whose own text is the nearest of all (R-precision at 1)."""
    return float(((pictures @ texts.T).argmax(axis=1) == np.asarray(own)).mean())


def above_zero(values: Floats) -> bool:
    """Whether the mean lies above zero by more than twice its standard error."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf
    return bool(values.mean() > 2 * error)


def nearest_pixels(some: Floats, others: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """For each row of pixels, the least root mean square distance to one of the others, and its
    index.
    """
    squares = (some**2).mean(axis=1)[:, None] + (others**2).mean(axis=1)[None, :]
    apart = np.sqrt(np.maximum(squares - 2 * some @ others.T / some.shape[1], 0.0))
    which = apart.argmin(axis=1)
    return apart[np.arange(len(some)), which], which
