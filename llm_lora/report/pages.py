"""What the pages of every task share: the template environment, and values as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lora.files import ASSETS
from llm_lora.report.charts import Series

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = ASSETS / "report"

Curve = Sequence[Mapping[str, float | None]]
"""The training log: rows of `step` with `loss`, `validation_loss` or both."""


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


def clock(seconds: float) -> str:
    """A duration: `4 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def losses(curve: Curve, *, training: str = "training") -> list[Series]:
    """The losses over steps as lines of a chart; `training` is the name of the first."""
    return [
        Series(
            name,
            [
                (float(step), float(loss))
                for row in curve
                if (step := row["step"]) is not None and (loss := row.get(key)) is not None
            ],
        )
        for name, key in ((training, "loss"), ("validation", "validation_loss"))
    ]
