"""Terminal output of text runs: the data check, held-out scores and a few answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from llm_lora.cli.console import console, figure
from llm_lora.scores import METRICS, SURE

if TYPE_CHECKING:
    from llm_lora.data import Finding
    from llm_lora.data.text import Dataset
    from llm_lora.example import Rejected
    from llm_lora.report.text import TextReport, TextVersus
    from llm_lora.run import Run

COLUMNS: Mapping[str, str] = {"schema_valid": "schema valid", "field_f1": "field F1"}
NEXT = "llm-lora chat {run}"
ROWS = "records"

_SAMPLES = 3


def sides(dataset: Dataset) -> str:
    """The number of records on each side."""
    parts = f"{len(dataset.train)} train · {len(dataset.validation)} validation"
    return f"{parts} · {len(dataset.held_out)} held out"


def set_aside(dataset: Dataset) -> Sequence[Rejected]:
    """The records that were set aside."""
    return dataset.rejected


def note(finding: Finding) -> str:
    """A finding, which states its number itself."""
    return finding.message


def extent(dataset: Dataset) -> Table:
    """The lengths of records in tokens."""
    table = Table("tokens", "shortest", "median", "longest", box=None, padding=(0, 2, 0, 2))
    for what, lengths in dataset.stats.tokens.items():
        ordered = sorted(lengths)
        if ordered:
            middle = ordered[len(ordered) // 2]
            table.add_row(what, str(ordered[0]), str(middle), str(ordered[-1]))
    return table


def figures(report: TextReport) -> Mapping[str, float | None]:
    """The adapter's unconstrained scores over all held-out answers."""
    found = report.adapter.unconstrained.all
    return {key: found.metric(key) for key in COLUMNS}


def results(run: Run) -> Mapping[str, Path]:
    """The path of the answers."""
    return {"answers": run.answers}


def scores(report: TextReport) -> Table:
    """Base and adapter, unconstrained and constrained, on each part of the held-out records."""
    table = Table(title="Held-out answers", title_justify="left", title_style="bold")
    table.add_column("model, form", no_wrap=True)
    table.add_column("part")
    shown = {name: metric.short for name, metric in METRICS.items() if metric.short}
    for column in ("n", *shown.values()):
        table.add_column(column, justify="right", no_wrap=True)
    for model, forms in report.scores.items():
        for form, found in forms.forms.items():
            names = sorted(found.parts, key=lambda name: name != "all")
            for part in names:
                block = found.parts[part]
                first = part == "all"
                *values, last = (figure(block.metric(name)) for name in shown)
                table.add_row(
                    f"{model}, {form}" if first else "",
                    part,
                    str(block.n),
                    *values,
                    f"[bold]{last}[/]",
                    end_section=part == names[-1],
                )
    for name, parts in report.baselines.items():
        *values, last = (figure(parts.all.metric(metric)) for metric in shown)
        table.add_row(f"no model, {name}", "all", str(parts.all.n), *values, f"[bold]{last}[/]")
    return table


def findings(report: TextReport) -> Sequence[str]:
    """What is to be known before any figure."""
    return report.findings


def versus(told: TextVersus) -> None:
    """Compare two runs' adapters: overall scores, then fields that differ significantly."""
    console.print(
        f"[bold]{escape(told.ours)}[/] minus [bold]{escape(told.theirs)}[/] on "
        f"{told.prompts} held-out prompts that both answered"
    )
    table = Table("answers", "figure", "difference", "95% interval", "p", box=None)
    for form, found in told.forms.items():
        fields = {f"  {name}": one for name, one in found.fields.items() if one.p < SURE}
        for row, (name, one) in enumerate([*found.figures.items(), *fields.items()]):
            low, high = one.interval
            tone = "" if one.p >= SURE else "[green]" if one.difference > 0 else "[red]"
            table.add_row(
                "" if row else form,
                escape(name),
                f"{tone}{one.difference:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                "< 0.001" if one.p < 0.001 else f"{one.p:.2g}",
            )
    console.print(table)


def samples(run: Run) -> None:
    """A few answers of the adapter with their verdicts."""
    if not run.answers.is_file():
        return
    shown = 0
    with run.answers.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["model"] != "adapter" or row["form"] != "unconstrained":
                continue
            kind = row["verdict"]["kind"]
            mark = "[green]valid[/]" if kind == "valid" else f"[red]{escape(kind)}[/]"
            console.print(f"\n[dim]{escape(row['prompt'])}[/]\n{escape(row['answer'])}  {mark}")
            for reason in row["verdict"]["reasons"][:2]:
                console.print(f"  [red]{escape(str(reason['message']))}[/]")
            shown += 1
            if shown == _SAMPLES:
                return
