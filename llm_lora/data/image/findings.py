"""Findings of the picture check that are not errors, each with a count and an example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from llm_lora.data.finding import Finding
from llm_lora.data.image import buckets
from llm_lora.data.image.folder import Found

if TYPE_CHECKING:
    from llm_lora.data.image.buckets import Bucket

FEW = 20
"""Below this a style is learned together with the content of its pictures; 50 to 200 are usual."""

FEW_HELD_OUT = 5
"""Below this a single picture changes the measured likeness noticeably."""

_MIXED = 4.0
_KEPT = 2 / 3
_ALIKE = 0.5
_ENOUGH = 5


def notice(
    train: Sequence[Found],
    held_out: Sequence[Found],
    alike: Sequence[Sequence[Found]],
    shapes: Mapping[str, Bucket],
    *,
    blur: float,
) -> Iterator[Finding]:
    """Findings on pictures that passed every check.

    Args:
        train: pictures to learn from.
        held_out: pictures to judge by.
        alike: clusters of near-duplicates.
        shapes: the bucket of each training picture by its digest.
        blur: sharpness below which a picture is reported as blurred.
    """
    if len(train) < FEW:
        message = f"training pictures are few: use {FEW} or more to separate style from content"
        yield Finding("few_pictures", message, len(train))
    if len(held_out) < FEW_HELD_OUT:
        message = f"held-out pictures are few: use {FEW_HELD_OUT} or more for a precise likeness"
        yield Finding("few_held_out", message, len(held_out))
    yield from _alike(train, alike)
    yield from _sizes(train, shapes)
    blurred = [one for one in (*train, *held_out) if one.looks.sharpness < blur]
    if blurred:
        worst = min(blurred, key=lambda one: one.looks.sharpness)
        message = (
            f"pictures are blurred at the resolution of training: sharpness below {blur:g} "
            f"(the softest {worst.looks.sharpness:.1f})"
        )
        yield Finding("blurred", message, len(blurred), str(worst.path))
    changes = Counter(change for one in (*train, *held_out) for change in one.looks.changed)
    for change, count in changes.items():
        first = next(one for one in (*train, *held_out) if change in one.looks.changed)
        yield Finding("converted", f"pictures were {change}", count, str(first.path))


def _alike(train: Sequence[Found], alike: Sequence[Sequence[Found]]) -> Iterator[Finding]:
    if not alike:
        return
    largest = max(alike, key=len)
    clusters = "1 cluster" if len(alike) == 1 else f"{len(alike)} clusters"
    message = (
        f"pictures have near-duplicates, in {clusters} (the largest has {len(largest)}); "
        "each stays on one side"
    )
    yield Finding("near_duplicates", message, sum(map(len, alike)), str(largest[0].path))
    learned = {one.head.sha256 for one in train}
    doubled = [one for cluster in alike for one in cluster if one.head.sha256 in learned]
    if len(train) >= _ENOUGH and len(doubled) >= _ALIKE * len(train):
        message = f"low variety: most of {len(train)} training pictures have a near-duplicate"
        yield Finding("low_variety", message, len(doubled), str(doubled[0].path))


def _sizes(train: Sequence[Found], shapes: Mapping[str, Bucket]) -> Iterator[Finding]:
    if not train:
        return
    ordered = sorted(train, key=lambda one: one.head.width * one.head.height)
    small, large = ordered[0].head, ordered[-1].head
    if large.width * large.height > _MIXED * small.width * small.height:
        message = (
            f"pictures differ much in size, from {small.width} x {small.height} to "
            f"{large.width} x {large.height}"
        )
        yield Finding("mixed_sizes", message, len(train), str(ordered[0].path))
    placed = [(one, (one.head.width, one.head.height), shapes[one.head.sha256]) for one in train]
    enlarged = [(buckets.scale(size, bucket), one) for one, size, bucket in placed]
    enlarged = [(factor, one) for factor, one in enlarged if factor > 1]
    if enlarged:
        factor, one = max(enlarged, key=lambda pair: pair[0])
        message = f"pictures are smaller than the training size (the smallest {factor:.1f} times)"
        yield Finding("upscaled", message, len(enlarged), str(one.path))
    cut = [(buckets.kept(size, bucket), one) for one, size, bucket in placed]
    cut = [(share, one) for share, one in cut if share < _KEPT]
    if cut:
        share, one = min(cut, key=lambda pair: pair[0])
        message = f"pictures lose more than a third to cropping (the worst keeps {share:.0%})"
        yield Finding("cropped", message, len(cut), str(one.path))
