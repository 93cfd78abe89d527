"""The figures of a set of answers: means with intervals, counts, confusions, comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llm_lora.schema import AnswerSchema, Verdict
from llm_lora.scores import intervals
from llm_lora.scores.fields import closed_values, shape
from llm_lora.scores.scoring import FieldScore

NAMES = ("parsed", "schema_valid", "exact_match", "field_f1")
"""The figures of a set of answers, each a mean over its examples."""

SURE = 0.05
"""Significance level: a p-value below it counts as a difference."""

FIELD = "fields."
"""Prefix of field names, which keeps them apart from figure names."""


class Scored(Protocol):
    """The parts of a judged answer that figures are computed from."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def exact(self) -> bool: ...
    @property
    def fields(self) -> Mapping[str, FieldScore]: ...


def summarise(rows: Sequence[Scored], schema: AnswerSchema | None = None) -> dict[str, Any]:
    """The block of `report.json` for one set of answers.

    `n` is the number of answers; `parsed`, `schema_valid` and `exact_match` are shares of it, and
    `field_f1` is the mean over fields of the mean over examples, so a rare field counts as much as
    a common one; `intervals` has their confidence intervals. A field has its mean `score` over all
    `n` with its `interval`, and `score_present` over the `n_present` examples whose reference has a
    value there; the counts `expected`, `given`, `missing` and `spurious`; and its `confusion` if it
    is closed. `schema` gives the order of closed values. Without rows, all figures are None.
    """
    table = [flat(row.verdict, row.exact, _scores(row)) for row in rows]
    names = list(table[0]) if table else []
    columns = {name: [row[name] for row in table] for name in names}
    sure = {
        name: _rounded(ends)
        for name, ends in zip(names, intervals.means([*columns.values()]), strict=True)
    }
    orders = dict(closed_values(shape(schema))) if schema else {}
    fields = {}
    for name in rows[0].fields if rows else ():
        found = [row.fields[name] for row in rows]
        present = [field.score for field in found if field.present]
        fields[name] = {
            "score": _mean(columns[FIELD + name]),
            "interval": sure[FIELD + name],
            "kind": found[0].kind,
            "n": len(found),
            "score_present": _mean(present),
            "n_present": len(present),
            **{
                count: sum(getattr(field, count) for field in found)
                for count in ("expected", "given", "missing", "spurious")
            },
        }
        if found[0].kind == "closed":
            fields[name]["confusion"] = confusion(found, orders.get(name, ()))
    return {
        "n": len(rows),
        **{name: _mean(columns.get(name, [])) for name in NAMES},
        "intervals": {name: sure.get(name) for name in NAMES},
        "fields": fields,
    }


def confusion(fields: Sequence[FieldScore], order: Sequence[str] = ()) -> dict[str, Any]:
    """The confusion matrix of a closed field.

    `counts` has a row for each label of the reference and a column for each of the answer, both as
    in `labels`: those of `order` that occur, then others in the order of appearance.
    """
    counted = Counter(choice for field in fields for choice in field.choices)
    seen = dict.fromkeys(label for choice in counted for label in choice)
    labels = [label for label in order if label in seen]
    labels += [label for label in seen if label not in order]
    return {
        "labels": labels,
        "counts": [[counted[reference, answer] for answer in labels] for reference in labels],
    }


def flat(verdict: Verdict, exact: bool, fields: Mapping[str, float]) -> dict[str, float]:
    """Every figure of one answer: those of `NAMES`, and `fields.PATH` for each field."""
    mean = sum(fields.values()) / len(fields) if fields else 0.0
    values = (float(verdict.parsed), float(verdict.valid), float(exact), mean)
    found = dict(zip(NAMES, values, strict=True))
    return found | {FIELD + name: value for name, value in fields.items()}


def compare(ours: Sequence[Scored], theirs: Sequence[Scored]) -> dict[str, Any]:
    """The differences of two sets of answers to the same examples, in the same order (`paired`)."""
    return paired(*([flat(row.verdict, row.exact, _scores(row)) for row in rows]
                    for rows in (ours, theirs)))  # fmt: skip


def paired(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """The differences of two sets of answers to the same examples, ours minus theirs.

    Args:
        ours: the output of `flat` for each example.
        theirs: the same for the other set, in the same order.

    Returns:
        the mean `difference`, its `interval` and the `p` of a permutation test, for each figure
        that both have. The p-values of fields are corrected for the number of fields.
    """
    names = [name for name in ours[0] if name in theirs[0]] if ours else []
    found = intervals.differences(
        [[row[name] for row in ours] for name in names],
        [[row[name] for row in theirs] for name in names],
    )
    by_name = dict(zip(names, found, strict=True))
    fields = [name for name in names if name.startswith(FIELD)]
    corrected = intervals.adjusted([by_name[name].p for name in fields])
    return {
        "n": len(ours),
        **{name: _entry(by_name[name], by_name[name].p) for name in names if name not in fields},
        "fields": {
            name.removeprefix(FIELD): _entry(by_name[name], p)
            for name, p in zip(fields, corrected, strict=True)
        },
    }


def _scores(row: Scored) -> dict[str, float]:
    return {name: field.score for name, field in row.fields.items()}


def _entry(one: intervals.Difference, p: float) -> dict[str, Any]:
    return {"difference": round(one.mean, 6), "interval": _rounded(one.interval), "p": round(p, 6)}


def _rounded(ends: intervals.Interval) -> list[float]:
    return [round(end, 6) for end in ends]


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
