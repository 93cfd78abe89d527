"""Near-duplicates among pictures: the same picture saved, scaled, cropped or lit slightly
differently.

The likeness of two pictures is the lower of two figures: one minus the largest colour difference in
any of 8 x 8 fields, and the correlation of their patterns. The first separates drawings of one
composition in different colours, which the usual hashes of grey values treat as equal; the second
separates low-contrast pictures, whose colours are all similar. Measured on drawn scenes and shapes:
at 0.8 it finds every picture scaled by a half, saved as JPEG of quality 60, 10% brighter, or
cropped by 4%, and confuses no two different scenes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]
    Pairs = NDArray[np.int64]

_ROWS_AT_ONCE = 256
_PAIRS_AT_ONCE = 1 << 14
_VALUES_AT_ONCE = 12
_FLAT = 2.55
"""Standard deviation of the colours, 0 to 255, below which a picture has no pattern."""


def likeness(a: Bytes, b: Bytes) -> float:
    """The likeness of two pictures by their fields (n x n x 3), at most 1, mirrored or not."""
    import numpy as np

    fields = np.stack([a, b]).astype(np.float32)
    pair = np.array([[0, 1]])
    return float(max(_alike(fields, fields, pair)[0], _alike(fields, fields[:, :, ::-1], pair)[0]))


def clusters(fields: Sequence[Bytes], threshold: float) -> list[int]:
    """For each picture, the first one that it resembles, directly or through others.

    Args:
        fields: mean colours of each picture's fields, n x n x 3 with an even n.
        threshold: likeness from which two belong together, above 0 up to 1.
    """
    import numpy as np

    first = list(range(len(fields)))

    def root(index: int) -> int:
        while first[index] != index:
            first[index] = first[first[index]]
            index = first[index]
        return index

    if len(fields) > 1:
        stacked = np.stack(fields).astype(np.float32)
        # Against all pictures, then against their mirror images. The lower root stays the label, so
        # that a cluster is named by its first picture.
        for other in (stacked, stacked[:, :, ::-1]):
            for a, b in _similar(stacked, other, threshold):
                low, high = sorted((root(a), root(b)))
                first[high] = low
    return [root(index) for index in range(len(fields))]


def _similar(fields: Floats, others: Floats, threshold: float) -> Iterator[tuple[int, int]]:
    for pairs in _candidates(fields, others, threshold):
        alike = _alike(fields, others, pairs) >= threshold - 1e-6
        yield from (tuple(pair) for pair in pairs[alike].tolist())


def _candidates(fields: Floats, others: Floats, threshold: float) -> Iterator[Pairs]:
    """Pairs in which no field differs too much in colour.

    If no field differs by more than a bound, neither do the means of quarters. So quarters are
    compared first, then a few fields at a time, and most pairs are rejected cheaply.
    """
    import numpy as np

    bound = (1 - threshold) * 255 + 1e-3
    left, right = _quarters(fields), _quarters(others)
    flat, flat_others = fields.reshape(len(fields), -1), others.reshape(len(others), -1)
    for start in range(0, len(fields), _ROWS_AT_ONCE):
        rows = left[start : start + _ROWS_AT_ONCE]
        # Each pair once: the second picture comes after the first.
        close = np.arange(len(right))[None] > np.arange(start, start + len(rows))[:, None]
        for column in range(left.shape[1]):
            close &= np.abs(rows[:, None, column] - right[None, :, column]) <= bound
        pairs = np.argwhere(close) + np.array([start, 0])
        for at in range(0, flat.shape[1], _VALUES_AT_ONCE):
            some = slice(at, at + _VALUES_AT_ONCE)
            apart = np.abs(flat[pairs[:, 0], some] - flat_others[pairs[:, 1], some])
            pairs = pairs[apart.max(axis=1, initial=0) <= bound]
        for at in range(0, len(pairs), _PAIRS_AT_ONCE):
            yield pairs[at : at + _PAIRS_AT_ONCE]


def _quarters(fields: Floats) -> Floats:
    n, side = fields.shape[:2]
    half = side // 2
    means: Floats = fields.reshape(n, 2, half, 2, half, 3).mean(axis=(2, 4)).reshape(n, -1)
    return means


def _alike(fields: Floats, others: Floats, pairs: Pairs) -> Floats:
    import numpy as np

    a, b = fields[pairs[:, 0]], others[pairs[:, 1]]
    same = 1 - np.abs(a - b).max(axis=(1, 2, 3)) / 255
    a, b = (x - x.mean(axis=(1, 2), keepdims=True) for x in (a, b))
    deviation = [np.sqrt((x * x).mean(axis=(1, 2, 3))) for x in (a, b)]
    product = (a * b).mean(axis=(1, 2, 3))
    flat = np.maximum(*deviation) < _FLAT
    pattern = np.where(flat, 1.0, product / np.maximum(deviation[0] * deviation[1], 1e-6))
    found: Floats = np.minimum(same, pattern)
    return found
