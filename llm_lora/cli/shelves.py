"""Terminal output of the store: adapters and versions, moved aliases, histories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from llm_lora.adapter import MADE
from llm_lora.cli.console import cell, console
from llm_lora.cli.show import of
from llm_lora.store import Alias, Version

_GATES = {True: "[green]passed[/]", False: "[red]failed[/]", None: "[dim]no report[/]"}
_FACTS = ("event", "at", "by", "why", "number")


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


def alias(state: Mapping[str, Any]) -> None:
    """Print the live version, and the command that goes back."""
    name, live, previous = state["name"], state.get("live"), state.get("previous")
    trial = state.get("canary")
    line = f"[bold]{name}[/] → " + (f"version {live}" if live else "nothing is live")
    if trial:
        line += f", version {trial['number']} on trial with {trial['share']:.1%} of the requests"
    console.print(line)
    if previous:
        console.print(f"Back to version {previous}: [bold]llm-lora rollback {name}[/]")


def adapters(found: Sequence[Mapping[str, Any]], place: str) -> None:
    """Print every adapter with its versions; with a server's figures if it was asked."""
    if not found:
        console.print(f"no adapters in {escape(place)} yet: llm-lora publish RUN --as NAME")
        return
    served = any("requests" in row for one in found for row in one["versions"])
    columns = ["adapter", "state", "base", "rank", "gates", "published"]
    tasks = {row.get("task", "text") for one in found for row in one["versions"]}
    # Text and image adapters have no scores in common.
    made = len(tasks) > 1
    columns[2:2] = ["for"] if made else []
    figures = of(*tasks).COLUMNS if len(tasks) == 1 else {}
    columns += ["loaded", "requests", "valid"] if served else figures.values()
    table = Table(*columns, box=None)
    for one in found:
        for row in one["versions"]:
            state = _state(one, row)
            if "damaged" in row:
                table.add_row(row["id"], state)
                continue
            cells = [row["id"], state]
            cells += [MADE[row.get("task", "text")]] if made else []
            cells += [escape(row["base"]), str(row["rank"])]
            cells += [_GATES[row["passed"]], f"{age(row['age_seconds'])} ago"]
            if served:
                cells += ["yes" if row["loaded"] else "", str(row["requests"])]
                cells.append(cell(row["valid_rate"]))
            else:
                known = {**(row.get("scores") or {}), **row}
                cells += [cell(known.get(key)) for key in figures]
            table.add_row(*cells)
    console.print(table)
    for one in found:
        if one.get("problem"):
            console.print(f"[red]problem[/] {one['name']}: {escape(one['problem'])}")
        for row in one["versions"]:
            for trouble in ("damaged", "refused"):
                if row.get(trouble):
                    console.print(f"[red]{trouble}[/] {row['id']}: {escape(row[trouble])}")


def history(name: str, events: Iterable[Mapping[str, Any]]) -> None:
    """Print the events of a name, oldest first."""
    table = Table("when (UTC)", "what", "version", "by", "why", "", box=None)
    for event in events:
        facts = {key: value for key, value in event.items() if key not in _FACTS and value}
        number = event.get("number")
        table.add_row(
            str(event["at"])[:19].replace("T", " "),
            escape(str(event["event"])),
            "" if number is None else str(number),
            escape(str(event["by"])),
            escape(str(event["why"])),
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


def _state(one: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    number, trial = row["number"], one.get("canary")
    for trouble in ("damaged", "refused"):
        if row.get(trouble):
            return f"[red]{trouble}[/]"
    # With a damaged alias the live version is unknown; otherwise the problem is the live one's.
    if one.get("problem") and one["live"] in (None, number):
        return "[red]problem[/]"
    if number == one["live"]:
        return "[green]live[/]"
    if trial and number == trial["number"]:
        return f"[yellow]on trial[/] {trial['share']:.1%}"
    return "[dim]previous[/]" if number == one["previous"] else ""


def _fact(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)[:12]
