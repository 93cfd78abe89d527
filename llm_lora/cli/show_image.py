"""What people see of pictures: the data check, the six dimensions, where the samples lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from llm_lora.cli.console import console
from llm_lora.cli.show import figure

if TYPE_CHECKING:
    from llm_lora.pictures import PictureDataset
    from llm_lora.run import Run

COLUMNS = {name: name for name in ("fidelity", "strength", "alignment")}
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
            f"  [yellow]{len(dataset.quarantine)} pictures or captions set aside[/], the first: "
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
    for bucket in checked.stats["buckets"]:
        table.add_row(f"{bucket['width']} x {bucket['height']}", str(bucket["pictures"]))
    console.print(table)
    for row in checked.quarantine[:_SHOWN]:
        console.print(f"  [red]set aside[/] {escape(row.where)}: {escape(row.reason)}")
    if (more := len(checked.quarantine) - _SHOWN) > 0:
        console.print(f"  … and {more} more; see them all: --quarantine FILE")


def set_aside(dataset: PictureDataset) -> Iterable[Mapping[str, Any]]:
    """Rows for `--quarantine`."""
    for row in dataset.quarantine:
        yield {"where": row.where, "reason": row.reason, "raw": row.raw}


def figures(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dimensions that say most, where they were measured."""
    scores = document["scores"]
    return {key: scores[key] for key in COLUMNS if scores[key] is not None}


def results(run: Run) -> Mapping[str, Path]:
    """Where pictures lie."""
    folders = {"samples": run.samples, "pictures": run.pictures}
    return {what: folder for what, folder in folders.items() if folder.is_dir()}


def scores(document: Mapping[str, Any]) -> None:
    """The six dimensions."""
    table = Table(title="Judged", title_justify="left", title_style="bold")
    table.add_column("dimension")
    table.add_column("figure", justify="right")
    for name, value in document["scores"].items():
        table.add_row(name, "not measured" if value is None else figure(value))
    console.print(table)


def samples(run: Run) -> None:
    """Pictures are looked at, not printed: `results` tells where they lie."""
