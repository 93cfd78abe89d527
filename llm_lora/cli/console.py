"""The console that commands print to."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def figure(value: object) -> str:
    """A number with three decimals, None as "not measured", anything else unchanged."""
    if value is None:
        return "not measured"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def cell(value: float | None) -> str:
    """A number with three decimals for a table; empty if it is None."""
    return "" if value is None else f"{value:.3f}"
