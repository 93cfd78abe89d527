"""Figures of painted pictures, against values worked out by hand or by brute force."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_lora.scores.image import figures as picture_figures
from llm_lora.scores.image.figures import Floats

RNG = np.random.default_rng(0)


def on_sphere(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def cloud(middle: int, count: int, seed: int, width: int = 96) -> Floats:
    """Points around one of the axes, with noise twice as long as the difference of two axes."""
    rows = np.random.default_rng(seed).normal(0, 2 / math.sqrt(width), (count, width))
    rows[:, middle] += 1
    return on_sphere(rows)


def test_likeness_leaves_out_pictures_of_the_same_caption() -> None:
    some, others = cloud(0, 4, 1), cloud(0, 6, 2)
    pairs = [float(some[i] @ others[j]) for i in range(4) for j in range(6) if i != j]
    assert picture_figures.likeness_to_others(some @ others.T) == pytest.approx(np.mean(pairs))
    within = picture_figures.likeness_to_others(others @ others.T)
    assert within == pytest.approx(picture_figures.agreement(others))


def test_likeness_leaves_out_what_could_not_be_compared() -> None:
    likeness = np.array([[0.9, np.nan, 0.3], [0.1, np.nan, 0.5]])
    assert picture_figures.likeness_to_others(likeness) == pytest.approx((0.3 + 0.1 + 0.5) / 3)


def test_the_nearest_of_others() -> None:
    some, others = cloud(0, 7, 1), cloud(0, 9, 2)
    cosines, which = picture_figures.nearest(some, others)
    for row, cosine, number in zip(some, cosines, which, strict=True):
        assert cosine == pytest.approx(max(others @ row)) == pytest.approx(others[number] @ row)
    apart, which = picture_figures.nearest_pixels(some, others)
    for row, distance, number in zip(some, apart, which, strict=True):
        by_hand = np.sqrt(((others - row) ** 2).mean(axis=1))
        assert distance == pytest.approx(by_hand.min())
        assert number == by_hand.argmin()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[2, 0], [1, 0], [5, 0]], 1.0),
        ([[1, 0], [0, 1]], 0.0),
        ([[1, 0], [-3, 0]], -1.0),
        ([[0, 0], [0, 0]], 0.0),
        ([[1, 0], [1, 0], [0, 1]], 1 / 3),
    ],
)
def test_agreement_of_directions(rows: list[list[float]], expected: float) -> None:
    assert picture_figures.agreement(np.array(rows, float)) == pytest.approx(expected)


def test_the_probe_tells_what_it_never_saw() -> None:
    """The classifier separates unseen pictures, with fewer pictures than dimensions and noise
    larger than the difference."""
    probe = picture_figures.probe(cloud(0, 32, 1), cloud(1, 60, 2))
    assert probe is not None
    plain, style = cloud(0, 200, 3), cloud(1, 200, 4)
    assert probe.accuracy(plain, style) > 0.9
    assert probe.accuracy(style, plain) < 0.1
    assert probe.position(plain).mean() < 0.25 and probe.position(style).mean() > 0.75
    assert probe.takes(style).mean() > 0.85
    presence = probe.presence(np.concatenate([plain, style]))
    assert presence.min() == 0 and presence.max() == 1


def test_the_ends_of_the_probe_are_what_it_learned_from() -> None:
    plain, style = cloud(0, 32, 1), cloud(1, 60, 2)
    probe = picture_figures.probe(plain, style)
    assert probe is not None
    assert probe.position(plain).mean() == pytest.approx(0, abs=1e-9)
    assert probe.position(style).mean() == pytest.approx(1)


def test_nothing_to_tell_apart() -> None:
    same = cloud(0, 20, 1)
    assert picture_figures.probe(same, same) is None
    both = picture_figures.probe(cloud(0, 30, 1), cloud(0, 30, 2))
    assert both is not None
    assert both.accuracy(cloud(0, 300, 3), cloud(0, 300, 4)) == pytest.approx(0.5, abs=0.08)


def test_the_probe_is_tried_on_what_was_left_out() -> None:
    """On its training data, the classifier would be right about everything in any case."""
    plain, style, more = cloud(0, 40, 1), cloud(1, 40, 2), cloud(0, 40, 3)
    assert picture_figures.cross_accuracy(plain, style) > 0.9
    assert picture_figures.cross_accuracy(plain, more) < 0.65
    learned = picture_figures.probe(plain, more)
    assert learned is not None and learned.accuracy(plain, more) > 0.8
    assert picture_figures.cross_accuracy(plain, style[:1]) == 0.5, "nothing to leave out"
    assert picture_figures.cross_accuracy(plain[:2], plain[:2]) == 0.5, "all the same"


def test_how_often_one_is_larger() -> None:
    assert picture_figures.rank_share(np.array([3.0, 4]), np.array([1.0, 2])) == 1
    assert picture_figures.rank_share(np.array([1.0, 2]), np.array([1.0, 2])) == 0.5
    assert picture_figures.rank_share(np.array([0.0]), np.array([1.0, 2])) == 0


def test_change_is_a_root_mean_square() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert picture_figures.change([black, black], [black, black]) == 0
    assert picture_figures.change([black + 30, black], [black, black]) == pytest.approx(
        30 / math.sqrt(2)
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], 1),
        ([0, 0.2, 0.9, 1], 1),
        ([1, 0], 0),
        ([0.5, 0.5, 0.5], 0),
        ([0, 1.0, 0.5, 1.5], 0.6),
        ([0, 1, 0], 0),
    ],
)
def test_steadiness(values: list[float], expected: float) -> None:
    assert picture_figures.steadiness(values) == pytest.approx(expected)


@given(st.lists(st.integers(0, 1000).map(lambda whole: whole / 1000), min_size=2, max_size=9))
def test_only_what_never_falls_is_wholly_steady(values: list[float]) -> None:
    found = picture_figures.steadiness(values)
    falls = [later < earlier for earlier, later in pairwise(values)]
    assert 0 <= found <= 1 + 1e-9
    if any(falls):
        assert found < 1
    elif values[-1] > values[0]:
        assert found == pytest.approx(1)


def test_prompts_that_are_followed() -> None:
    texts = np.eye(4)
    pictures = on_sphere(np.eye(4) + 0.3)
    own = [0, 1, 2, 3]
    assert picture_figures.retrieved(pictures, texts, own) == 1
    margins = picture_figures.margins(pictures, texts, own)
    assert margins[0] == pytest.approx(pictures[0, 0] - pictures[0, 1:].mean())
    assert picture_figures.retrieved(pictures, texts, [1, 2, 3, 0]) == 0
    assert picture_figures.margins(pictures, texts, [1, 2, 3, 0]).mean() < 0


def test_what_all_texts_gain_is_no_margin() -> None:
    texts, pictures = cloud(0, 5, 1), cloud(0, 5, 2)
    moved = picture_figures.margins(pictures + 0.5 * texts.mean(axis=0), texts, range(5))
    shift = picture_figures.margins(0.5 * texts.mean(axis=0)[None].repeat(5, 0), texts, range(5))
    assert moved == pytest.approx(picture_figures.margins(pictures, texts, range(5)) + shift)


def test_a_mean_above_zero_is_more_than_chance() -> None:
    assert picture_figures.above_zero(np.array([0.1, 0.2, 0.15]))
    assert not picture_figures.above_zero(np.array([0.5, -0.4, 0.1]))
    assert not picture_figures.above_zero(np.array([0.5]))
    assert not picture_figures.above_zero(np.array([-0.1, -0.2, -0.15]))
