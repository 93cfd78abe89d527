"""The figures of a set of answers: means with intervals, counts, confusions, comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from llm_lora.record import INLINE, OMITTED, Record
from llm_lora.schema import AnswerSchema, Verdict
from llm_lora.scores import intervals
from llm_lora.scores.fields import Kind, closed_values, shape
from llm_lora.scores.intervals import Interval
from llm_lora.scores.scoring import FieldScore


@dataclass(frozen=True)
class Metric:
    """A figure of a set of answers: its title on the page and in the terminal.

    `secondary` ones give way on a narrow screen; `certain` ones are shown without an interval.
    """

    title: str
    short: str
    secondary: bool = False
    certain: bool = False


METRICS = {
    "parsed": Metric("Parsed", "parsed", secondary=True, certain=True),
    "schema_valid": Metric("Schema valid", "valid"),
    "exact_match": Metric("Exact match", "exact", secondary=True),
    "field_f1": Metric("Field F1", "field F1"),
}
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
    def cut_off(self) -> bool: ...
    @property
    def fields(self) -> Mapping[str, FieldScore]: ...


@dataclass(frozen=True)
class Confusion(Record):
    """The confusion matrix of a closed field.

    `counts` has a row for each label of the reference and a column for each of the answer.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class FieldFigures(Record):
    """The figures of one field: the mean `score` over all `n` examples with its `interval`.

    `score_present` is the mean over the `n_present` examples whose reference has a value there.
    `expected`, `given`, `missing` and `spurious` are counts, as in `FieldScore`; only a closed
    field has a `confusion`.
    """

    score: float | None
    interval: Interval
    kind: Kind
    n: int
    score_present: float | None
    n_present: int
    expected: int
    given: int
    missing: int
    spurious: int
    confusion: Annotated[Confusion | None, OMITTED] = None


@dataclass(frozen=True)
class Figures(Record):
    """The figures of `n` answers, all None without any.

    `parsed`, `schema_valid` and `exact_match` are shares of them; `field_f1` is the mean over
    fields of the mean over examples, so a rare field counts as much as a common one; `intervals`
    are their confidence intervals. `cut_off` answers were ended by the token limit.
    """

    n: int
    parsed: float | None
    schema_valid: float | None
    exact_match: float | None
    field_f1: float | None
    intervals: Mapping[str, Interval | None]
    fields: Mapping[str, FieldFigures]
    cut_off: int

    def metric(self, name: str) -> float | None:
        """One of `METRICS` by name."""
        found: float | None = getattr(self, name)
        return found

    def headline(self) -> dict[str, float | None]:
        """The number of answers and all of `METRICS`."""
        return {"n": self.n} | {name: self.metric(name) for name in METRICS}


@dataclass(frozen=True)
class Parts(Record):
    """The figures of a model's answers in one form: of each part of the examples, and of `all`."""

    parts: Annotated[Mapping[str, Figures], INLINE]

    @property
    def all(self) -> Figures:
        """The figures of all answers."""
        return self.parts["all"]


@dataclass(frozen=True)
class Forms(Record):
    """The figures of a model's answers, unconstrained and, if there is a schema, constrained."""

    forms: Annotated[Mapping[str, Parts], INLINE]

    @property
    def unconstrained(self) -> Parts:
        """The figures of free decoding."""
        return self.forms["unconstrained"]

    @property
    def constrained(self) -> Parts:
        """The figures with the schema enforced; there are none in a run without a schema."""
        return self.forms["constrained"]


Scores = Mapping[str, Forms]
"""Model → the figures of its answers."""


@dataclass(frozen=True)
class Difference(Record):
    """The mean difference of a figure, its interval, and the p-value of a permutation test."""

    difference: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class Comparison(Record):
    """The differences of two sets of `n` answers to the same examples, ours minus theirs.

    `figures` has those of `METRICS`; it is empty without examples. The p-values of fields are
    corrected for the number of fields.
    """

    n: int
    fields: Mapping[str, Difference]
    figures: Annotated[Mapping[str, Difference], INLINE]

    ORDER: ClassVar[tuple[str, ...]] = ("n", "figures", "fields")


def summarise(rows: Sequence[Scored], schema: AnswerSchema | None = None) -> Figures:
    """The figures of one set of answers; `schema` gives the order of closed values."""
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
        closed = found[0].kind == "closed"
        fields[name] = FieldFigures(
            score=_mean(columns[FIELD + name]),
            interval=sure[FIELD + name],
            kind=found[0].kind,
            n=len(found),
            score_present=_mean(present),
            n_present=len(present),
            expected=sum(field.expected for field in found),
            given=sum(field.given for field in found),
            missing=sum(field.missing for field in found),
            spurious=sum(field.spurious for field in found),
            confusion=confusion(found, orders.get(name, ())) if closed else None,
        )
    return Figures(
        n=len(rows),
        **{name: _mean(columns.get(name, [])) for name in METRICS},
        intervals={name: sure.get(name) for name in METRICS},
        fields=fields,
        cut_off=sum(row.cut_off for row in rows),
    )


def confusion(fields: Sequence[FieldScore], order: Sequence[str] = ()) -> Confusion:
    """The confusion matrix of a closed field.

    Its labels are those of `order` that occur, then others in the order of appearance.
    """
    counted = Counter(choice for field in fields for choice in field.choices)
    seen = dict.fromkeys(label for choice in counted for label in choice)
    labels = [label for label in order if label in seen]
    labels += [label for label in seen if label not in order]
    return Confusion(
        tuple(labels),
        tuple(tuple(counted[reference, answer] for answer in labels) for reference in labels),
    )


def flat(verdict: Verdict, exact: bool, fields: Mapping[str, float]) -> dict[str, float]:
    """Every figure of one answer: those of `METRICS`, and `fields.PATH` for each field."""
    mean = sum(fields.values()) / len(fields) if fields else 0.0
    values = (float(verdict.parsed), float(verdict.valid), float(exact), mean)
    found = dict(zip(METRICS, values, strict=True))
    return found | {FIELD + name: value for name, value in fields.items()}


def compare(ours: Sequence[Scored], theirs: Sequence[Scored]) -> Comparison:
    """The differences of two sets of answers to the same examples, in the same order (`paired`)."""
    return paired(*([flat(row.verdict, row.exact, _scores(row)) for row in rows]
                    for rows in (ours, theirs)))  # fmt: skip


def paired(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> Comparison:
    """The differences of two sets of answers to the same examples, ours minus theirs.

    Args:
        ours: the output of `flat` for each example.
        theirs: the same for the other set, in the same order.
    """
    names = [name for name in ours[0] if name in theirs[0]] if ours else []
    found = intervals.differences(
        [[row[name] for row in ours] for name in names],
        [[row[name] for row in theirs] for name in names],
    )
    by_name = dict(zip(names, found, strict=True))
    fields = [name for name in names if name.startswith(FIELD)]
    corrected = intervals.adjusted([by_name[name].p for name in fields])
    return Comparison(
        n=len(ours),
        figures={
            name: _entry(by_name[name], by_name[name].p) for name in names if name not in fields
        },
        fields={
            name.removeprefix(FIELD): _entry(by_name[name], p)
            for name, p in zip(fields, corrected, strict=True)
        },
    )


def _scores(row: Scored) -> dict[str, float]:
    return {name: field.score for name, field in row.fields.items()}


def _entry(one: intervals.Difference, p: float) -> Difference:
    return Difference(round(one.mean, 6), _rounded(one.interval), round(p, 6))


def _rounded(ends: Interval) -> Interval:
    low, high = ends
    return round(low, 6), round(high, 6)


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
