"""Aspect-ratio buckets: shapes of about the same area, so that pictures need little cropping.

Everything here is a pure function: which shape a picture gets, which pictures make a batch, and
what is cut out of a picture when it is shown for the n-th time. Nothing has to be remembered to go
on after an interruption.
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
"""Most that a picture may be longer than wide, or wider than long; the longest bucket's ratio."""


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
    """What is cut out of a picture: edges in pixels of the picture, with fractions."""

    left: float
    top: float
    right: float
    bottom: float

    def box(self) -> tuple[float, float, float, float]:
        """As `PIL.Image.resize(size, box=…)` takes it."""
        return self.left, self.top, self.right, self.bottom


def square(resolution: int, step: int) -> Bucket:
    """The one bucket where there are no others: as large as the resolution allows."""
    side = max(resolution // step, 1) * step
    return Bucket(side, side)


def shapes(resolution: int, step: int) -> tuple[Bucket, ...]:
    """All buckets: sides are multiples of `step`, no area is above resolution².

    For each width, the largest height that fits, up to a ratio of `EXTREME`; and the same lying
    down. NovelAI described buckets first ("NovelAI Improvements on Stable Diffusion", 2022).
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
    """The bucket of every picture: the one whose ratio is nearest to the picture's.

    Args:
        sizes: width and height of each picture in pixels.
        resolution: side in pixels of the square whose area no bucket exceeds.
        step: sides of buckets are multiples of it.
        upscale: whether a small picture may be enlarged. If not, only buckets that lie within the
            picture are taken; where there is none, the picture's own size, cut to the step.
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
    ratio = math.log(width / height)

    def apart(bucket: Bucket) -> tuple[float, int]:
        # Of two as near, the larger one keeps more of the picture's detail.
        distance = abs(ratio - math.log(bucket.width / bucket.height))
        return round(distance, 9), -bucket.width * bucket.height

    return min(fitting, key=apart)


def scale(size: tuple[int, int], bucket: Bucket) -> float:
    """How many times larger a picture is made to cover its bucket; above 1 it is enlarged."""
    return max(bucket.width / size[0], bucket.height / size[1])


def kept(size: tuple[int, int], bucket: Bucket) -> float:
    """Share of a picture's area that its bucket shows, above 0 to 1."""
    ratio = (size[0] / size[1]) / (bucket.width / bucket.height)
    return min(ratio, 1 / ratio)


def crop(size: tuple[int, int], bucket: Bucket, at: tuple[float, float] = (0.5, 0.5)) -> Crop:
    """The largest part of a picture that has its bucket's ratio.

    Args:
        size: of the picture.
        bucket: what the part is scaled to afterwards.
        at: where it lies across and down: 0 at the left or top edge, 1 at the right or bottom one.
    """
    factor = scale(size, bucket)
    width = min(bucket.width / factor, size[0])
    height = min(bucket.height / factor, size[1])
    left, top = (size[0] - width) * at[0], (size[1] - height) * at[1]
    return Crop(left, top, min(left + width, size[0]), min(top + height, size[1]))


def place(how: Literal["center", "random"], seed: int, view: View) -> tuple[float, float]:
    """Where `crop` cuts when a picture is shown: the middle, or somewhere by chance."""
    if how == "center":
        return 0.5, 0.5
    draw = dice("crop", seed, view.picture, view.turn)
    return draw.random(), draw.random()


def flipped(seed: int, view: View) -> bool:
    """Whether a picture is mirrored when it is shown, where mirroring is on: every other time."""
    return dice("flip", seed, view.picture, view.turn).random() < 0.5


def batches(
    assignment: Sequence[Bucket], batch_size: int, *, seed: int, epoch: int, repeats: int = 1
) -> list[tuple[View, ...]]:
    """The batches of an epoch in their order, each from one bucket.

    Every picture comes `repeats` times. A bucket's last batch may be smaller.

    Args:
        assignment: the bucket of every picture, as `plan` gives it.
        batch_size: most pictures in a batch.
        seed: of the order; each epoch has its own.
        epoch: from 0.
        repeats: how often a picture comes in an epoch.
    """
    draw = dice("order", seed, epoch)
    members: dict[Bucket, list[View]] = {}
    for picture, bucket in enumerate(assignment):
        views = [View(picture, epoch * repeats + turn) for turn in range(repeats)]
        members.setdefault(bucket, []).extend(views)
    found: list[tuple[View, ...]] = []
    for bucket in sorted(members):
        views = members[bucket]
        draw.shuffle(views)
        found += [tuple(views[i : i + batch_size]) for i in range(0, len(views), batch_size)]
    draw.shuffle(found)
    return found
