"""The result of a dimension: its figure, the facts behind it, and pictures that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llm_lora.engines.image.measure.evidence import Evidence
from llm_lora.engines.image.measure.yardsticks import Yardsticks
from llm_lora.engines.image.sheets import Pixels
from llm_lora.progress import Fit

SHOWN = 8
"""Largest number of rows or columns of a sheet."""

Columns = Mapping[str, Sequence[Pixels]]
"""A sheet of pictures: column title → pictures below it."""


@dataclass(frozen=True)
class Measured:
    """One dimension: its value or the reason why there is none, its facts and its pictures."""

    value: float | None
    columns: Columns
    shows: str
    facts: Sequence[tuple[str, float | int | str]] = ()
    findings: Sequence[str] = ()
    reason: str = ""


Dimension = Callable[[Evidence, Yardsticks, Fit], Measured]
"""The function that measures a dimension."""


def or_not(value: float | None) -> float | str:
    """A figure as a fact; a missing one is stated."""
    return "not measured" if value is None else value
