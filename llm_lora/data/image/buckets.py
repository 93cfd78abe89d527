"""Aspect-ratio buckets: shapes of about the same area, so that pictures need little cropping.

Everything here is a pure function: the shape of a picture, the pictures of a batch, and the crop of
a picture when it is shown for the n-th time. Resuming needs no saved state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llm_lora.chance import dice

CELL = 8
"""Pixels of a side that one latent covers, in every family; sizes are multiples of it."""

EXTREME = 4.0
"""Largest aspect ratio of a picture, in either direction; also that of the longest bucket."""


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The size, in pixels, at which pictures are trained; multiples of the step."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class View:
    """A picture, by its place in the dataset, shown for the `turn`-th time (from 0)."""

    picture: int
    turn: int


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop: its edges in pixels of the picture, with fractions."""

    left: float
    top: float
    right: float
    bottom: float

    def box(self) -> tuple[float, float, float, float]:
        """As `PIL.Image.resize(size, box=…)` takes it."""
        return self.left, self.top, self.right, self.bottom


def square(resolution: int, step: int) -> Bucket:
    """The only bucket if bucketing is off: as large as the resolution allows."""
    side = max(resolution // step, 1) * step
    return Bucket(side, side)


def shapes(resolution: int, step: int) -> tuple[Bucket, ...]:
    """All buckets: sides are multiples of `step`, no area is above resolution².

    For each width, the largest height that fits, up to a ratio of `EXTREME`; and the same with
    width and height swapped. NovelAI described buckets first ("NovelAI Improvements on Stable
    Diffusion", 2022).
    """
    area = max(resolution, step) ** 2
    found = {square(max(resolution, step), step)}
    for width in range(step, math.isqrt(area) + 1, step):
        height = area // width // step * step
        if height <= EXTREME * width:
            found |= {Bucket(width, height), Bucket(height, width)}
    return tuple(sorted(found))


def plan(
    sizes: Sequence[tuple[int, int]], resolution: int, step: int, *, upscale: bool = True
) -> tuple[Bucket, ...]:
    """Assign a bucket to every picture: the one with the nearest aspect ratio.

    Args:
        sizes: width and height of each picture in pixels.
        resolution: side in pixels of the square whose area no bucket exceeds.
        step: sides of buckets are multiples of it.
        upscale: whether a small picture may be enlarged. If not, only buckets that fit within the
            picture are used; if there is none, its own size, rounded down to the step.
    """
    every = shapes(resolution, step)
    known: dict[tuple[int, int], Bucket] = {}
    for size in sizes:
        if size not in known:
            known[size] = _nearest(size, every, resolution, step, upscale=upscale)
    return tuple(known[size] for size in sizes)


def _nearest(
    size: tuple[int, int], every: Sequence[Bucket], resolution: int, step: int, *, upscale: bool
) -> Bucket:
    width, height = size
    fitting = [b for b in every if upscale or (b.width <= width and b.height <= height)]
    if not fitting:
        shrink = min(1.0, resolution / math.sqrt(width * height))
        sides = (max(int(side * shrink) // step, 1) * step for side in size)
        return Bucket(*sides)
    # Logarithms make 2:1 and 1:2 equally far from a square.
    ratio = math.log(width / height)

    def apart(bucket: Bucket) -> tuple[float, int]:
        # Of two equally near buckets, the larger one keeps more detail. Rounded, because equal
        # ratios differ in the last digits.
        distance = abs(ratio - math.log(bucket.width / bucket.height))
        return round(distance, 9), -bucket.width * bucket.height

    return min(fitting, key=apart)


def scale(size: tuple[int, int], bucket: Bucket) -> float:
    """The factor by which a picture is scaled to cover its bucket; above 1 it is enlarged."""
    return max(bucket.width / size[0], bucket.height / size[1])


def kept(size: tuple[int, int], bucket: Bucket) -> float:
    """The share of a picture's area that its bucket keeps, above 0 up to 1."""
    ratio = (size[0] / size[1]) / (bucket.width / bucket.height)
    return min(ratio, 1 / ratio)


def crop(size: tuple[int, int], bucket: Bucket, at: tuple[float, float] = (0.5, 0.5)) -> Crop:
    """The largest part of a picture that has its bucket's ratio.

    Args:
        size: of the picture.
        bucket: the size that the crop is scaled to afterwards.
        at: its horizontal and vertical position, 0 (left or top edge) to 1 (right or bottom edge).
    """
    factor = scale(size, bucket)
    width = min(bucket.width / factor, size[0])
    height = min(bucket.height / factor, size[1])
    left, top = (size[0] - width) * at[0], (size[1] - height) * at[1]
    return Crop(left, top, min(left + width, size[0]), min(top + height, size[1]))


def place(how: Literal["center", "random"], seed: int, view: View) -> tuple[float, float]:
    """The position for `crop` when a picture is shown: the centre, or a random one."""
    if how == "center":
        return 0.5, 0.5
    draw = dice("crop", seed, view.picture, view.turn)
    return draw.random(), draw.random()


def flipped(seed: int, view: View) -> bool:
    """Whether a picture is mirrored when it is shown (at random, half the time)."""
    return dice("flip", seed, view.picture, view.turn).random() < 0.5


def batches(
    assignment: Sequence[Bucket], batch_size: int, *, seed: int, epoch: int, repeats: int = 1
) -> list[tuple[View, ...]]:
    """The batches of an epoch in their order, each from a single bucket.

    Every picture is shown `repeats` times. A bucket's last batch may be smaller.

    Args:
        assignment: the bucket of every picture, as `plan` gives it.
        batch_size: the largest number of pictures in a batch.
        seed: of the order; each epoch has its own.
        epoch: from 0.
        repeats: how often a picture is shown in an epoch.
    """
    draw = dice("order", seed, epoch)
    members: dict[Bucket, list[View]] = {}
    for picture, bucket in enumerate(assignment):
        views = [View(picture, epoch * repeats + turn) for turn in range(repeats)]
        members.setdefault(bucket, []).extend(views)
    found: list[tuple[View, ...]] = []
    # Sorted, so that the draws, and with them the order, depend on the assignment alone. The second
    # shuffle mixes the buckets: otherwise an epoch would train on one shape after the other.
    for bucket in sorted(members):
        views = members[bucket]
        draw.shuffle(views)
        found += [tuple(views[i : i + batch_size]) for i in range(0, len(views), batch_size)]
    draw.shuffle(found)
    return found
