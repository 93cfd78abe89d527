"""The figures of a set of answers, with intervals, counts, confusions and comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from llm_lora.record import INLINE, OMITTED, Record
from llm_lora.schema import AnswerSchema, Verdict
from llm_lora.scores import intervals
from llm_lora.scores.fields import Kind, closed_values, shape
from llm_lora.scores.intervals import Interval
from llm_lora.scores.scoring import FieldScore

if TYPE_CHECKING:
    from llm_lora.scores.intervals import Floats


@dataclass(frozen=True)
class Metric:
    """A figure of a set of answers: its title on the page and, if shown there, in the terminal.

    `secondary` ones give way on a narrow screen; `certain` ones are shown without an interval.
    """

    title: str
    short: str = ""
    secondary: bool = False
    certain: bool = False


METRICS = {
    "parsed": Metric("Parsed", "parsed", secondary=True, certain=True),
    "schema_valid": Metric("Schema valid", "valid"),
    "exact_match": Metric("Exact match", "exact", secondary=True),
    "precision": Metric("Precision", secondary=True),
    "recall": Metric("Recall", secondary=True),
    "macro_f1": Metric("Macro F1", secondary=True),
    "field_f1": Metric("Field F1", "field F1"),
}
"""The figures of a set of answers: shares of its examples, then scores of their values."""

_SHARES = 3
"""The first of them are shares of the examples."""

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
    """The figures of one field over `n` examples; None where nothing defines them.

    `support` counts the reference's values, `given` those of the answers; `precision`, `recall` and
    `f1` (with its `interval`) are over these values. `missing` and `spurious` are counts as in
    `FieldScore`. `absent` counts the examples in which rightly neither side has a value: they
    raise no score. Only a closed field has a `confusion`.
    """

    kind: Kind
    n: int
    support: int
    given: int
    precision: float | None
    recall: float | None
    f1: float | None
    interval: Interval | None
    missing: int
    spurious: int
    absent: int
    confusion: Annotated[Confusion | None, OMITTED] = None


@dataclass(frozen=True)
class Figures(Record):
    """The figures of `n` answers; None where nothing defines them.

    `parsed`, `schema_valid` and `exact_match` are shares of the answers. `precision`, `recall` and
    `field_f1` are over the values of all fields and examples together (micro averages), so that a
    value counts the same wherever it is, and one that both sides leave out does not count.
    `macro_f1` is the mean of the F1 of the fields for which the references have a value.
    `intervals` are their confidence intervals. `cut_off` answers were ended by the token limit.
    """

    n: int
    parsed: float | None
    schema_valid: float | None
    exact_match: float | None
    precision: float | None
    recall: float | None
    macro_f1: float | None
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
    """The difference of a figure, its interval, and the p-value of a permutation test."""

    difference: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class Comparison(Record):
    """The differences of two sets of `n` answers to the same examples, ours minus theirs.

    `figures` has those of `METRICS`, `fields` the F1 of each field, where both sets define it. The
    p-values of fields are corrected for the number of fields.
    """

    n: int
    fields: Mapping[str, Difference]
    figures: Annotated[Mapping[str, Difference], INLINE]

    ORDER: ClassVar[tuple[str, ...]] = ("n", "figures", "fields")


@dataclass(frozen=True)
class Tally:
    """What one answer adds to the figures: its verdict, and field → hits, expected, given."""

    parsed: bool
    valid: bool
    exact: bool
    fields: Mapping[str, tuple[float, int, int]]

    @classmethod
    def of(cls, row: Scored) -> Tally:
        """What a judged answer adds."""
        counts = {
            name: (field.hits, field.expected, field.given) for name, field in row.fields.items()
        }
        return cls(row.verdict.parsed, row.verdict.valid, row.exact, counts)


def summarise(rows: Sequence[Scored], schema: AnswerSchema | None = None) -> Figures:
    """The figures of one set of answers; `schema` gives the order of closed values."""
    tallies = [Tally.of(row) for row in rows]
    names = _names(tallies)
    found: list[intervals.Estimate | None] = [None] * (len(METRICS) + len(names))
    if rows:
        found = intervals.estimates(_table(tallies, names), _figures)
    metrics = dict(zip(METRICS, found, strict=False))
    orders = dict(closed_values(shape(schema))) if schema else {}
    return Figures(
        n=len(rows),
        **{name: round(one.value, 6) if one else None for name, one in metrics.items()},
        intervals={name: _rounded(one.interval) if one else None for name, one in metrics.items()},
        fields={
            name: _field_figures(
                [(row.verdict.parsed, row.fields.get(name)) for row in rows],
                estimate,
                orders.get(name, ()),
            )
            for name, estimate in zip(names, found[len(METRICS) :], strict=True)
        },
        cut_off=sum(row.cut_off for row in rows),
    )


def _field_figures(
    rows: Sequence[tuple[bool, FieldScore | None]],
    f1: intervals.Estimate | None,
    order: Sequence[str],
) -> FieldFigures:
    """The figures of one field, from whether each answer was parsed, and its score."""
    fields = [field for _, field in rows if field]
    kind = fields[0].kind
    hits = sum(field.hits for field in fields)
    support, given = (sum(getattr(one, key) for one in fields) for key in ("expected", "given"))
    return FieldFigures(
        kind=kind,
        n=len(rows),
        support=support,
        given=given,
        precision=round(hits / given, 6) if given else None,
        recall=round(hits / support, 6) if support else None,
        f1=round(f1.value, 6) if f1 else None,
        interval=_rounded(f1.interval) if f1 else None,
        missing=sum(field.missing for field in fields),
        spurious=sum(field.spurious for field in fields),
        absent=sum(parsed and not (field and field.f1 is not None) for parsed, field in rows),
        confusion=confusion(fields, order) if kind == "closed" else None,
    )


def _names(tallies: Iterable[Tally]) -> list[str]:
    """The fields that any answer or reference has."""
    return list(dict.fromkeys(name for tally in tallies for name in tally.fields))


def _table(tallies: Iterable[Tally], names: Sequence[str]) -> list[list[float]]:
    """The counts of each answer: 1, its verdict, and hits, expected and given of each field."""
    none = (0.0, 0, 0)
    return [
        [1, tally.parsed, tally.valid, tally.exact]
        + [count for name in names for count in tally.fields.get(name, none)]
        for tally in tallies
    ]


def _figures(sums: Floats) -> Floats:
    """`METRICS`, then the F1 of every field, from sums of the columns of `_table`."""
    import numpy as np

    head = 1 + _SHARES
    hits, expected, given = (sums[..., head + offset :: 3] for offset in range(3))
    all_hits, all_expected, all_given = (
        counts.sum(axis=-1, keepdims=True) for counts in (hits, expected, given)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        fields = 2 * hits / (expected + given)
        supported = expected > 0
        macro = np.where(supported, fields, 0).sum(axis=-1, keepdims=True) / supported.sum(
            axis=-1, keepdims=True
        )
        found: Floats = np.concatenate(
            [
                sums[..., 1:head] / sums[..., :1],
                all_hits / all_given,
                all_hits / all_expected,
                macro,
                2 * all_hits / (all_expected + all_given),
                fields,
            ],
            axis=-1,
        )
    return found


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


def compare(ours: Sequence[Tally], theirs: Sequence[Tally]) -> Comparison:
    """The differences of two sets of answers to the same examples, in the same order.

    Fields that only one of the sets has are left out.
    """
    names = [name for name in _names(ours) if name in set(_names(theirs))]
    found: list[intervals.Difference | None] = []
    if ours:
        found = intervals.differences(_table(ours, names), _table(theirs, names), _figures)
    figures = zip(METRICS, found, strict=False)
    fields = [(name, one) for name, one in zip(names, found[len(METRICS) :], strict=False) if one]
    corrected = intervals.adjusted([one.p for _, one in fields])
    return Comparison(
        n=len(ours),
        figures={name: _entry(one, one.p) for name, one in figures if one},
        fields={name: _entry(one, p) for (name, one), p in zip(fields, corrected, strict=True)},
    )


def _entry(one: intervals.Difference, p: float) -> Difference:
    return Difference(round(one.value, 6), _rounded(one.interval), round(p, 6))


def _rounded(ends: Interval) -> Interval:
    low, high = ends
    return round(low, 6), round(high, 6)
