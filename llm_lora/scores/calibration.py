"""Calibration of closed values: do values of 90% probability turn out right nine times in ten?

The probability of a closed value is the product of those of its tokens, as the engine reports them:
the model's own for unconstrained answers, relative to the allowed tokens for constrained ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from llm_lora.example import Answer
from llm_lora.record import Record
from llm_lora.schema import AnswerSchema, NotJson
from llm_lora.scores.fields import closed_places
from llm_lora.scores.scoring import FieldScore

BINS = 10
"""Number of equal bins of 0 to 1 that answers are grouped into (Guo et al. 2017, section 3)."""


class Chosen(Protocol):
    """The parts of a judged answer that calibration needs."""

    @property
    def fields(self) -> Mapping[str, FieldScore]: ...
    @property
    def confidence(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Bin(Record):
    """The `n` values whose probability is from `low` to `high`: its mean, and the share right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration(Record):
    """The calibration of `n` closed values: their mean probability, and the share right.

    `ece` is the expected calibration error (Guo et al. 2017, equation 3): the mean distance of
    `accuracy` from `confidence` over the bins, weighted by their size. With few answers it is
    biased upwards.
    """

    n: int
    confidence: float
    accuracy: float
    ece: float


@dataclass(frozen=True)
class Reliability(Calibration):
    """The calibration of all closed fields together, with its bins, and of each field."""

    bins: tuple[Bin, ...]
    fields: Mapping[str, Calibration]


def confidences(schema: AnswerSchema, answer: Answer) -> dict[str, float]:
    """The probability of every closed value outside of lists, by field.

    Empty if the engine gave no token probabilities, or the answer is not in canonical form.
    """
    if not answer.chances:
        return {}
    try:
        places = closed_places(schema, answer.text)
    except NotJson:
        return {}
    # A token without text, such as the end of the turn, belongs to no value.
    ends = [*(start for start, _ in answer.chances), len(answer.text)]
    found = {}
    for name, first, last in places:
        if "[]" not in name:
            logs = (
                log
                for (start, end), (_, log) in zip(pairwise(ends), answer.chances, strict=True)
                if start < last and end > first
            )
            found[name] = min(1.0, math.exp(sum(logs)))
    return found


def reliability(rows: Sequence[Chosen]) -> Reliability | None:
    """The calibration of judged answers; None if there are no closed values."""
    by_field: dict[str, list[tuple[float, bool]]] = {}
    for row in rows:
        for name, confidence in row.confidence.items():
            by_field.setdefault(name, []).append((confidence, row.fields[name].right))
    everything = [pair for found in by_field.values() for pair in found]
    if not everything:
        return None
    return Reliability(
        *_means(everything),
        ece=_error(everything),
        bins=_bins(everything),
        fields={
            name: Calibration(*_means(found), ece=_error(found)) for name, found in by_field.items()
        },
    )


def _bins(found: Sequence[tuple[float, bool]]) -> tuple[Bin, ...]:
    """The bins that are not empty."""
    held: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in found:
        held.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, right))
    return tuple(
        Bin(index / BINS, (index + 1) / BINS, *_means(held[index])) for index in sorted(held)
    )


def _error(found: Sequence[tuple[float, bool]]) -> float:
    apart = (one.n * abs(one.confidence - one.accuracy) for one in _bins(found))
    return round(sum(apart) / len(found), 6)


def _means(found: Sequence[tuple[float, bool]]) -> tuple[int, float, float]:
    """The number of values, their mean probability, and the share right."""
    return (
        len(found),
        round(sum(confidence for confidence, _ in found) / len(found), 6),
        round(sum(right for _, right in found) / len(found), 6),
    )
