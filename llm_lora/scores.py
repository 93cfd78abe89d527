"""How right an answer is, field by field, against the reference.

Every field of an example gets a score from 0 to 1:

    closed, exact   1 when equal
    number          1 when equal within a relative 1e-6
    span, text      F1 of the words, case folded
    list            F1 of the items as a multiset, strings compared case folded
    a member of an array of objects (`medications[].dose`): the objects are paired so that the sum
                    of their scores is greatest; F1 of the pairs' scores, so that missing and
                    spurious objects cost

Nulls are honest: null is right where the reference has null and wrong everywhere else, and a
property that is left out equals only one that is left out. Two empty arrays are equal. An answer
that cannot be parsed scores 0 in every field; one that parses but does not fit the schema is scored
on what is there. `field_f1` is the mean over fields of the mean over examples.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llm_lora.fields import FREE_TEXT, Kind, Leaf, Record, Rows, Shape, field_name, leaves, shape
from llm_lora.schema import AnswerSchema, Verdict
from llm_lora.subschemas import Place

NUMBER_TOLERANCE = 1e-6
"""Relative difference up to which two numbers count as equal: far below any measurement."""

# Scripts that write no spaces between words count by character.
_WORD = re.compile(
    r"\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    r"|[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
)
_ABSENT = object()


@dataclass(frozen=True)
class FieldScore:
    """One field of one example; `present` is false where the reference has nothing to find
    (null, absent, an empty list), which is right as soon as the answer has nothing either."""

    score: float
    kind: Kind
    present: bool = True


class Scored(Protocol):
    """What `summarise` needs to know of an answer."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def exact(self) -> bool: ...
    @property
    def fields(self) -> Mapping[str, FieldScore]: ...


def score(schema: AnswerSchema | None, reference: object, answer: Verdict) -> dict[str, FieldScore]:
    """Score an answer against the reference value, by field path, in the schema's order.

    Without a schema the answer is one free text, and so is the reference.
    """
    whole = shape(schema) if schema else FREE_TEXT
    found: dict[str, float] = {}
    if answer.parsed:
        _compare(whole, reference, answer.value, (), found)
    present: dict[str, bool] = {}
    _presence(whole, reference, (), present)
    return {
        name: FieldScore(found.get(name, 0.0), kind, present[name]) for name, kind in leaves(whole)
    }


def exact_match(reference: object, answer: Verdict) -> bool:
    """Whether the answer is the reference: as values, numbers numerically, order of properties
    aside."""
    return answer.parsed and same(reference, answer.value)


def summarise(rows: Sequence[Scored]) -> dict[str, Any]:
    """The block of `report.json` for one set of answers.

    `n` counts; `parsed`, `schema_valid` and `exact_match` are shares of it. A field has its mean
    `score` over all `n`, and `score_present` over those `n_present` examples whose reference holds
    something there. All figures are None for no rows.
    """
    by_field: dict[str, list[FieldScore]] = {}
    for row in rows:
        for name, field in row.fields.items():
            by_field.setdefault(name, []).append(field)
    fields = {}
    for name, scores in by_field.items():
        present = [field.score for field in scores if field.present]
        fields[name] = {
            "score": _mean([field.score for field in scores]),
            "kind": scores[0].kind,
            "n": len(scores),
            "score_present": _mean(present),
            "n_present": len(present),
        }
    return {
        "n": len(rows),
        "parsed": _mean([row.verdict.parsed for row in rows]),
        "schema_valid": _mean([row.verdict.valid for row in rows]),
        "exact_match": _mean([row.exact for row in rows]),
        "field_f1": _mean([_mean([field.score for field in scores]) or 0.0
                           for scores in by_field.values()]),
        "fields": fields,
    }  # fmt: skip


def mean_score(fields: Mapping[str, FieldScore]) -> float:
    """How right one answer is over all its fields, each counting the same."""
    return sum(field.score for field in fields.values()) / len(fields) if fields else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def _compare(
    found: Shape, reference: object, answer: object, path: Place, scores: dict[str, float]
) -> None:
    """Write the score of every field below a place."""
    if isinstance(found, Leaf):
        scores[field_name(path, found.kind)] = _leaf(found.kind, reference, answer)
    elif isinstance(found, Record) and isinstance(reference, dict) and isinstance(answer, dict):
        for key, member in found.members.items():
            both = reference.get(key, _ABSENT), answer.get(key, _ABSENT)
            _compare(member, *both, (*path, key), scores)
    elif isinstance(found, Rows) and isinstance(reference, list) and isinstance(answer, list):
        _compare_rows(found, reference, answer, path, scores)
    else:
        equal = float(same(reference, answer))
        scores.update((name, equal) for name, _ in leaves(found, path))


def _compare_rows(
    rows: Rows, reference: list[Any], answer: list[Any], path: Place, scores: dict[str, float]
) -> None:
    names = [name for name, _ in leaves(rows, path)]
    pairs: list[list[dict[str, float]]] = []
    for wanted in reference:
        pairs.append([])
        for given in answer:
            pairs[-1].append({})
            _compare(rows.item, wanted, given, (*path, 0), pairs[-1][-1])
    chosen = assign([[sum(pair.values()) for pair in row] for row in pairs])
    for name in names:
        hits = sum(pairs[row][column][name] for row, column in chosen)
        scores[name] = _f1(hits, len(reference), len(answer))


def _leaf(kind: Kind, reference: object, answer: object) -> float:
    if kind == "number" and _is_number(reference) and _is_number(answer):
        return float(_close(reference, answer))
    if kind in ("span", "text") and isinstance(reference, str) and isinstance(answer, str):
        return token_f1(reference, answer)
    if kind == "list" and isinstance(reference, list) and isinstance(answer, list):
        wanted, given = Counter(map(_folded, reference)), Counter(map(_folded, answer))
        return _f1((wanted & given).total(), len(reference), len(answer))
    return float(same(reference, answer))


def _presence(found: Shape, reference: object, path: Place, present: dict[str, bool]) -> None:
    """Write for every field below a place whether the reference has something there."""
    if isinstance(found, Record):
        for key, member in found.members.items():
            inner = reference.get(key) if isinstance(reference, dict) else None
            _presence(member, inner, (*path, key), present)
        return
    for name, _ in leaves(found, path):
        present[name] = reference is not None and reference != []


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
    """F1 of `hits` among `expected` and `found`; 1 where there was nothing to find."""
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


def _close(one: Any, other: Any) -> bool:
    try:
        return math.isclose(one, other, rel_tol=NUMBER_TOLERANCE)
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
    # The type sets true apart from 1, and 1 from "1" is apart by itself.
    return (type(value) is bool, value)


def assign(gains: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs of row and column with the greatest sum of gains, each row and column used once.

    The Hungarian method with potentials, O(rows² · columns) for the shorter side as rows
    (Kuhn 1955, Munkres 1957). scipy would do the same, but is no dependency of ours.
    """
    if not gains or not gains[0]:
        return []
    if len(gains) > len(gains[0]):
        flipped = assign(list(zip(*gains, strict=True)))
        return sorted((row, column) for column, row in flipped)
    rows, columns = len(gains), len(gains[0])
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)  # the row that holds a column, from 1; 0 is nobody
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        slack, came_from = [math.inf] * (columns + 1), [0] * (columns + 1)
        visited = [False] * (columns + 1)
        while owner[column]:
            visited[column] = True
            current = owner[column]
            for other in range(1, columns + 1):
                if visited[other]:
                    continue
                cost = -gains[current - 1][other - 1] - row_price[current] - column_price[other]
                if cost < slack[other]:
                    slack[other], came_from[other] = cost, column
            free = [other for other in range(1, columns + 1) if not visited[other]]
            nearest = min(free, key=slack.__getitem__)
            step = slack[nearest]
            for other in range(columns + 1):
                if visited[other]:
                    row_price[owner[other]] += step
                    column_price[other] -= step
                else:
                    slack[other] -= step
            column = nearest
        while column:
            owner[column] = owner[came_from[column]]
            column = came_from[column]
    return sorted(
        (owner[column] - 1, column - 1) for column in range(1, columns + 1) if owner[column]
    )
