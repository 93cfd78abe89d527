"""Intervals and the paired test against values worked out by hand, by scipy, and by simulation."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm_lora.scores import intervals
from llm_lora.scores.intervals import LEVEL, Difference, Interval, adjusted, estimates


def mean(sums: intervals.Floats) -> intervals.Floats:
    """The means of all columns but the first, which counts the examples."""
    found: intervals.Floats = sums[..., 1:] / sums[..., :1]
    return found


def table(columns: list[list[float]]) -> list[list[float]]:
    return [[1.0, *row] for row in zip(*columns, strict=True)]


def means(columns: list[list[float]]) -> list[Interval]:
    return [one.interval for one in estimates(table(columns), mean) if one]


def differences(ours: list[list[float]], theirs: list[list[float]]) -> list[Difference]:
    return [one for one in intervals.differences(table(ours), table(theirs), mean) if one]


SKEWED = [1.0] * 40 + [0.774, 0.439, 0.859, 0.697, 0.094, 0.976, 0.761, 0.786, 0.128]


# For the first, the plain percentile interval would be 0.8677 to 0.9775, not 0.8483 to 0.9700.
@pytest.mark.parametrize("column", [SKEWED, [1.0] * 50 + [0.0] * 10, [0.1, 0.2, 0.9] * 20])
def test_the_interval_is_that_of_scipy(column: list[float]) -> None:
    found = stats.bootstrap(
        (column,), np.mean, confidence_level=LEVEL, n_resamples=20_000, method="BCa", rng=1
    ).confidence_interval
    (interval,) = means([column])
    # An end lies in a tail where few samples fall: a few percent of the width.
    assert interval == pytest.approx(tuple(found), abs=0.06 * (found.high - found.low))


def test_shares_have_the_interval_of_a_binomial_share() -> None:
    # 60 of 80: the score interval (Wilson 1927) is 0.645 to 0.832.
    (low, high), = means([[1.0] * 60 + [0.0] * 20])  # fmt: skip
    assert low == pytest.approx(0.645, abs=0.015)
    assert high == pytest.approx(0.832, abs=0.015)


def test_what_was_never_seen_is_not_ruled_out() -> None:
    # Clopper and Pearson for 12 of 12: 0.025 ** (1 / 12) = 0.7354
    exact = stats.binomtest(12, 12).proportion_ci(LEVEL, method="exact")
    assert (exact.low, exact.high) == (pytest.approx(0.7354, abs=1e-4), 1.0)
    all_right, all_wrong, half = means([[1.0] * 12, [0.0] * 12, [0.5] * 12])
    assert all_right == (pytest.approx(0.7354, abs=1e-4), 1.0)
    assert all_wrong == (0.0, pytest.approx(0.2646, abs=1e-4))
    assert half == (pytest.approx(0.5 * 0.7354, abs=1e-4), pytest.approx(0.6323, abs=1e-4))
    assert means([[1.0]]) == [(pytest.approx(0.025), 1.0)]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = random.Random(3)
    truth, tries = 0.8, 400
    columns = [[float(generator.random() < truth) for _ in range(60)] for _ in range(tries)]
    held = sum(low <= truth <= high for low, high in means(columns))
    assert LEVEL - 0.04 <= held / tries <= LEVEL + 0.03


def test_the_same_answers_give_the_same_interval() -> None:
    assert means([SKEWED]) == means([SKEWED])
    # A column's interval does not depend on its neighbours.
    assert means([SKEWED, [0.0] * 49])[0] == pytest.approx(means([SKEWED])[0])


def test_few_differences_are_tested_exactly() -> None:
    # 9 better and 2 worse: the sign test's binomial chance is 2 * (1 + 11 + 55) / 2 ** 11.
    ours, theirs = [1.0] * 9 + [0.0] * 2 + [1.0] * 20, [0.0] * 9 + [1.0] * 2 + [1.0] * 20
    (found,) = differences([ours], [theirs])
    assert found.p == pytest.approx(2 * 67 / 2**11)
    assert found.value == pytest.approx(7 / 31)
    # 0.5, 0.5 and -0.2: of the 8 patterns four reach 0.8, namely +++ with 1.2, ++- with 0.8, and
    # their opposites.
    (found,) = differences([[0.5, 0.5, 0.0]], [[0.0, 0.0, 0.2]])
    assert found.p == 0.5


def test_many_differences_are_tested_by_random_signs() -> None:
    # 18 better and 6 worse: the sign test says 0.0227.
    ours, theirs = [1.0] * 18 + [0.0] * 6, [0.0] * 18 + [1.0] * 6
    (found,) = differences([ours], [theirs])
    assert found.p == pytest.approx(stats.binomtest(18, 24).pvalue, abs=0.005)
    assert found.interval[0] > 0


def scipy_chance(ours: list[int], theirs: list[int], resamples: float) -> float:
    """Scipy's paired permutation test: the two scores of a pair are swapped or not."""
    found = stats.permutation_test(
        (np.array(ours), np.array(theirs)),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=2,
    )
    return float(found.pvalue)


def test_the_paired_test_is_that_of_scipy() -> None:
    """In hundredths, which scipy gets as whole numbers."""
    generator = random.Random(5)
    for count in (3, 7, 10):
        ours = [generator.randrange(101) for _ in range(count)]
        theirs = [generator.randrange(101) for _ in range(count)]
        (found,) = differences([[one / 100 for one in ours]], [[one / 100 for one in theirs]])
        assert found.p == pytest.approx(scipy_chance(ours, theirs, np.inf))
    ours = [generator.randrange(30, 101) for _ in range(60)]
    theirs = [generator.randrange(91) for _ in range(60)]
    (found,) = differences([[one / 100 for one in ours]], [[one / 100 for one in theirs]])
    chance = scipy_chance(ours, theirs, 10_000)
    # Four standard errors of the difference of two chances from 10,000 draws each.
    assert found.p == pytest.approx(chance, abs=4 * (2 * chance * (1 - chance) / 10_000) ** 0.5)


hundredths = st.integers(0, 100)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(hundredths, hundredths), min_size=1, max_size=9))
def test_the_exact_test_counts_sign_patterns_as_whole_numbers_do(
    pairs: list[tuple[int, int]],
) -> None:
    """Floating-point sums neither lose a tie nor count what falls a hundredth short."""
    apart = [ours - theirs for ours, theirs in pairs]
    patterns = list(itertools.product([-1, 1], repeat=len(apart)))
    sums = [sum(sign * one for sign, one in zip(p, apart, strict=True)) for p in patterns]
    reached = sum(abs(one) >= abs(sum(apart)) for one in sums)
    (found,) = differences([[a / 100 for a, _ in pairs]], [[b / 100 for _, b in pairs]])
    assert found.p == reached / len(patterns)
    assert found.value == pytest.approx(sum(apart) / len(apart) / 100)


def test_what_falls_a_little_short_is_not_as_large() -> None:
    # 0.79 is reached by all plus and all minus alone: the next sum is 0.71.
    (found,) = differences([[0.5, 0.25, 0.04]], [[0.0, 0.0, 0.0]])
    assert found.p == 2 / 8


def test_up_to_twelve_differences_every_pattern_is_tried() -> None:
    twelve, thirteen = [1.0] * 10 + [0.0] * 2, [1.0] * 10 + [0.0] * 3
    # As likely as 2 heads or fewer, or 10 or more, of 12 coins: 2 * (1 + 12 + 66) / 2 ** 12.
    (found,) = differences([twelve], [[1 - one for one in twelve]])
    assert found.p == 158 / 2**12
    # Of 13: 2 * (1 + 13 + 78 + 286) / 2 ** 13, but counted in 10,001 patterns.
    (found,) = differences([thirteen], [[1 - one for one in thirteen]])
    assert found.p == pytest.approx(756 / 2**13, abs=0.012)
    assert found.p * 10_001 == pytest.approx(round(found.p * 10_001))
    # A difference as large as no random pattern is still not impossible.
    (found,) = differences([[1.0] * 40], [[0.0] * 40])
    assert found.p == 1 / 10_001


def test_only_differences_other_than_none_count_in_the_test() -> None:
    # Two better, the rest equal: the chance of ++ or --, whatever the number of ties.
    for ties in (0, 5, 50):
        (found,) = differences([[1.0, 1.0] + [0.5] * ties], [[0.0, 0.0] + [0.5] * ties])
        assert found.p == 0.5
        assert found.value == pytest.approx(2 / (2 + ties))


def test_columns_are_tested_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [[1.0] * 18 + [0.0] * 6, [1.0] * 12 + [0.0] * 12, [1.0, 0.0] * 12]
    zero = [0.0] * 24
    apart = [[column, [1 - one for one in column]] for column in columns] + [[zero, zero]]
    ours, theirs = zip(*apart, strict=True)
    together = differences(ours, theirs)
    assert [one.p for one in together[1:]] == [1.0, 1.0, 1.0]
    assert together == [differences([a], [b])[0] for a, b in apart]
    # Nor do they depend on how many numbers are held in memory.
    monkeypatch.setattr(intervals, "_CHUNK", 24 * 7)
    assert [one.p for one in differences(ours, theirs)] == pytest.approx(
        [one.p for one in together], abs=0.01
    )
    for (low, high), (low_too, high_too) in zip(
        means(columns), [one.interval for one in differences(columns, [zero] * 3)], strict=True
    ):
        assert (low, high) == pytest.approx((low_too, high_too))


def test_random_signs_come_near_the_exact_chance() -> None:
    """Of 20 differences in tenths; how often each sum comes is counted one by one."""
    ours = [9, 8, 7, 9, 6, 5, 9, 4, 8, 7, 3, 2, 5, 6, 9, 1, 4, 3, 5, 6]
    theirs = [5, 6, 8, 4, 6, 3, 7, 5, 5, 6, 4, 3, 3, 7, 6, 2, 5, 1, 4, 7]
    sums = Counter({0: 1})
    for one in (a - b for a, b in zip(ours, theirs, strict=True)):
        turned: Counter[int] = Counter()
        for total, ways in sums.items():
            turned[total + one] += ways
            turned[total - one] += ways
        sums = turned
    wanted = abs(sum(ours) - sum(theirs))
    reached = sum(ways for total, ways in sums.items() if abs(total) >= wanted)
    (found,) = differences([[one / 10 for one in ours]], [[one / 10 for one in theirs]])
    exact = reached / 2**20
    assert 0.02 < exact < 0.2
    # Four standard errors of 10,000 draws.
    assert found.p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 10_000) ** 0.5)


def test_no_difference_is_not_proven_to_be_none() -> None:
    (found,) = differences([[1.0] * 12], [[1.0] * 12])
    assert (found.value, found.p) == (0.0, 1.0)
    assert found.interval == (pytest.approx(-0.2646, abs=1e-4), pytest.approx(0.2646, abs=1e-4))


def test_chance_finds_as_much_as_it_should() -> None:
    """If both are equally good, one test in twenty finds a difference."""
    generator = random.Random(4)
    ours = [[generator.choice([0.0, 0.5, 1.0]) for _ in range(30)] for _ in range(400)]
    theirs = [[generator.choice([0.0, 0.5, 1.0]) for _ in range(30)] for _ in range(400)]
    found = sum(one.p < 0.05 for one in differences(ours, theirs))
    assert 0.02 <= found / 400 <= 0.08


def test_several_tests_are_corrected_for_their_number() -> None:
    assert adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted([0.9, 0.8]) == [1.0, 1.0]
    assert adjusted([]) == []
