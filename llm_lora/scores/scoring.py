"""Field scores of an answer against its reference.

Every field of an example gets a score from 0 to 1:

    closed, exact   1 when equal
    number          1 when equal within a relative 1e-6, or within the field's own tolerance
    span, text      F1 of the words, case folded
    list            F1 of the items as a multiset, strings compared case folded
    a member of an array of objects (`medications[].dose`): the objects are paired so that the sum
                    of their scores is greatest; F1 of the pairs' scores, so that missing and
                    spurious objects lower the score

F1 is 2 · hits / (expected + given) (van Rijsbergen 1979); F1 of words follows SQuAD (Rajpurkar et
al. 2016).

A null is right only if the reference has null too, and a missing property equals only a missing
property. Two empty arrays are equal. An answer that cannot be parsed scores 0 in every field; one
that parses but does not fit the schema is scored on the values that it has.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_lora.schema import AnswerSchema, Place, Verdict
from llm_lora.scores.fields import (
    FREE_TEXT,
    Kind,
    Leaf,
    Record,
    Rows,
    Shape,
    field_name,
    label,
    leaves,
    shape,
)
from llm_lora.scores.pairing import assign

NUMBER_TOLERANCE = 1e-6
"""Relative difference up to which two numbers count as equal: far below any measurement."""

Tolerances = Mapping[str, float]
"""Field → absolute difference up to which a number counts as equal, in its own unit."""

# Scripts without spaces between words are split into characters.
_WORD = re.compile(
    r"\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    r"|[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
)


class _Nothing:
    """A stand-in for a missing value; its name is its label in tables."""

    def __init__(self, name: str) -> None:
        self.name = name


_ABSENT = _Nothing("(absent)")
_UNREADABLE = _Nothing("(not JSON)")


@dataclass(frozen=True)
class FieldScore:
    """The score and counts of one field of one example.

    A value counts as one item, a list or a member of an array of objects as many as it has; null,
    absent and an empty list count as none. `expected` counts the reference's items, `given` those
    of the answer; `missing` ones have no counterpart in the answer, `spurious` ones none in the
    reference. A wrong value is neither. `choices` pairs the label in the reference with that in
    the answer, for every closed value.
    """

    score: float
    kind: Kind
    expected: int = 1
    given: int = 1
    missing: int = 0
    spurious: int = 0
    choices: tuple[tuple[str, str], ...] = ()

    @property
    def present(self) -> bool:
        """Whether the reference has a value here; if not, an answer is right if it has none."""
        return self.expected > 0


Scores = dict[str, FieldScore]


def score(
    schema: AnswerSchema | None,
    reference: object,
    answer: Verdict,
    tolerances: Tolerances | None = None,
) -> Scores:
    """Score an answer against the reference value, by field path, in the schema's order.

    Without a schema the answer is one free text, and so is the reference.
    """
    whole = shape(schema) if schema else FREE_TEXT
    if answer.parsed:
        return _compare(whole, reference, answer.value, (), tolerances or {})
    return _compare(whole, reference, _UNREADABLE, (), {}, settled=0.0)


def exact_match(reference: object, answer: Verdict) -> bool:
    """Whether answer and reference are equal as values, regardless of the order of properties."""
    return answer.parsed and same(reference, answer.value)


def mean_score(fields: Mapping[str, FieldScore]) -> float:
    """The mean score of one answer over its fields, each with equal weight."""
    return sum(field.score for field in fields.values()) / len(fields) if fields else 0.0


def _compare(
    found: Shape,
    reference: object,
    answer: object,
    path: Place,
    tolerances: Tolerances,
    settled: float | None = None,
) -> Scores:
    """The scores of all fields below a place.

    `settled` is their score if it is already decided further up, since one side lacks the place.
    """
    if isinstance(found, Leaf):
        name = field_name(path, found.kind)
        return {name: _leaf(found.kind, reference, answer, tolerances.get(name), settled)}
    kind = dict if isinstance(found, Record) else list
    if settled is None and not (isinstance(reference, kind) and isinstance(answer, kind)):
        settled = float(same(reference, answer))
    if isinstance(found, Rows):
        return _compare_rows(found, reference, answer, path, tolerances, settled)
    scores: Scores = {}
    for key, member in found.members.items():
        both = _inner(reference, key), _inner(answer, key)
        scores |= _compare(member, *both, (*path, key), tolerances, settled)
    return scores


def _inner(value: object, key: str) -> object:
    if isinstance(value, dict):
        return value.get(key, _ABSENT)
    return value if value is _UNREADABLE else _ABSENT


def _compare_rows(
    rows: Rows,
    reference: object,
    answer: object,
    path: Place,
    tolerances: Tolerances,
    settled: float | None,
) -> Scores:
    """Pair the objects for the greatest sum of scores; unpaired ones are missing or spurious.

    Pairing by position would punish a different order, and a greedy pairing could take a
    counterpart away from an object that fits it better.
    """
    wanted = reference if isinstance(reference, list) else []
    given = answer if isinstance(answer, list) else []

    def item(one: object, other: object, settled: float | None = None) -> Scores:
        return _compare(rows.item, one, other, (*path, 0), tolerances, settled)

    pairs = [[item(one, other) for other in given] for one in wanted]
    chosen = assign(
        [[sum(field.score for field in pair.values()) for pair in row] for row in pairs]
    )
    paired = [pairs[row][column] for row, column in chosen]
    absent = answer if answer is _UNREADABLE else _ABSENT
    left_out = set(range(len(wanted))) - {row for row, _ in chosen}
    made_up = set(range(len(given))) - {column for _, column in chosen}
    alone = [item(wanted[row], absent, 0.0) for row in sorted(left_out)]
    alone += [item(_ABSENT, given[column], 0.0) for column in sorted(made_up)]
    scores = {}
    for name, kind in leaves(rows, path):
        hits = sum(pair[name].score for pair in paired)
        mean = _f1(hits, len(wanted), len(given)) if settled is None else settled
        scores[name] = _sum(mean, kind, [one[name] for one in (*paired, *alone)])
    return scores


def _sum(score: float, kind: Kind, fields: Iterable[FieldScore]) -> FieldScore:
    """The fields of several objects as one."""
    found = list(fields)
    return FieldScore(
        score,
        kind,
        expected=sum(field.expected for field in found),
        given=sum(field.given for field in found),
        missing=sum(field.missing for field in found),
        spurious=sum(field.spurious for field in found),
        choices=tuple(choice for field in found for choice in field.choices),
    )


def _leaf(
    kind: Kind, reference: object, answer: object, tolerance: float | None, settled: float | None
) -> FieldScore:
    score = _right(kind, reference, answer, tolerance) if settled is None else settled
    choices = ((_label(reference), _label(answer)),) if kind == "closed" else ()
    if kind == "list":
        wanted, given = _items(reference), _items(answer)
        return FieldScore(
            score,
            kind,
            expected=wanted.total(),
            given=given.total(),
            missing=(wanted - given).total(),
            spurious=(given - wanted).total(),
        )
    expected, came = _is_something(reference), _is_something(answer)
    return FieldScore(
        score,
        kind,
        expected=int(expected),
        given=int(came),
        missing=int(expected and not came),
        spurious=int(came and not expected),
        choices=choices,
    )


def _right(kind: Kind, reference: object, answer: object, tolerance: float | None) -> float:
    if kind == "number" and _is_number(reference) and _is_number(answer):
        return float(_close(reference, answer, tolerance or 0.0))
    if kind in ("span", "text") and isinstance(reference, str) and isinstance(answer, str):
        return token_f1(reference, answer)
    if kind == "list" and isinstance(reference, list) and isinstance(answer, list):
        hits = (_items(reference) & _items(answer)).total()
        return _f1(hits, len(reference), len(answer))
    return float(same(reference, answer))


def _label(value: object) -> str:
    return value.name if isinstance(value, _Nothing) else label(value)


def _is_something(value: object) -> bool:
    return not (value is None or value == [] or isinstance(value, _Nothing))


def _items(value: object) -> Counter[object]:
    """The items of a list as a multiset; any other value is one item that equals no other."""
    if isinstance(value, list):
        return Counter(map(_folded, value))
    return Counter([object()] if _is_something(value) else [])


def token_f1(reference: str, answer: str) -> float:
    """F1 of the words of two texts as multisets, case folded; numbers stay whole.

    >>> token_f1("a persistent dry cough", "Dry cough")
    0.6666666666666666
    """
    wanted, given = (Counter(_WORD.findall(text.casefold())) for text in (reference, answer))
    if not wanted or not given:
        return float(reference.strip() == answer.strip())
    return _f1((wanted & given).total(), wanted.total(), given.total())


def _f1(hits: float, expected: int, found: int) -> float:
    """F1 of `hits` among `expected` and `found`; 1 if there was nothing to find."""
    return 2 * hits / (expected + found) if expected + found else 1.0


def same(one: object, other: object) -> bool:
    """Whether two JSON values are equal; true is not 1, but 1.0 is.

    >>> same({"a": 1}, {"a": 1.0}), same(True, 1)
    (True, False)
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(one: Any, other: Any, tolerance: float) -> bool:
    try:
        # Slightly more than the tolerance: 38.1 and 38.2 differ by more than 0.1 in binary.
        return math.isclose(
            one, other, rel_tol=NUMBER_TOLERANCE, abs_tol=tolerance * (1 + NUMBER_TOLERANCE)
        )
    except OverflowError:  # integers beyond the range of a double
        return bool(one == other)


def _folded(value: object) -> object:
    """A hashable stand-in for a list item: equal for items that count as the same."""
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, list):
        return tuple(map(_folded, value))
    if isinstance(value, dict):
        return frozenset((key, _folded(inner)) for key, inner in value.items())
    # True equals 1 in Python, so the type is part of the key; "1" differs from 1 anyway.
    return (type(value) is bool, value)
