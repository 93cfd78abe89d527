"""Findings: facts about a dataset that its owner should know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llm_lora.example import Rejected


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing; `where` is the place of an example of it."""

    kind: str
    message: str
    count: int
    where: str | None = None


def by_reason(rejected: Iterable[Rejected]) -> list[dict[str, Any]]:
    """Reasons with their counts, most frequent first, each with the first place it occurred.

    Rows count together when their reasons agree up to the colon, where the particulars begin.
    """
    groups: dict[str, list[Rejected]] = {}
    for row in rejected:
        groups.setdefault(row.reason.partition(": ")[0], []).append(row)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [
        {"reason": rows[0].reason, "count": len(rows), "where": rows[0].where} for rows in ordered
    ]
