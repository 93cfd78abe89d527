"""Findings: facts about a dataset that its owner should know, and why rows were set aside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llm_lora.errors import Problem
from llm_lora.example import Rejected

_SHOWN_REASONS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """An observation; `where` is the place of one example."""

    kind: str
    message: str
    count: int
    where: str | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why rows were set aside; `reason` and `where` are those of the first of them."""

    reason: str
    count: int
    where: str


def by_reason(rejected: Iterable[Rejected]) -> list[Reason]:
    """Reasons with counts, most frequent first.

    Rows are grouped by the part of the reason before the colon, where the details start.
    """
    groups: dict[str, list[Rejected]] = {}
    for row in rejected:
        groups.setdefault(row.reason.partition(": ")[0], []).append(row)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [Reason(rows[0].reason, len(rows), rows[0].where) for rows in ordered]


def main_reasons(rejected: Iterable[Rejected]) -> list[Problem]:
    """The most frequent reasons for setting rows aside, for the message that too few are left."""
    problems = []
    for group in by_reason(rejected)[:_SHOWN_REASONS]:
        more = f" (and {group.count - 1} more like it)" if group.count > 1 else ""
        problems.append(Problem(group.reason + more, group.where))
    return problems
