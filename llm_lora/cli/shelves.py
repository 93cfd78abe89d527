"""Terminal output of the store: adapters and versions, moved aliases, histories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from llm_lora.adapter import MADE
from llm_lora.cli.console import cell, console
from llm_lora.cli.show import of
from llm_lora.store import (
    Alias,
    Damaged,
    Event,
    Listed,
    Row,
    ServedRow,
    Standing,
    StoredRow,
    Version,
)

_GATES = {True: "[green]passed[/]", False: "[red]failed[/]", None: "[dim]no report[/]"}


def published(version: Version, state: Alias, *, mapped: bool) -> None:
    """Print a newly published version and the next command."""
    console.print(
        f"[bold]{version.label}[/] · rank {version.rank} · {version.modules} modules on "
        f"{escape(version.base_name)} · gates {_GATES[version.passed]}"
    )
    if not mapped:
        unmapped(version)
    if state.live == version.number:
        console.print("It is live.")
    else:
        console.print(f"Next: [bold]llm-lora promote {version.name} {version.number}[/]")


def unmapped(version: Version) -> None:
    """Print that the weights were not checked against the base, which is not on this machine."""
    console.print(
        f"  [yellow]note[/] the base {escape(version.base_name)} that it was trained on is not on "
        "this machine; whether the weights fit it is checked when it is served"
    )


def alias(state: Standing) -> None:
    """Print the live version, and the command that goes back."""
    name, live, previous, trial = state.name, state.live, state.previous, state.canary
    line = f"[bold]{name}[/] → " + (f"version {live}" if live else "nothing is live")
    if trial:
        line += f", version {trial.number} on trial with {trial.share:.1%} of the requests"
    console.print(line)
    if previous:
        console.print(f"Back to version {previous}: [bold]llm-lora rollback {name}[/]")


def adapters(found: Sequence[Listed], place: str) -> None:
    """Print every adapter with its versions; with a server's figures if it was asked."""
    if not found:
        console.print(f"no adapters in {escape(place)} yet: llm-lora publish RUN --as NAME")
        return
    served = any(isinstance(row, ServedRow) for one in found for row in one.versions)
    columns = ["adapter", "state", "base", "rank", "gates", "published"]
    tasks = {_task(row) for one in found for row in one.versions}
    # Text and image adapters have no scores in common.
    made = len(tasks) > 1
    columns[2:2] = ["for"] if made else []
    figures = of(*tasks).COLUMNS if len(tasks) == 1 else {}
    columns += ["loaded", "requests", "valid"] if served else figures.values()
    table = Table(*columns, box=None)
    for one in found:
        for row in one.versions:
            state = _state(one, row)
            if isinstance(row, Damaged):
                table.add_row(row.id, state)
                continue
            cells = [row.id, state]
            cells += [MADE[_task(row)]] if made else []
            cells += [escape(row.base), str(row.rank)]
            cells += [_GATES[row.passed], f"{age(row.age_seconds)} ago"]
            if isinstance(row, ServedRow):
                cells += ["yes" if row.loaded else "", str(row.requests)]
                cells.append(cell(row.valid_rate))
            elif isinstance(row, StoredRow):
                known = {**row.scores, "schema_valid": row.schema_valid, "field_f1": row.field_f1}
                cells += [cell(known.get(key)) for key in figures]
            table.add_row(*cells)
    console.print(table)
    for one in found:
        if one.problem:
            console.print(f"[red]problem[/] {one.standing.name}: {escape(one.problem)}")
        for row in one.versions:
            trouble, why = _trouble(row)
            if why:
                console.print(f"[red]{trouble}[/] {row.id}: {escape(why)}")


def history(name: str, events: Iterable[Event]) -> None:
    """Print the events of a name, oldest first."""
    table = Table("when (UTC)", "what", "version", "by", "why", "", box=None)
    for event in events:
        facts = {key: value for key, value in event.facts.items() if key != "number" and value}
        number = event.number
        table.add_row(
            event.at[:19].replace("T", " "),
            escape(event.kind),
            "" if number is None else str(number),
            escape(event.by),
            escape(event.why),
            escape(" ".join(f"{key}={_fact(value)}" for key, value in facts.items())),
        )
    if not table.row_count:
        console.print(f"nothing has happened to {escape(name)} yet")
        return
    console.print(table)


def age(seconds: float) -> str:
    """A duration in its largest unit: `3 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(int(seconds), 0)} s"


def _task(row: Row | Damaged) -> str:
    return row.task if isinstance(row, StoredRow) else "text"


def _trouble(row: Row | Damaged) -> tuple[str, str | None]:
    """What keeps a version from being served, and why."""
    return ("damaged", row.damaged) if isinstance(row, Damaged) else ("refused", row.refused)


def _state(one: Listed, row: Row | Damaged) -> str:
    number, standing = row.number, one.standing
    trouble, why = _trouble(row)
    if why:
        return f"[red]{trouble}[/]"
    # With a damaged alias the live version is unknown; otherwise the problem is the live one's.
    if one.problem and standing.live in (None, number):
        return "[red]problem[/]"
    if number == standing.live:
        return "[green]live[/]"
    if standing.canary and number == standing.canary.number:
        return f"[yellow]on trial[/] {standing.canary.share:.1%}"
    return "[dim]previous[/]" if number == standing.previous else ""


def _fact(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)[:12]
