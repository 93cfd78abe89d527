"""Every picture gets the shape nearest to its own, every batch one shape, every turn its crop."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llm_lora.data.image import buckets
from llm_lora.data.image.buckets import EXTREME, Bucket, View

sides = st.integers(32, 4000)
sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= EXTREME * min(size))
steps = st.sampled_from([8, 16, 32, 64])
resolutions = st.integers(64, 1536)


def area(bucket: Bucket) -> int:
    return bucket.width * bucket.height


@given(resolutions, steps)
def test_shapes_are_of_the_step_and_fill_the_area(resolution: int, step: int) -> None:
    found = buckets.shapes(resolution, step)
    for one in found:
        assert one.width % step == one.height % step == 0
        assert area(one) <= max(resolution, step) ** 2
        short, long = sorted((one.width, one.height))
        assert long <= EXTREME * short
        assert long == short or area(one) + short * step > resolution**2, "a longer one would fit"
        assert Bucket(one.height, one.width) in found
    assert any(one.width == one.height for one in found)


def test_the_shapes_of_stable_diffusion() -> None:
    found = buckets.shapes(512, 64)
    assert {(512, 512), (448, 576), (576, 448), (384, 640), (256, 1024)} <= {
        (one.width, one.height) for one in found
    }
    assert buckets.shapes(64, 64) == (Bucket(64, 64),)
    assert buckets.square(500, 64) == Bucket(448, 448)


@given(st.lists(sizes, min_size=1, max_size=8), resolutions, steps)
def test_no_other_shape_is_nearer(
    pictures: list[tuple[int, int]], resolution: int, step: int
) -> None:
    def distance(size: tuple[int, int], bucket: Bucket) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(bucket.width / bucket.height))

    planned = buckets.plan(pictures, resolution, step)
    assert len(planned) == len(pictures)
    for size, bucket in zip(pictures, planned, strict=True):
        best = min(distance(size, one) for one in buckets.shapes(resolution, step))
        assert distance(size, bucket) <= best + 1e-8


@given(st.lists(sizes, min_size=1, max_size=8), resolutions, steps)
def test_nothing_is_enlarged_where_that_is_forbidden(
    pictures: list[tuple[int, int]], resolution: int, step: int
) -> None:
    for size, bucket in zip(
        pictures, buckets.plan(pictures, resolution, step, upscale=False), strict=True
    ):
        assert bucket.width % step == bucket.height % step == 0
        assert area(bucket) <= max(resolution, step) ** 2
        if min(size) >= step:
            assert buckets.scale(size, bucket) <= 1


@given(sizes, resolutions, steps, st.floats(0, 1), st.floats(0, 1))
def test_a_crop_lies_within_its_picture_and_has_the_ratio_of_its_bucket(
    size: tuple[int, int], resolution: int, step: int, x: float, y: float
) -> None:
    (bucket,) = buckets.plan([size], resolution, step)
    cut = buckets.crop(size, bucket, (x, y))
    assert 0 <= cut.left < cut.right <= size[0] and 0 <= cut.top < cut.bottom <= size[1]
    width, height = cut.right - cut.left, cut.bottom - cut.top
    assert width / height == pytest.approx(bucket.width / bucket.height)
    assert width * height == pytest.approx(size[0] * size[1] * buckets.kept(size, bucket))
    assert math.isclose(width, size[0]) or math.isclose(height, size[1]), "no more than need be"
    assert buckets.scale(size, bucket) == pytest.approx(bucket.width / width)


def test_crops_go_where_they_are_sent() -> None:
    assert buckets.crop((200, 100), Bucket(64, 64)).box() == (50, 0, 150, 100)
    assert buckets.crop((200, 100), Bucket(64, 64), (0, 0)).box() == (0, 0, 100, 100)
    assert buckets.crop((100, 300), Bucket(64, 64), (0, 1)).box() == (0, 200, 100, 300)
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (50, 0, 150, 100))
    box = buckets.crop((200, 100), Bucket(64, 64)).box()
    cut = picture.resize((64, 64), Image.Resampling.NEAREST, box=box)
    assert cut.getcolors() == [(64 * 64, (0, 0, 255))]


assignments = st.lists(
    st.sampled_from([Bucket(64, 64), Bucket(48, 80), Bucket(80, 48)]), min_size=1, max_size=40
)


@given(assignments, st.integers(1, 7), st.integers(0, 99), st.integers(0, 9), st.integers(1, 4))
def test_an_epoch_shows_every_picture_as_often_as_asked(
    assignment: list[Bucket], batch_size: int, seed: int, epoch: int, repeats: int
) -> None:
    found = buckets.batches(assignment, batch_size, seed=seed, epoch=epoch, repeats=repeats)
    shown = Counter(view for batch in found for view in batch)
    turns = range(epoch * repeats, (epoch + 1) * repeats)
    assert shown == Counter(View(i, turn) for i in range(len(assignment)) for turn in turns)
    for batch in found:
        assert len({assignment[view.picture] for view in batch}) == 1
        assert len(batch) <= batch_size
    per_bucket = Counter(assignment)
    assert len(found) == sum(-(-n * repeats // batch_size) for n in per_bucket.values())
    again = buckets.batches(assignment, batch_size, seed=seed, epoch=epoch, repeats=repeats)
    assert again == found


def test_epochs_and_seeds_have_their_own_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        found = buckets.batches([Bucket(64, 64)] * 40, 4, seed=seed, epoch=epoch)
        return [view.picture for batch in found for view in batch]

    def together(epoch: int) -> set[frozenset[int]]:
        found = buckets.batches([Bucket(64, 64)] * 40, 4, seed=1, epoch=epoch)
        return {frozenset(view.picture for view in batch) for batch in found}

    assert not together(0) & together(1), "the same pictures share a batch again"
    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)


def test_crops_and_flips_depend_on_the_turn_alone() -> None:
    views = [View(picture, turn) for picture in range(20) for turn in range(20)]
    assert {buckets.place("center", 1, view) for view in views} == {(0.5, 0.5)}
    places = [buckets.place("random", 1, view) for view in views]
    assert places == [buckets.place("random", 1, view) for view in views]
    assert len(set(places)) == len(views)
    assert all(0 <= x < 1 and 0 <= y < 1 for x, y in places)
    flips = [buckets.flipped(1, view) for view in views]
    assert flips == [buckets.flipped(1, view) for view in views]
    assert 160 < sum(flips) < 240
    assert flips != [buckets.flipped(2, view) for view in views]
