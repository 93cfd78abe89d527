"""Near-duplicate pictures: edited copies are found, and nothing else."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from support.drawn import scene

from llm_lora.data.image.duplicates import clusters, likeness

THRESHOLD = 0.8
SCENES = [scene(i, (160, 160)) for i in range(60)]


def fields(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((8, 8), Image.Resampling.BOX))


def jpeg(image: Image.Image) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=60)
    return Image.open(data).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        jpeg,
        lambda image: image.resize((80, 80)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.1),
        lambda image: ImageEnhance.Contrast(image).enhance(0.85),
        lambda image: image.crop((3, 3, 157, 157)),
        ImageOps.mirror,
        lambda image: jpeg(ImageOps.mirror(image)),
    ],
    ids=["jpeg", "half", "brighter", "paler", "cut", "mirrored", "mirrored jpeg"],
)
def test_the_same_picture_changed_a_little_is_found(
    change: Callable[[Image.Image], Image.Image],
) -> None:
    found = [likeness(fields(one), fields(change(one))) >= THRESHOLD for one in SCENES]
    assert np.mean(found) >= 0.95


@pytest.mark.parametrize("contrast", [1.0, 0.2])
def test_different_scenes_are_not_taken_for_one(contrast: float) -> None:
    pale = [fields(ImageEnhance.Contrast(one).enhance(contrast)) for one in SCENES]
    assert max(likeness(a, b) for a, b in combinations(pale, 2)) < THRESHOLD


def test_one_composition_in_other_colours_is_another_picture() -> None:
    def disc(ground: str, colour: str) -> np.ndarray:
        image = Image.new("RGB", (64, 64), ground)
        image.paste(colour, (20, 20, 44, 44))
        return fields(image)

    assert likeness(disc("blue", "red"), disc("blue", "green")) < THRESHOLD
    assert likeness(disc("blue", "red"), disc("blue", "red")) == 1
    plain = np.full((8, 8, 3), 200, dtype=np.uint8)
    assert likeness(plain, plain + 3) >= THRESHOLD
    assert likeness(plain, plain - 100) < THRESHOLD
    assert likeness(plain, disc("blue", "red")) < THRESHOLD


grids = st.lists(
    st.integers(0, 255).flatmap(
        lambda base: st.lists(st.integers(0, 40), min_size=12, max_size=12).map(
            lambda more: np.repeat(
                np.repeat(np.array([min(base + m, 255) for m in more]).reshape(2, 2, 3), 4, 0), 4, 1
            ).astype(np.uint8)
        )
    ),
    max_size=12,
)


@given(grids, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_clusters_are_what_comparing_all_pairs_gives(
    pictures: list[np.ndarray], threshold: float
) -> None:
    labels = list(range(len(pictures)))
    for a, b in combinations(range(len(pictures)), 2):
        if likeness(pictures[a], pictures[b]) >= threshold - 1e-6:
            low, high = sorted((labels[a], labels[b]))
            labels = [low if label == high else label for label in labels]
    assert clusters(pictures, threshold) == labels


def test_two_thousand_pictures_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    many = list(rng.integers(0, 256, (2000, 8, 8, 3), dtype=np.uint8))
    started = time.process_time()
    assert clusters(many, THRESHOLD) == list(range(2000))
    assert time.process_time() - started < 5
