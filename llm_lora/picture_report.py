"""What was measured of an adapter that paints → `report.json` and `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llm_lora import files

REPORT = "report.json"
PAGE = "report.html"

DIMENSIONS = (
    "consistency",
    "fidelity",
    "generalisation",
    "learning",
    "strength",
    "alignment",
)
"""What an adapter is judged by, in the order of the report."""


def build(
    *,
    recipe: Mapping[str, Any],
    base: Mapping[str, Any],
    adapter: Mapping[str, Any],
    held_out: Mapping[str, int],
    measured: Mapping[str, Any],
    gates: Mapping[str, float],
    seconds: float,
    peak_memory_bytes: int,
) -> dict[str, Any]:
    """The document of `report.json`.

    Args:
        measured: under `scores` a figure for each dimension, None where it could not be measured,
            under `reasons` why not; other keys are kept as they are.
        gates: dimension → least figure.
    """
    scores = {name: measured["scores"].get(name) for name in DIMENSIONS}
    outcomes = [
        _outcome(name, least, scores[name], measured.get("reasons", {}).get(name))
        for name, least in gates.items()
    ]
    return {
        "recipe": dict(recipe),
        "base": dict(base),
        "adapter": dict(adapter),
        "held_out": dict(held_out),
        **{key: value for key, value in measured.items() if key not in ("scores", "reasons")},
        "scores": scores,
        "gates": outcomes,
        "passed": all(outcome["passed"] for outcome in outcomes),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory_bytes,
    }


def _outcome(name: str, least: float, value: float | None, reason: str | None) -> dict[str, Any]:
    outcome: dict[str, Any] = {
        "name": name,
        "threshold": least,
        "value": value,
        "passed": value is not None and value >= least,
    }
    if value is None:
        outcome["reason"] = reason or "not measured"
    return outcome


def write(
    folder: Path,
    document: Mapping[str, Any],
    *,
    curve: Sequence[Mapping[str, Any]],
    samples: Path,
) -> None:
    """Write `report.html` and, last, `report.json`.

    `curve` holds the training log (step, loss, validation_loss); `samples` is the folder of
    pictures painted while training.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    rows = "".join(
        f"<tr><td>{name}</td><td>{'' if value is None else f'{value:.3f}'}</td></tr>"
        for name, value in document["scores"].items()
    )
    painted = sorted(path.relative_to(folder) for path in samples.rglob("*.png"))
    images = "".join(f'<img src="{escape(path.as_posix())}" alt="">' for path in painted)
    title = escape(str(document["recipe"]["name"]))
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<h1>{title}</h1><table>{rows}</table>{images}</html>\n"
    )
    files.write_text(folder / PAGE, page)
    files.write_json(folder / REPORT, dict(document))
