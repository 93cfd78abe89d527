"""Terminal output of image runs: the data check, the six dimensions, paths of the samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from llm_lora.cli.console import console, figure

if TYPE_CHECKING:
    from llm_lora.data.image import PictureDataset
    from llm_lora.run import Run

COLUMNS: Mapping[str, str] = {name: name for name in ("fidelity", "strength", "alignment")}
NEXT = "open {page}"

_SHOWN = 20


def dataset_lines(dataset: PictureDataset) -> str:
    """The data check as a few lines of text."""
    parts = f"{len(dataset.train)} train · {len(dataset.held_out)} held out"
    if dataset.regularisation:
        parts += f" · {len(dataset.regularisation)} regularisation"
    lines = [f"  {parts} · fingerprint {dataset.fingerprint[:12]}"]
    if dataset.quarantine:
        first = dataset.quarantine[0]
        lines.append(
            f"  [yellow]{len(dataset.quarantine)} pictures or captions set aside[/]; the first: "
            f"{escape(first.where)}: {escape(first.reason)}"
        )
    for finding in dataset.findings:
        place = f" ({finding.where})" if finding.where else ""
        lines.append(f"  [yellow]note[/] {finding.count} {escape(finding.message + place)}")
    return "\n".join(lines)


def dataset(checked: PictureDataset) -> None:
    """The data check in full."""
    console.print(dataset_lines(checked))
    table = Table("bucket", "pictures", box=None, padding=(0, 2, 0, 2))
    for bucket in checked.stats.buckets:
        table.add_row(f"{bucket['width']} x {bucket['height']}", str(bucket["pictures"]))
    console.print(table)
    for row in checked.quarantine[:_SHOWN]:
        console.print(f"  [red]set aside[/] {escape(row.where)}: {escape(row.reason)}")
    if (more := len(checked.quarantine) - _SHOWN) > 0:
        console.print(f"  … and {more} more; list all: --quarantine FILE")


def set_aside(dataset: PictureDataset) -> Iterable[Mapping[str, Any]]:
    """Rows for `--quarantine`."""
    for row in dataset.quarantine:
        yield {"where": row.where, "reason": row.reason, "raw": row.raw}


def figures(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The most informative dimensions, if they were measured."""
    scores = document["scores"]
    return {key: scores[key] for key in COLUMNS if scores[key] is not None}


def results(run: Run) -> Mapping[str, Path]:
    """Paths of the pictures."""
    folders = {"samples": run.samples, "steps": run.steps, "pictures": run.pictures}
    return {what: folder for what, folder in folders.items() if folder.is_dir()}


def scores(document: Mapping[str, Any]) -> None:
    """The six dimensions, each with its findings or the reason why it was not measured."""
    table = Table(title="Evaluation", title_justify="left", title_style="bold", box=None)
    table.add_column("dimension")
    table.add_column("figure", justify="right")
    table.add_column("", overflow="fold")
    noticed = {one["name"]: one.get("findings", []) for one in document.get("dimensions", [])}
    reasons = document.get("reasons", {})
    for name, value in document["scores"].items():
        notes = [*noticed.get(name, []), *([reasons[name]] if name in reasons else [])]
        tone = "dim" if value is None else "bold"
        table.add_row(name, f"[{tone}]{figure(value)}[/]", "\n".join(map(escape, notes)))
    console.print(table)


def versus(told: Mapping[str, Any]) -> None:
    """Compare two runs' adapters, dimension by dimension."""
    console.print(f"[bold]{escape(told['ours'])}[/] minus [bold]{escape(told['theirs'])}[/]")
    table = Table("dimension", "ours", "theirs", "difference", box=None)
    for name, row in told["scores"].items():
        values = [figure(row[key]) if row[key] is not None else "" for key in ("ours", "theirs")]
        apart = row["difference"]
        tone = "" if not apart else "[green]" if apart > 0 else "[red]"
        table.add_row(name, *values, "" if apart is None else f"{tone}{apart:+.3f}")
    console.print(table)
    if told["unlike"]:
        console.print(
            f"[yellow]note[/] the runs were evaluated differently "
            f"({escape(', '.join(told['unlike']))}), so the scores are less comparable"
        )


def samples(run: Run) -> None:
    """Prints nothing: `results` gives the folders of the pictures."""
