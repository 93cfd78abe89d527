"""Rendering of `report.html`: one self-contained page with all written text escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lora.files import ASSETS
from llm_lora.report import charts
from llm_lora.report.text import differences, samples
from llm_lora.report.text.samples import Row, Sets
from llm_lora.schema import AnswerSchema
from llm_lora.scores import SURE, gates

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = ASSETS / "report"

TEXT_LIMIT = 3000
"""Characters shown of a prompt or an unparsable answer."""

SHORT_LIMIT = 700
"""The same limit where several are shown together."""

LABELS = 14
"""A closed field with more labels than this is shown by its most frequent confusions, not as a
table."""


def render(
    document: Mapping[str, Any],
    *,
    schema: AnswerSchema | None,
    judged: Sets,
    curve: Sequence[Mapping[str, Any]],
    lengths: Mapping[str, Sequence[int]],
    closed_weight: float = 1.0,
    forced_weight: float = 1.0,
    constrained_loss: bool = False,
) -> str:
    """The page for a report.

    Args:
        document: the content of `report.json`.
        schema: the answer schema.
        judged: (model, form) → judged answers.
        curve: the training log (step, loss, validation_loss).
        lengths: name (prompt, answer) → the examples' lengths in tokens.
        closed_weight: the weight of tokens of closed values in the training loss.
        forced_weight: the weight there of tokens that the schema forces.
        constrained_loss: whether the validation loss was measured under the constraint.
    """
    from markupsafe import Markup

    page = environment(
        percent=percent, points=points, ends=ends, clock=clock, chance=chance, gate=gate_value
    )
    scores = document["scores"]
    parts = list(scores.get("adapter", {}).get("unconstrained", {}))
    free = judged.get(("adapter", "unconstrained"), [])
    wrong = [row for row in free if row.score < 1 or not row.verdict.valid]
    return page.get_template("page.html.jinja").render(
        report=document,
        at_most=gates.AT_MOST,
        models=list(scores),
        parts=[part for part in parts if part != "all"],
        figures=_figures(document, parts),
        comparisons=list(_comparisons(document)),
        fields=_fields(document, parts),
        confusions=list(_confusions(scores)),
        calibration=[
            (form, table, Markup(_reliability(table)))
            for form, table in document["calibration"].get("adapter", {}).items()
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


def environment(folder: Path = TEMPLATES, **filters: Callable[..., str]) -> Environment:
    """The template environment of pages; all values are escaped."""
    # Imported here, so that only commands that write a page load the template engine.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= filters
    return made


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


def clock(seconds: float) -> str:
    """A duration: `4 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def gate_value(value: float | None, name: str) -> str:
    """A gate's threshold or measured value, in the gate's unit."""
    if value is None:
        return "n/a"
    if name == gates.LATENCY:
        return f"{value:,.0f} ms"
    return f"{points(value).lstrip('+')} points" if name == gates.DROP else percent(value)


def _compared(schema: AnswerSchema | None, row: Row) -> tuple[Row, list[Any], list[Any]]:
    found = list(differences.properties(schema, row))
    return row, found, list(differences.unread(row, TEXT_LIMIT))


def _figures(document: Mapping[str, Any], parts: Sequence[str]) -> list[dict[str, Any]]:
    """The key figures: values of every model, the adapter's interval, and the gate."""
    blocks = document["scores"]
    wanted = {gate["name"]: gate for gate in document["gates"]}
    shown = [("schema_valid", "all", "Schema valid"), ("exact_match", "all", "Exact match")]
    labelled = [part for part in parts if part != "all"] or ["all"]
    for part in labelled:
        name = f"Field F1, {part}" if part != "all" else "Field F1"
        shown.insert(-1, ("field_f1", part, name))
    found = []
    for key, part, name in shown:
        values = {
            model: forms.get("unconstrained", {}).get(part, {}) for model, forms in blocks.items()
        }
        found.append(
            {
                "name": name,
                "values": {model: block.get(key) for model, block in values.items()},
                "interval": values.get("adapter", {}).get("intervals", {}).get(key),
                "gate": wanted.get(key if part == "all" else f"{key}_{part}"),
            }
        )
    return found


def _comparisons(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The paired comparisons; `outcome` is better, worse or empty, by field F1."""
    rival = (document.get("published") or {}).get("label")
    for one in document["comparisons"]:
        (_, form), (model, other) = one["ours"], one["theirs"]
        if model == "adapter":
            what = f"{form} against {other}"
        else:
            what = f"{form}, against {rival or 'the base' if model == 'published' else 'the base'}"
        score = one.get("field_f1", {"p": 1.0, "difference": 0.0})
        sure = score["p"] < SURE
        outcome = ("better" if score["difference"] > 0 else "worse") if sure else ""
        fields = [(name, field) for name, field in one["fields"].items() if field["p"] < SURE]
        yield one | {
            "what": what,
            "outcome": outcome,
            "up": [name for name, field in fields if field["difference"] > 0],
            "down": [name for name, field in fields if field["difference"] < 0],
        }


def _fields(document: Mapping[str, Any], parts: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the field table: the adapter's score, also by part, and the other models' scores."""
    blocks = document["scores"]
    wanted = {gate["name"]: gate for gate in document["gates"]}
    ours = blocks.get("adapter", {}).get("unconstrained", {})
    others = [model for model in blocks if model != "adapter"]
    rows = []
    for name, field in ours.get("all", {}).get("fields", {}).items():
        rows.append({
            "name": name,
            "own": field,
            "gate": wanted.get(f"fields.{name}"),
            "parts": [ours[part]["fields"].get(name, {}).get("score")
                      for part in parts if part != "all"],
            "others": [(model, blocks[model]["unconstrained"]["all"]["fields"]
                        .get(name, {}).get("score")) for model in others],
        })  # fmt: skip
    return rows


def _confusions(scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The adapter's confusion tables, unconstrained, with the recall of each label."""
    block = scores.get("adapter", {}).get("unconstrained", {}).get("all", {})
    for name, field in block.get("fields", {}).items():
        table = field.get("confusion")
        if table is None:
            continue
        labels, counts = table["labels"], table["counts"]
        rows = [
            {
                "label": label,
                "total": sum(row),
                "cells": [(count, count / sum(row), i == j) for j, count in enumerate(row)],
                "found": row[i] / sum(row),
            }
            for i, (label, row) in enumerate(zip(labels, counts, strict=True))
            if sum(row)
        ]
        wrong = sorted(
            ((count, one, labels[j]) for i, one in enumerate(labels)
             for j, count in enumerate(counts[i]) if i != j and count),
            key=lambda found: -found[0],
        )  # fmt: skip
        large = len(labels) > LABELS
        yield {
            "name": name,
            "score": field["score"],
            "labels": labels,
            "rows": rows,
            "large": large,
            "wrong": wrong[:12],
        }


def _reliability(table: Mapping[str, Any]) -> str:
    return charts.reliability(
        [(one["confidence"], one["accuracy"], one["n"]) for one in table["bins"]]
    )


def _loss(curve: Sequence[Mapping[str, Any]], *, weighted: bool) -> str:
    series = [
        charts.Series(
            name,
            [(float(row["step"]), float(row[key])) for row in curve if row.get(key) is not None],
        )
        for name, key in (
            ("training (weighted)" if weighted else "training", "loss"),
            ("validation", "validation_loss"),
        )
    ]
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
