"""Terminal output of text runs: the data check, held-out scores and a few answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from llm_lora.cli.console import console, figure
from llm_lora.scores import NAMES, SURE

if TYPE_CHECKING:
    from llm_lora.data.text import Dataset
    from llm_lora.run import Run

COLUMNS: Mapping[str, str] = {"schema_valid": "schema valid", "field_f1": "field F1"}
NEXT = "llm-lora chat {run}"

_SAMPLES = 3


def dataset_lines(dataset: Dataset) -> str:
    """The data check as a few lines of text."""
    parts = f"{len(dataset.train)} train · {len(dataset.validation)} validation"
    held_out = f"{len(dataset.held_out)} held out"
    lines = [f"  {parts} · {held_out} · fingerprint {dataset.fingerprint[:12]}"]
    if dataset.rejected:
        first = dataset.rejected[0]
        lines.append(
            f"  [yellow]{len(dataset.rejected)} records set aside[/]; the first: "
            f"{escape(first.where)}: {escape(first.reason)}"
        )
    for finding in dataset.findings:
        place = f" ({finding.where})" if finding.where else ""
        lines.append(f"  [yellow]note[/] {escape(finding.message + place)}")
    return "\n".join(lines)


def dataset(checked: Dataset) -> None:
    """The data check in full."""
    console.print(dataset_lines(checked))
    table = Table("tokens", "shortest", "median", "longest", box=None, padding=(0, 2, 0, 2))
    for what, lengths in checked.stats.tokens.items():
        ordered = sorted(lengths)
        if ordered:
            middle = ordered[len(ordered) // 2]
            table.add_row(what, str(ordered[0]), str(middle), str(ordered[-1]))
    console.print(table)
    for row in checked.rejected[:20]:
        console.print(f"  [red]set aside[/] {escape(row.where)}: {escape(row.reason)}")
    if len(checked.rejected) > 20:
        console.print(f"  … and {len(checked.rejected) - 20} more; list all: --quarantine FILE")


def set_aside(dataset: Dataset) -> Iterable[Mapping[str, Any]]:
    """Rows for `--quarantine`."""
    for row in dataset.rejected:
        yield {"where": row.where, "reason": row.reason, "raw": row.raw}


def figures(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The adapter's unconstrained scores over all held-out answers."""
    block = document["scores"]["adapter"]["unconstrained"]["all"]
    return {key: block[key] for key in COLUMNS}


def results(run: Run) -> Mapping[str, Path]:
    """The path of the answers."""
    return {"answers": run.answers}


def scores(document: Mapping[str, Any]) -> None:
    """Print the table of `score_table`."""
    console.print(score_table(document))


def score_table(document: Mapping[str, Any]) -> Table:
    """Base and adapter, unconstrained and constrained, on each part of the held-out records."""
    table = Table(title="Held-out answers", title_justify="left", title_style="bold")
    table.add_column("model, form", no_wrap=True)
    table.add_column("part")
    for column in ("n", "parsed", "valid", "exact", "field F1"):
        table.add_column(column, justify="right", no_wrap=True)
    for model, forms in document["scores"].items():
        for form, parts in forms.items():
            names = sorted(parts, key=lambda name: name != "all")
            for part in names:
                block = parts[part]
                first = part == "all"
                table.add_row(
                    f"{model}, {form}" if first else "",
                    part,
                    str(block["n"]),
                    *(figure(block[key]) for key in ("parsed", "schema_valid", "exact_match")),
                    f"[bold]{figure(block['field_f1'])}[/]",
                    end_section=part == names[-1],
                )
    return table


def versus(told: Mapping[str, Any]) -> None:
    """Compare two runs' adapters: overall scores, then fields that differ significantly."""
    console.print(
        f"[bold]{escape(told['ours'])}[/] minus [bold]{escape(told['theirs'])}[/] on "
        f"{told['prompts']} held-out prompts that both answered"
    )
    table = Table("answers", "figure", "difference", "95% interval", "p", box=None)
    for form, found in told["forms"].items():
        fields = {f"  {name}": one for name, one in found["fields"].items() if one["p"] < SURE}
        own = {name: found[name] for name in NAMES}
        for row, (name, one) in enumerate((own | fields).items()):
            low, high = one["interval"]
            tone = "" if one["p"] >= SURE else "[green]" if one["difference"] > 0 else "[red]"
            table.add_row(
                "" if row else form,
                escape(name),
                f"{tone}{one['difference']:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                "< 0.001" if one["p"] < 0.001 else f"{one['p']:.2g}",
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
