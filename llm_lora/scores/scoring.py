"""Field scores of an answer against its reference: only values that are there count.

A value is present in the reference, in the answer, or in both. Per field, as in slot filling and
the Message Understanding Conferences (Chinchor and Sundheim 1993),

    expected    values of the reference
    given       values of the answer
    hits        values of the answer that match one of the reference, each from 0 to 1:
        closed, exact   1 when equal
        number          1 when equal within a relative 1e-6, or within the field's own tolerance
        span, text      F1 of the words, case folded (SQuAD: Rajpurkar et al. 2016)
        list            an item for an item, strings compared case folded
        a member of an array of objects (`medications[].dose`): the objects are paired so that
                        the sum of their hits is greatest; unpaired ones are missing or spurious

    precision = hits / given    recall = hits / expected    F1 = 2 hits / (expected + given)

(van Rijsbergen 1979). A missing property, null, a blank string, an empty list and an empty object
are no values: two of them agree, but score nothing. So an answer that leaves everything out scores
0, however many fields the reference leaves out, too. An open object (`exact`) has a value at each
of its paths. Properties that the schema does not name are the field `*` of their object.

An answer that cannot be parsed gives nothing; one that parses but does not fit the schema is scored
on the values that it has.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lora.schema import AnswerSchema, Place, Verdict
from llm_lora.schema import json_text as jsontext
from llm_lora.scores.fields import (
    FREE_TEXT,
    Kind,
    Leaf,
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
    """The counts of one field of one example.

    `expected` counts the reference's values, `given` those of the answer, `hits` what matches;
    `missing` ones have no counterpart in the answer, `spurious` ones none in the reference. A wrong
    value is neither. `choices` pairs the label in the reference with that in the answer, for every
    closed value.
    """

    kind: Kind
    hits: float = 0.0
    expected: int = 0
    given: int = 0
    missing: int = 0
    spurious: int = 0
    choices: tuple[tuple[str, str], ...] = ()

    @property
    def f1(self) -> float | None:
        """F1 of the field; None if neither side has a value."""
        return _f1(self.hits, self.expected, self.given)

    @property
    def right(self) -> bool:
        """Whether the answer has just the reference's values."""
        return self.hits == self.expected == self.given


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
    value = answer.value if answer.parsed else _UNREADABLE
    return _compare(whole, reference, value, (), tolerances or {})


def read(schema: AnswerSchema | None, reference: str, answer: str) -> tuple[object, Verdict]:
    """The value of a reference, and the verdict on an answer; free text is always valid."""
    if schema is None:
        return reference.strip(), Verdict("valid", (), answer.strip())
    return jsontext.parse(reference), schema.judge(answer)


def exact_match(reference: object, answer: Verdict) -> bool:
    """Whether answer and reference are equal as values, regardless of the order of properties."""
    return answer.parsed and same(reference, answer.value)


def micro_f1(fields: Iterable[FieldScore]) -> float | None:
    """F1 of the values of several fields together; None if neither side has any."""
    found = list(fields)
    return _f1(
        sum(field.hits for field in found),
        sum(field.expected for field in found),
        sum(field.given for field in found),
    )


def answer_score(answer: Verdict, fields: Mapping[str, FieldScore]) -> float:
    """The score of one answer, from 0 to 1: F1 of its values; 1 if rightly it has none."""
    if not answer.parsed:
        return 0.0
    found = micro_f1(fields.values())
    return 1.0 if found is None else found


def _compare(
    found: Shape, reference: object, answer: object, path: Place, tolerances: Tolerances
) -> Scores:
    """The scores of all fields below a place; either side may lack it."""
    if isinstance(found, Leaf):
        name = field_name(path, found.kind)
        return {name: _leaf(found.kind, reference, answer, tolerances.get(name))}
    if isinstance(found, Rows):
        return _compare_rows(found, reference, answer, path, tolerances)
    scores: Scores = {}
    for key, member in found.members.items():
        both = _inner(reference, key), _inner(answer, key)
        scores |= _compare(member, *both, (*path, key), tolerances)
    sides = (_unnamed(reference, found.members), _unnamed(answer, found.members))
    return scores | _rest(*sides, path)


def _inner(value: object, key: str) -> object:
    if isinstance(value, dict):
        return value.get(key, _ABSENT)
    return value if value is _UNREADABLE else _ABSENT


def _unnamed(value: object, members: Mapping[str, Shape]) -> object:
    """The part of a value that no field names: other properties, or a value of another type."""
    if isinstance(value, dict):
        return {key: inner for key, inner in value.items() if key not in members}
    return value


def _rest(reference: object, answer: object, path: Place) -> Scores:
    """The field of values that the schema does not name; none if neither side has any."""
    field = _leaf("exact", reference, answer, None)
    name = field_name(path, "exact")
    return {"*" if name == "$" else f"{name}.*": field} if field.expected or field.given else {}


def _compare_rows(
    rows: Rows, reference: object, answer: object, path: Place, tolerances: Tolerances
) -> Scores:
    """Pair the objects for the greatest sum of hits; unpaired ones are missing or spurious.

    Pairing by position would punish a different order, and a greedy pairing could take a
    counterpart away from an object that fits it better.
    """
    wanted = reference if isinstance(reference, list) else []
    given = answer if isinstance(answer, list) else []

    def item(one: object, other: object) -> Scores:
        return _compare(rows.item, one, other, (*path, 0), tolerances)

    pairs = [[item(one, other) for other in given] for one in wanted]
    chosen = assign([[sum(field.hits for field in pair.values()) for pair in row] for row in pairs])
    absent = answer if answer is _UNREADABLE else _ABSENT
    left_out = set(range(len(wanted))) - {row for row, _ in chosen}
    made_up = set(range(len(given))) - {column for _, column in chosen}
    found = [pairs[row][column] for row, column in chosen]
    found += [item(wanted[row], absent) for row in sorted(left_out)]
    found += [item(_ABSENT, given[column]) for column in sorted(made_up)]
    # A value that is no list has no objects, but is not nothing.
    one, other = (None if isinstance(side, list) else side for side in (reference, answer))
    found.append(_rest(one, other, (*path, 0)))
    kinds: dict[str, Kind] = dict(leaves(rows, path))
    kinds |= {name: field.kind for scores in found for name, field in scores.items()}
    return {
        name: _sum(kind, [scores[name] for scores in found if name in scores])
        for name, kind in kinds.items()
    }


def _sum(kind: Kind, fields: Sequence[FieldScore]) -> FieldScore:
    """The fields of several objects as one."""
    return FieldScore(
        kind,
        hits=sum(field.hits for field in fields),
        expected=sum(field.expected for field in fields),
        given=sum(field.given for field in fields),
        missing=sum(field.missing for field in fields),
        spurious=sum(field.spurious for field in fields),
        choices=tuple(choice for field in fields for choice in field.choices),
    )


def _leaf(kind: Kind, reference: object, answer: object, tolerance: float | None) -> FieldScore:
    if kind in ("list", "exact"):
        wanted, given = (_values(kind, side) for side in (reference, answer))
        missing, spurious = wanted - given, given - wanted
        if kind == "exact":  # A path that both sides have holds a wrong value.
            missing, spurious = (
                Counter({key: count for key, count in one.items() if key[0] not in others})
                for one, others in (
                    (missing, {path for path, _ in given}),
                    (spurious, {path for path, _ in wanted}),
                )
            )
        return FieldScore(
            kind,
            hits=float((wanted & given).total()),
            expected=wanted.total(),
            given=given.total(),
            missing=missing.total(),
            spurious=spurious.total(),
        )
    expected, came = _is_something(reference), _is_something(answer)
    return FieldScore(
        kind,
        hits=_match(kind, reference, answer, tolerance) if expected and came else 0.0,
        expected=int(expected),
        given=int(came),
        missing=int(expected and not came),
        spurious=int(came and not expected),
        choices=((_label(reference), _label(answer)),) if kind == "closed" else (),
    )


def _match(kind: Kind, reference: object, answer: object, tolerance: float | None) -> float:
    """How far two present values match, from 0 to 1."""
    if kind == "number" and _is_number(reference) and _is_number(answer):
        return float(_close(reference, answer, tolerance or 0.0))
    if kind in ("span", "text") and isinstance(reference, str) and isinstance(answer, str):
        return token_f1(reference, answer)
    return float(same(reference, answer))


def _label(value: object) -> str:
    return value.name if isinstance(value, _Nothing) else label(value)


def _is_something(value: object) -> bool:
    """Whether a value is there: null, a blank string, `[]` and `{}` say that there is none."""
    if isinstance(value, str):
        return bool(value.strip())
    return not (value is None or value == [] or value == {} or isinstance(value, _Nothing))


def _values(kind: Kind, value: object) -> Counter[tuple[Place, object]]:
    """The values of a list or an open object as a multiset, each with its path.

    The items of a list have no place of their own. In its stead any other value is one that equals
    no item.
    """
    if kind == "exact":
        return Counter(_at_paths(value, ()))
    if isinstance(value, list):
        return Counter(((), _folded(item)) for item in value if _is_something(item))
    return Counter([((), object())] if _is_something(value) else [])


def _at_paths(value: object, path: Place) -> Iterator[tuple[Place, object]]:
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, member in inner:
            yield from _at_paths(member, (*path, key))
    elif _is_something(value):
        # True equals 1 in Python, so the type is part of the key; "1" differs from 1 anyway.
        yield path, (type(value) is bool, value)


def words(text: str) -> Counter[str]:
    """The words of a text, case folded; numbers stay whole."""
    return Counter(_WORD.findall(text.casefold()))


def token_f1(reference: str, answer: str) -> float:
    """F1 of the words of two texts as multisets, case folded; numbers stay whole.

    >>> token_f1("a persistent dry cough", "Dry cough")
    0.6666666666666666
    """
    wanted, given = words(reference), words(answer)
    if not wanted or not given:
        return float(reference.strip() == answer.strip())
    return 2 * (wanted & given).total() / (wanted.total() + given.total())


def _f1(hits: float, expected: int, given: int) -> float | None:
    return 2 * hits / (expected + given) if expected + given else None


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
