"""What a dimension comes to: a figure, what it rests on, and the pictures that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llm_lora.engines.image.measure.evidence import Evidence
from llm_lora.engines.image.measure.yardsticks import Yardsticks
from llm_lora.engines.image.sheets import Pixels
from llm_lora.progress import Fit

SHOWN = 8
"""Rows or columns of a sheet at most, where there may be many."""

Columns = Mapping[str, Sequence[Pixels]]
"""A sheet of pictures: title → what stands below it."""


@dataclass(frozen=True)
class Measured:
    """One dimension: its value or why there is none, what it rests on, and what it shows."""

    value: float | None
    columns: Columns
    shows: str
    facts: Sequence[tuple[str, float | int | str]] = ()
    findings: Sequence[str] = ()
    reason: str = ""


Dimension = Callable[[Evidence, Yardsticks, Fit], Measured]
"""How one is measured."""


def or_not(value: float | None) -> float | str:
    """A figure as a fact, also where there is none."""
    return "not measured" if value is None else value
