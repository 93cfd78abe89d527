"""`report.html`: one self-contained page; everything that people or models wrote is escaped."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llm_lora import charts
from llm_lora.jsontext import dumps, parse
from llm_lora.schema import AnswerSchema
from llm_lora.scores import FieldScore, mean_score, same
from llm_lora.verdict import Verdict

TEMPLATE = "report.html.jinja"
WORST = 10
"""How many of the lowest scored answers the page shows."""

SAME_CAUSE = {False: 3, True: WORST}
"""How many of them may fail for the same reason; answers that fit the schema have none."""

TEXT_LIMIT = 3000
"""Characters of a prompt or an unreadable answer that the page shows."""

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


class Row(Protocol):
    """What the page needs to know of a judged answer."""

    @property
    def id(self) -> str: ...
    @property
    def part(self) -> str | None: ...
    @property
    def prompt(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def cut_off(self) -> bool: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def score(self) -> float: ...
    @property
    def fields(self) -> Mapping[str, FieldScore]: ...


@dataclass(frozen=True)
class Piece:
    """A stretch of text; `mark` says that the other side does not have it."""

    text: str
    mark: bool


@dataclass(frozen=True)
class Difference:
    """One property of an answer beside the reference's."""

    name: str
    score: float
    reference: tuple[Piece, ...]
    answer: tuple[Piece, ...]


def render(
    document: Mapping[str, Any],
    *,
    schema: AnswerSchema | None,
    judged: Sequence[Row],
    curve: Sequence[Mapping[str, Any]],
    lengths: Mapping[str, Sequence[int]],
) -> str:
    """The page for a report; `judged` are the adapter's unconstrained answers."""
    # Only who writes a page pays for the template engine.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.filters["clock"] = clock
    source = (Path(__file__).parent / "assets" / TEMPLATE).read_text(encoding="utf-8")
    ours = document["scores"].get("adapter", {}).get("unconstrained", {})
    wrong = [row for row in judged if row.score < 1 or not row.verdict.valid]
    worst = list(_worst(wrong))
    return environment.from_string(source).render(
        report=document,
        parts=list(ours),
        figures=_figures(document, list(ours)),
        fields=_fields(document["scores"]),
        loss=Markup(_loss(curve)),
        lengths=Markup(charts.histograms(lengths, x_label="tokens")),
        failures=_failures(judged),
        wrong=len(wrong),
        worst=[(row, list(_differences(schema, row)), list(_unread(row))) for row in worst],
        limit=TEXT_LIMIT,
    )


def percent(value: float | None) -> str:
    """A share for people: `93.5%`; 100% only where nothing is missing, 0% where nothing is there.

    >>> percent(0.9996), percent(1.0), percent(None)
    ('99.9%', '100%', 'n/a')
    """
    if value is None:
        return "n/a"
    if value in (0, 1):
        return f"{value:.0%}"
    return f"{min(max(value, 0.001), 0.999):.1%}"


def clock(seconds: float) -> str:
    """A duration: `4 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _worst(wrong: Sequence[Row]) -> Iterator[Row]:
    """The lowest scored answers, few of any one cause, so that no cause hides the others."""
    shown: Counter[str] = Counter()
    for row in sorted(wrong, key=lambda row: (row.score, row.id)):
        cause = row.verdict.reasons[0].keyword if row.verdict.reasons else "wrong"
        if shown.total() < WORST and shown[cause] < SAME_CAUSE[row.verdict.valid]:
            shown[cause] += 1
            yield row


def _figures(document: Mapping[str, Any], parts: Sequence[str]) -> list[dict[str, Any]]:
    """The key figures: how the base did, how the adapter does, what a gate wants."""
    blocks = document["scores"]
    wanted = {gate["name"]: gate for gate in document["gates"]}
    shown = [("schema_valid", "all", "Schema valid"), ("exact_match", "all", "Exact match")]
    labelled = [part for part in parts if part != "all"] or ["all"]
    for part in labelled:
        name = f"Field F1, {part}" if part != "all" else "Field F1"
        shown.insert(-1, ("field_f1", part, name))
    return [
        {
            "name": name,
            "base": _figure(blocks, "base", part, key),
            "adapter": _figure(blocks, "adapter", part, key),
            "gate": wanted.get(key if part == "all" else f"{key}_{part}"),
        }
        for key, part, name in shown
    ]


def _figure(blocks: Mapping[str, Any], model: str, part: str, key: str) -> float | None:
    block = blocks.get(model, {}).get("unconstrained", {}).get(part, {})
    value: float | None = block.get(key)
    return value


def _fields(blocks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the field table: every field with the scores of both models on every part."""
    columns = [
        (model, part, block["fields"])
        for model in ("adapter", "base")
        for part, block in blocks.get(model, {}).get("unconstrained", {}).items()
        if part != "all" or len(blocks[model]["unconstrained"]) == 1
    ]
    if not columns:
        return []
    rows = []
    for name, field in blocks["adapter"]["unconstrained"]["all"]["fields"].items():
        cells = [
            {"model": model, "part": part, **fields.get(name, {"score": None, "n": 0})}
            for model, part, fields in columns
        ]
        rows.append({"name": name, "kind": field["kind"], "found": field["n_present"],
                     "n": field["n"], "cells": cells})  # fmt: skip
    return rows


def _loss(curve: Sequence[Mapping[str, Any]]) -> str:
    series = [
        charts.Series(
            name,
            [(float(row["step"]), float(row[key])) for row in curve if row.get(key) is not None],
        )
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
    ]
    return charts.lines(series, x_label="step", y_label="loss")


def _failures(judged: Sequence[Row]) -> list[tuple[str, str, int, str]]:
    """Why answers are not valid: place, keyword, number of answers, one such reason."""
    counted: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for row in judged:
        for key in {(reason.field or "whole answer", reason.keyword): str(reason)
                    for reason in row.verdict.reasons}.items():  # fmt: skip
            counted[key[0]] += 1
            first.setdefault(*key)
    return [(*key, count, first[key]) for key, count in counted.most_common(12)]


def _differences(schema: AnswerSchema | None, row: Row) -> Iterator[Difference]:
    """Reference and answer, property by property."""
    if not row.verdict.parsed:
        return
    reference = parse(row.reference) if schema else row.reference
    answer = row.verdict.value
    if not isinstance(reference, dict) or not isinstance(answer, dict):
        yield _difference("", row.score, _shown(reference), _shown(answer))
        return
    for key in [*reference, *(key for key in answer if key not in reference)]:
        texts = [_shown(side[key]) if key in side else "" for side in (reference, answer)]
        inner = {name: field for name, field in row.fields.items() if _under(name, key)}
        alike = key in answer and key in reference and same(reference[key], answer[key])
        yield _difference(key, mean_score(inner) if inner else float(alike), *texts)


def _under(field: str, key: str) -> bool:
    return field == key or field.startswith((f"{key}.", f"{key}["))


def _shown(value: object) -> str:
    """A value as it would stand in the answer; lists one item a line."""
    if isinstance(value, list) and value:
        return "\n".join(dumps(item) for item in value)
    return value if isinstance(value, str) else dumps(value)


def _difference(name: str, score: float, reference: str, answer: str) -> Difference:
    """Mark the words that only one side has."""
    ours, theirs = _WORDS.findall(reference), _WORDS.findall(answer)
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    matcher = difflib.SequenceMatcher(a=ours, b=theirs, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        for side, words in zip(sides, (ours[a:b], theirs[c:d]), strict=True):
            if words:
                side.append(Piece("".join(words), tag != "equal"))
    return Difference(name, score, tuple(sides[0]), tuple(sides[1]))


def _unread(row: Row) -> Iterator[Piece]:
    """The text of an answer that is not JSON, marked from where reading it failed."""
    if row.verdict.parsed:
        return
    at = next((found.position for found in row.verdict.reasons if found.position), None)
    text = row.answer
    if at is None or at > TEXT_LIMIT:
        yield Piece(text[:TEXT_LIMIT], False)
        return
    yield Piece(text[:at], False)
    yield Piece(text[at:TEXT_LIMIT] or " ", True)
