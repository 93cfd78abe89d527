"""Reading the log of a training: what is sound, and each way in which it is not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from llm_lora.scores.image import curve as learning_curve

STEPS = 300


def log(
    held_out: Callable[[float], float],
    loss: Callable[[float], float] = lambda at: 0.5 + math.exp(-5 * at),
    every: int = 50,
) -> list[dict[str, Any]]:
    """What training writes down; both losses as functions of how far it has come, 0 to 1."""
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": loss(step / STEPS)} for step in range(5, STEPS + 1, 5)
    ]
    rows += [
        {"step": step, "validation_loss": held_out(step / STEPS)}
        for step in range(0, STEPS + 1, every)
    ]
    return sorted(rows, key=lambda row: row["step"])


def test_a_sound_training() -> None:
    found = learning_curve.read(log(lambda at: 0.2 + 0.4 * math.exp(-8 * at)), STEPS)
    assert found.kept == 1
    assert found.level is not None and found.level > 0.99
    assert found.learned == pytest.approx(2 / 3, abs=0.01)
    assert found.held_out[0] == pytest.approx(0.6) and len(found.held_out) == 7
    assert found.loss is not None and found.loss[0] > found.loss[1]
    assert "did not rise again" in " ".join(found.findings) and len(found.findings) == 1


def test_over_fitting() -> None:
    curve = log(lambda at: 0.2 + 0.4 * math.exp(-12 * at) + 0.3 * at**2)
    found = learning_curve.read(curve, STEPS)
    assert found.kept is not None and found.kept < 0.5
    assert "while the training loss went on falling: over-fitted" in found.findings[0]
    # The adapter that patience went back to is of the best step.
    best = learning_curve.read(curve, 100)
    assert best.kept == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("risen", "over_fitted"), [(0.0, False), (0.04, False), (0.06, True)])
def test_a_rise_of_more_than_a_twentieth_of_the_fall_is_over_fitting(
    risen: float, over_fitted: bool
) -> None:
    """The loss falls from 1 to 0.5, and ends above that by a share of its fall."""
    curve = log(lambda at: 1.0 if at == 0 else 0.5 if at < 1 else 0.5 + risen * 0.5)
    found = learning_curve.read(curve, STEPS)
    assert found.kept == pytest.approx(1 - risen)
    assert ("over-fitted" in " ".join(found.findings)) == over_fitted
    # A loss that wavers by less than that is neither still falling nor rising.
    assert found.level == pytest.approx(1)


@pytest.mark.parametrize(("late", "under_fitted"), [(0.14, False), (0.16, True)])
def test_a_late_fall_of_more_than_that_is_under_fitting(late: float, under_fitted: bool) -> None:
    """The loss falls from 1 to 0.5, by a share of that in the last third."""
    curve = log(lambda at: 1.0 if at == 0 else 0.5 if at > 0.67 else 0.5 + late * 0.5)
    found = learning_curve.read(curve, STEPS)
    assert found.kept == 1 and found.level == pytest.approx(1 - late)
    assert ("under-fitted" in " ".join(found.findings)) == under_fitted


def test_under_fitting() -> None:
    found = learning_curve.read(log(lambda at: 0.6 - 0.3 * at), STEPS)
    assert found.kept == 1
    assert found.level == pytest.approx(2 / 3)
    assert "33% of the fall" in found.findings[0] and "under-fitted" in found.findings[0]


def test_the_best_of_a_log_that_rises_is_not_under_fitted() -> None:
    """The weights of step 100 were taken; how steeply the loss fell before says nothing."""
    found = learning_curve.read(log(lambda at: 0.6 - at if at <= 0.34 else 0.1 + 0.4 * at), 100)
    assert (found.kept, found.level) == (1, 1)
    (said,) = found.findings
    assert "rose after the step that was taken" in said and "would over-fit" in said
    # Nor where patience ended it at once.
    early = learning_curve.read(log(lambda at: 0.6 - at if at <= 0.84 else 0.5), 250)
    assert (early.kept, early.level) == (1, 1)


def test_a_fall_too_small_to_be_learning() -> None:
    found = learning_curve.read(log(lambda at: 0.2 - 0.00001 * min(1, 8 * at)), STEPS)
    assert (found.learned, found.kept) == (0, 0)
    assert "never fell more than 0.1% below" in found.findings[-1]
    found = learning_curve.read(log(lambda at: 0.2 - 0.001 * min(1, 8 * at)), STEPS)
    assert found.learned == pytest.approx(0.005) and found.kept == 1


def test_nothing_learned() -> None:
    found = learning_curve.read(log(lambda at: 0.6 + 0.1 * at, loss=lambda at: 0.5), STEPS)
    assert (found.learned, found.kept) == (0, 0)
    assert "never fell" in found.findings[-1]


def test_divergence() -> None:
    found = learning_curve.read(log(lambda at: 0.6 + at, loss=lambda at: 0.4 + at), STEPS)
    assert "training diverged" in found.findings[0]


def test_a_loss_that_only_wavers_did_not_diverge() -> None:
    rng = random.Random(0)
    for _ in range(200):
        waver = log(lambda at: 0.2 + 0.4 * math.exp(-8 * at), lambda at: rng.uniform(0.05, 0.2))
        assert "diverged" not in " ".join(learning_curve.read(waver, STEPS).findings)


@pytest.mark.parametrize("curve", [[], log(lambda at: 0.5, every=300)])
def test_too_short_to_read(curve: list[dict[str, Any]]) -> None:
    found = learning_curve.read(curve, STEPS)
    assert (found.learned, found.kept, found.level) == (None, None, None)
    assert "train.save_every" in found.findings[-1]
