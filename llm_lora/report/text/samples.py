"""The answers that a report shows: the worst, one of each verdict, and constrained changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_lora.report.text import differences
from llm_lora.report.text.differences import Piece
from llm_lora.schema import KINDS as VERDICTS
from llm_lora.scores import same

WORST = 10
"""Number of lowest-scored answers shown."""

SAME_CAUSE = {False: 3, True: WORST}
"""How many of them may fail for the same reason, by whether they are valid: valid ones have no
reason to count by."""

CHANGED = 4
"""Number of answers shown that the constraint changed."""

KINDS: dict[str, str] = {
    "right": "equals the reference",
    "differs": "fits the schema, but differs",
    **{name: kind.title for name, kind in VERDICTS.items() if name != "valid"},
    "cut_off": "cut off by the token limit",
}
"""The kinds of answers; every answer is of exactly one."""


class Row(differences.Row, Protocol):
    """The parts of a judged answer that the report's selection needs."""

    @property
    def id(self) -> str: ...
    @property
    def part(self) -> str | None: ...
    @property
    def prompt(self) -> str: ...
    @property
    def cut_off(self) -> bool: ...
    @property
    def exact(self) -> bool: ...


Sets = Mapping[tuple[str, str], Sequence[Row]]
"""(model, form) → judged answers to the same prompts, in the same order."""


def kind(row: Row) -> str:
    """The kind of an answer, one of `KINDS`."""
    if row.verdict.valid:
        return "right" if row.exact else "differs"
    return "cut_off" if row.cut_off and not row.verdict.parsed else row.verdict.kind


@dataclass(frozen=True)
class Kind:
    """A kind of verdict: its count in each set of answers, and one example.

    `tone` is good, bad or empty.
    """

    title: str
    tone: str
    counts: tuple[int, ...]
    whose: tuple[str, str]
    example: Row


def kinds(judged: Sets) -> Iterator[Kind]:
    """The kinds that occur.

    The example is the adapter's if it has one, unconstrained rather than constrained, and of
    median score within its kind.
    """
    order = sorted(judged, key=lambda one: (one[0] != "adapter", one[1] != "unconstrained"))
    for name, title in KINDS.items():
        found = {whose: [row for row in judged[whose] if kind(row) == name] for whose in judged}
        whose = next((whose for whose in order if found[whose]), None)
        if whose is not None:
            ranked = sorted(found[whose], key=lambda row: (row.score, row.id))
            counts = tuple(len(rows) for rows in found.values())
            tone = {"right": "good", "differs": ""}.get(name, "bad")
            yield Kind(title, tone, counts, whose, ranked[len(ranked) // 2])


def worst(wrong: Sequence[Row]) -> Iterator[Row]:
    """The lowest-scored answers, only a few of each cause, so that no cause hides the others."""
    shown: Counter[str] = Counter()
    for row in sorted(wrong, key=lambda row: (row.score, row.id)):
        cause = row.verdict.reasons[0].keyword if row.verdict.reasons else "wrong"
        if shown.total() < WORST and shown[cause] < SAME_CAUSE[row.verdict.valid]:
            shown[cause] += 1
            yield row


@dataclass(frozen=True)
class Change:
    """One prompt's answer without and with the constraint."""

    free: Row
    held: Row
    before: tuple[Piece, ...]
    after: tuple[Piece, ...]


@dataclass(frozen=True)
class Changes:
    """The constraint's effects on the adapter's answers: effect → count, and examples."""

    counts: dict[str, int]
    examples: tuple[Change, ...]


def changes(judged: Sets) -> Changes | None:
    """Compare the adapter's two forms, prompt by prompt; None if it has only one."""
    free, held = (judged.get(("adapter", form)) for form in ("unconstrained", "constrained"))
    if free is None or held is None:
        return None
    happened: dict[str, list[tuple[Row, Row]]] = {title: [] for title in _HAPPENED}
    for pair in zip(free, held, strict=True):
        happened[_what_happened(*pair)].append(pair)
    # One of each effect, then a second of each, and so on; the largest changes of score first.
    ranked = [
        sorted(happened[title], key=lambda pair: -abs(pair[1].score - pair[0].score))
        for title in _HAPPENED[2:]
    ]
    mixed = [pairs[rank] for rank in range(CHANGED) for pairs in ranked if rank < len(pairs)]
    return Changes(
        {title: len(pairs) for title, pairs in happened.items() if pairs},
        tuple(
            Change(one, other, *differences.sides(one.answer, other.answer))
            for one, other in mixed[:CHANGED]
        ),
    )


_HAPPENED = (
    "same text",
    "same values, written differently",
    "now fits the schema",
    "fitted before; better score now",
    "fitted before; worse score now",
    "fitted before; different values, same score",
    "still does not fit the schema",
)


def _what_happened(free: Row, held: Row) -> str:
    if not held.verdict.valid:
        return _HAPPENED[6]
    if free.answer == held.answer:
        return _HAPPENED[0]
    if not free.verdict.valid:
        return _HAPPENED[2]
    if same(free.verdict.value, held.verdict.value):
        return _HAPPENED[1]
    gain = held.score - free.score
    return _HAPPENED[3 if gain > 0 else 4 if gain < 0 else 5]
