"""Rendering of `report.html`: one self-contained page with all written text escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llm_lora.report import charts, pages
from llm_lora.report.pages import Curve
from llm_lora.report.text import differences, samples
from llm_lora.report.text.differences import Difference, Piece
from llm_lora.report.text.document import ModelComparison, TextReport
from llm_lora.report.text.samples import Row, Sets
from llm_lora.schema import AnswerSchema
from llm_lora.scores import (
    BASELINES,
    METRICS,
    SURE,
    Confusion,
    FieldFigures,
    Figures,
    Gate,
    Reliability,
    gates,
)

TEXT_LIMIT = 3000
"""Characters shown of a prompt or an unparsable answer."""

SHORT_LIMIT = 700
"""The same limit where several are shown together."""

LABELS = 14
"""A closed field with more labels than this is shown by its most frequent confusions, not as a
table."""


def render(
    report: TextReport,
    *,
    schema: AnswerSchema | None,
    judged: Sets,
    curve: Curve,
    lengths: Mapping[str, Sequence[int]],
    closed_weight: float = 1.0,
    forced_weight: float = 1.0,
    constrained_loss: bool = False,
) -> str:
    """The page for a report.

    Args:
        report: the report.
        schema: the answer schema.
        judged: (model, form) → judged answers.
        curve: the training log (step, loss, validation_loss).
        lengths: name (prompt, answer) → the examples' lengths in tokens.
        closed_weight: the weight of tokens of closed values in the training loss.
        forced_weight: the weight there of tokens that the schema forces.
        constrained_loss: whether the validation loss was measured under the constraint.
    """
    from markupsafe import Markup

    page = pages.environment(
        percent=percent,
        points=points,
        ends=ends,
        clock=pages.clock,
        chance=chance,
        gate=gate_value,
    )
    parts = [*_adapter(report)]
    free = judged.get(("adapter", "unconstrained"), [])
    wrong = [row for row in free if row.score < 1 or not row.verdict.valid]
    return page.get_template("page.html.jinja").render(
        report=report,
        metrics=METRICS,
        baselines=BASELINES,
        identities=[
            ("Recipe", report.recipe.to_json()),
            ("Base", report.base_identity.to_json()),
            ("Adapter", report.adapter_identity.to_json()),
            ("Live version", report.rival.to_json() if report.rival else {}),
        ],
        total=_adapter(report)["all"].n if parts else 0,
        models=list(report.scores),
        parts=[part for part in parts if part != "all"],
        figures=list(_tiles(report)),
        comparisons=list(_comparisons(report)),
        fields=list(_fields(report)),
        confusions=list(_confusions(_adapter(report))),
        calibration=[
            (form, table, Markup(_reliability(table)))
            for form, table in report.calibration.get("adapter", {}).items()
        ],
        kinds=list(samples.kinds(judged)),
        sets=list(judged),
        changes=samples.changes(judged),
        loss=Markup(_loss(curve, weighted=(closed_weight, forced_weight) != (1, 1))),
        closed_weight=closed_weight,
        forced_weight=forced_weight,
        constrained_loss=constrained_loss,
        lengths=Markup(charts.histograms(lengths, x_label="tokens")),
        failures=_failures(free),
        wrong=len(wrong),
        worst=[_compared(schema, row) for row in samples.worst(wrong)],
        unread=lambda row: list(differences.unread(row, SHORT_LIMIT)),
        limit=TEXT_LIMIT,
        short=SHORT_LIMIT,
    )


def percent(value: float | None) -> str:
    """A share as a percentage: `93.5%`; 100% and 0% only if they are exact.

    >>> percent(0.9996), percent(1.0), percent(None)
    ('99.9%', '100%', 'n/a')
    """
    if value is None:
        return "n/a"
    if value in (0, 1):
        return f"{value:.0%}"
    return f"{min(max(value, 0.001), 0.999):.1%}"


def ends(interval: Sequence[float] | None) -> str:
    """An interval of shares, in percent.

    >>> ends([0.7877, 0.8238])
    '78.8 to 82.4'
    """
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def points(value: float) -> str:
    """A difference of two shares, in percentage points.

    >>> points(0.1234), points(-0.02), points(0.0)
    ('+12.3', '\N{MINUS SIGN}2.0', '0.0')
    """
    text = f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if float(f"{100 * value:.1f}") == 0 else text


def chance(p: float) -> str:
    """A p-value as text.

    >>> chance(0.0001), chance(0.04), chance(1.0)
    ('p < 0.001', 'p = 0.04', 'p = 1')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def gate_value(value: float | None, name: str) -> str:
    """A gate's threshold or measured value, in the gate's unit."""
    if value is None:
        return "n/a"
    if name == gates.LATENCY:
        return f"{value:,.0f} ms"
    return f"{points(value).lstrip('+')} points" if name == gates.DROP else percent(value)


def _adapter(report: TextReport) -> Mapping[str, Figures]:
    """The adapter's unconstrained figures, by part; empty if it gave no such answers."""
    return report.adapter.unconstrained.parts if "adapter" in report.scores else {}


def _compared(schema: AnswerSchema | None, row: Row) -> tuple[Row, list[Difference], list[Piece]]:
    found = list(differences.properties(schema, row))
    return row, found, list(differences.unread(row, TEXT_LIMIT))


@dataclass(frozen=True)
class Tile:
    """A key figure: the value of every model, the adapter's interval, and its gate, if any."""

    name: str
    values: Mapping[str, float | None]
    interval: tuple[float, float] | None
    gate: Gate | None


def _tiles(report: TextReport) -> Iterator[Tile]:
    gate = {gate.name: gate for gate in report.gates}
    labelled = [part for part in _adapter(report) if part != "all"] or ["all"]
    for metric, part in (
        ("schema_valid", "all"),
        *(("field_f1", part) for part in labelled),
        ("exact_match", "all"),
    ):
        values = {
            model: found.unconstrained.parts.get(part) for model, found in report.scores.items()
        }
        own = values.get("adapter")
        title, suffix = METRICS[metric].title, part != "all"
        yield Tile(
            f"{title}, {part}" if suffix else title,
            {model: found.metric(metric) if found else None for model, found in values.items()},
            own.intervals[metric] if own else None,
            gate.get(f"{metric}_{part}" if suffix else metric),
        )


@dataclass(frozen=True)
class Compared:
    """A paired comparison in words; `outcome` is better, worse or empty, by field F1.

    `up` and `down` are the fields that are better or worse beyond doubt.
    """

    what: str
    comparison: ModelComparison
    outcome: str
    up: list[str]
    down: list[str]


def _comparisons(report: TextReport) -> Iterator[Compared]:
    rival = report.rival.label if report.rival else None
    for one in report.comparisons:
        (_, form), (model, other) = one.ours, one.theirs
        if model == "adapter":
            what = f"{form} against {other}"
        else:
            what = f"{form}, against {rival or 'the base' if model == 'published' else 'the base'}"
        score = one.figures.get("field_f1")
        sure = score is not None and score.p < SURE
        outcome = ("better" if score and score.difference > 0 else "worse") if sure else ""
        fields = [(name, field) for name, field in one.fields.items() if field.p < SURE]
        yield Compared(
            what,
            one,
            outcome,
            up=[name for name, field in fields if field.difference > 0],
            down=[name for name, field in fields if field.difference < 0],
        )


@dataclass(frozen=True)
class FieldRow:
    """A row of the field table: the adapter's figures, its scores by part, and other models'."""

    name: str
    own: FieldFigures
    gate: Gate | None
    parts: list[float | None]
    others: list[tuple[str, float | None]]


def _fields(report: TextReport) -> Iterator[FieldRow]:
    gate = {gate.name: gate for gate in report.gates}
    ours = _adapter(report)
    others = [model for model in report.scores if model != "adapter"]
    for name, field in ours["all"].fields.items() if ours else ():
        yield FieldRow(
            name,
            field,
            gate.get(f"fields.{name}"),
            [_score(figures, name) for part, figures in ours.items() if part != "all"],
            [(model, _score(report.scores[model].unconstrained.all, name)) for model in others],
        )


def _score(figures: Figures, field: str) -> float | None:
    return figures.fields[field].f1 if field in figures.fields else None


@dataclass(frozen=True)
class ConfusionRow:
    """A label of the references: its cells as count, share and whether right, and its recall."""

    label: str
    cells: list[tuple[int, float, bool]]
    found: float


@dataclass(frozen=True)
class ConfusionTable:
    """The confusion matrix of a field; a `large` one is shown by its most frequent mistakes."""

    name: str
    score: float | None
    labels: Sequence[str]
    rows: list[ConfusionRow]
    large: bool
    wrong: list[tuple[int, str, str]]


def _confusions(figures: Mapping[str, Figures]) -> Iterator[ConfusionTable]:
    for name, field in figures["all"].fields.items() if figures else ():
        if field.confusion is not None:
            yield confusion_table(name, field.f1, field.confusion)


def confusion_table(name: str, score: float | None, table: Confusion) -> ConfusionTable:
    """A confusion matrix with the recall of each label."""
    wrong = sorted(
        ((count, one, table.labels[j]) for i, one in enumerate(table.labels)
         for j, count in enumerate(table.counts[i]) if i != j and count),
        key=lambda found: -found[0],
    )  # fmt: skip
    return ConfusionTable(
        name,
        score,
        table.labels,
        [
            ConfusionRow(
                label,
                [(count, count / sum(row), i == j) for j, count in enumerate(row)],
                row[i] / sum(row),
            )
            for i, (label, row) in enumerate(zip(table.labels, table.counts, strict=True))
            if sum(row)
        ],
        len(table.labels) > LABELS,
        wrong[:12],
    )


def _reliability(table: Reliability) -> str:
    return charts.reliability([(one.confidence, one.accuracy, one.n) for one in table.bins])


def _loss(curve: Curve, *, weighted: bool) -> str:
    series = pages.losses(curve, training="training (weighted)" if weighted else "training")
    return charts.lines(series, x_label="step", y_label="loss")


def _failures(judged: Sequence[Row]) -> list[tuple[str, str, int, str]]:
    """The reasons why answers are not valid: place, keyword, number of answers, an example."""
    counted: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for row in judged:
        for key in {(reason.field or "whole answer", reason.keyword): str(reason)
                    for reason in row.verdict.reasons}.items():  # fmt: skip
            counted[key[0]] += 1
            first.setdefault(*key)
    return [(*key, count, first[key]) for key, count in counted.most_common(12)]
