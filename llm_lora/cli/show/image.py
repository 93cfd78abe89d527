"""Terminal output of image runs: the data check, the six dimensions, paths of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from llm_lora.cli.console import console, figure

if TYPE_CHECKING:
    from llm_lora.data import Finding
    from llm_lora.data.image import PictureDataset
    from llm_lora.example import Rejected
    from llm_lora.report.image import ImageReport, ImageVersus
    from llm_lora.run import Run

COLUMNS: Mapping[str, str] = {name: name for name in ("fidelity", "strength", "alignment")}
NEXT = "open {page}"
ROWS = "pictures or captions"


def sides(dataset: PictureDataset) -> str:
    """The number of pictures on each side."""
    told = f"{len(dataset.train)} train · {len(dataset.held_out)} held out"
    if dataset.regularisation:
        told += f" · {len(dataset.regularisation)} regularisation"
    return told


def set_aside(dataset: PictureDataset) -> Sequence[Rejected]:
    """The pictures and captions that were set aside."""
    return dataset.quarantine


def note(finding: Finding) -> str:
    """A finding with the number of pictures that it is about."""
    return f"{finding.count} {finding.message}"


def extent(dataset: PictureDataset) -> Table:
    """The pictures by bucket."""
    table = Table("bucket", "pictures", box=None, padding=(0, 2, 0, 2))
    for bucket in dataset.stats.buckets:
        table.add_row(f"{bucket['width']} x {bucket['height']}", str(bucket["pictures"]))
    return table


def figures(report: ImageReport) -> Mapping[str, float | None]:
    """The most informative dimensions, if they were measured."""
    return {key: score for key in COLUMNS if (score := report.scores.get(key)) is not None}


def results(run: Run) -> Mapping[str, Path]:
    """Paths of the pictures."""
    folders = {"samples": run.samples, "steps": run.steps, "pictures": run.pictures}
    return {what: folder for what, folder in folders.items() if folder.is_dir()}


def scores(report: ImageReport) -> Table:
    """The six dimensions, each with its findings or the reason why it was not measured."""
    table = Table(title="Evaluation", title_justify="left", title_style="bold", box=None)
    table.add_column("dimension")
    table.add_column("figure", justify="right")
    table.add_column("", overflow="fold")
    noticed = {one.name: one.findings for one in report.dimensions}
    for name, value in report.scores.items():
        reason = [report.reasons[name]] if name in report.reasons else []
        tone = "dim" if value is None else "bold"
        table.add_row(
            name,
            f"[{tone}]{figure(value)}[/]",
            "\n".join(map(escape, [*noticed.get(name, ()), *reason])),
        )
    return table


def findings(report: ImageReport) -> Sequence[str]:
    """What is to be known before any figure."""
    return ()


def versus(told: ImageVersus) -> None:
    """Compare two runs' adapters, dimension by dimension."""
    console.print(f"[bold]{escape(told.ours)}[/] minus [bold]{escape(told.theirs)}[/]")
    table = Table("dimension", "ours", "theirs", "difference", box=None)
    for name, row in told.scores.items():
        values = [figure(value) if value is not None else "" for value in (row.ours, row.theirs)]
        apart = row.difference
        tone = "" if not apart else "[green]" if apart > 0 else "[red]"
        table.add_row(name, *values, "" if apart is None else f"{tone}{apart:+.3f}")
    console.print(table)
    if told.unlike:
        console.print(
            f"[yellow]note[/] the runs were evaluated differently "
            f"({escape(', '.join(told.unlike))}), so the scores are less comparable"
        )


def samples(run: Run) -> None:
    """Prints nothing: `results` gives the folders of the pictures."""
