"""Findings: facts about a dataset that its owner should know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llm_lora.example import Rejected


@dataclass(frozen=True, slots=True)
class Finding:
    """An observation; `where` is the place of one example."""

    kind: str
    message: str
    count: int
    where: str | None = None


def by_reason(rejected: Iterable[Rejected]) -> list[dict[str, Any]]:
    """Reasons with counts, most frequent first, each with the place of its first occurrence.

    Rows are grouped by the part of the reason before the colon, where the details start.
    """
    groups: dict[str, list[Rejected]] = {}
    for row in rejected:
        groups.setdefault(row.reason.partition(": ")[0], []).append(row)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [
        {"reason": rows[0].reason, "count": len(rows), "where": rows[0].where} for rows in ordered
    ]
