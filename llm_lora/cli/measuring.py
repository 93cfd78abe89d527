"""Commands that measure a server: `bench serve`, and `evaluate --via`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_lora.cli.options import count_option, json_option, run_argument
from llm_lora.cli.outcome import print_json, require

if TYPE_CHECKING:
    from rich.table import Table

_TIMES = ("latency_p50", "latency_p99", "first_token_p50", "first_token_p99")
_SHOWN = 3
"""Number of differing answers printed; `served.json` holds all of them."""
_AROUND = 40
"""Characters shown of each answer, starting shortly before the two diverge."""
_BEFORE = 12


@click.group()
def bench() -> None:
    """Benchmark serving on this machine."""


@bench.command("serve")
@run_argument
@count_option(
    "--requests",
    default=64,
    help="Requests per form and round.",
)
@count_option(
    "--connections",
    default=8,
    help="Concurrent requests.",
)
@count_option(
    "--rounds",
    default=2,
    help="Rounds over all forms; each round starts a server per form.",
)
@count_option(
    "--adapters",
    default=4,
    help="Adapters in one batch, for the mixed form.",
)
@count_option(
    "--tokens",
    metavar="N",
    help="Length of the answers.  [default: the median of the run's answers]",
)
@json_option
def bench_serve(run: Path, as_json: bool, **options: Any) -> None:
    """Compare serving a merged model with serving adapters, with the bare base as a baseline.

    Starts a vLLM server for each form and round. Nothing else should run on the machine meanwhile.
    """
    from llm_lora import machine
    from llm_lora import run as runs
    from llm_lora.cli.show import live as show
    from llm_lora.serving.measure import bench as measuring
    from llm_lora.tasks.text import task as text_task

    here = runs.find(run)
    prepared = text_task.reopen(here)
    settings = measuring.Settings(**options)
    with show.Live(quiet=as_json) as watch:
        document = measuring.measure(here, prepared, machine.detect(), settings, watch)
    if as_json:
        print_json(document)
    else:
        show_bench(document)


def show_bench(document: Mapping[str, Any]) -> None:
    """Print a row for each form, then the advice."""
    from rich.table import Table

    from llm_lora.cli.console import console

    settings = document["settings"]
    console.print(
        f"\n{document['base']} on {document['machine']} · rank {document['rank']} · "
        f"{settings['connections']} connections · answers of {settings['tokens']} tokens · "
        f"{settings['rounds']} rounds of {settings['requests']} requests"
    )
    table = Table(
        "", "tokens/s", "", "p50", "p99", "first token p50", "p99", "memory", "cache",
        box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    fastest = document["forms"]["merged"]["tokens_per_second"]
    for name, form in document["forms"].items():
        cache = form["cache_tokens"]
        table.add_row(
            name if name != "mixed" else f"{settings['adapters']} mixed",
            f"{form['tokens_per_second']:,.0f}",
            f"{form['tokens_per_second'] / fastest:.0%}",
            *(_seconds(form[f"{what}_ms"]) for what in _TIMES),
            f"{form['memory_bytes'] / 2**30:.1f} GiB",
            "" if cache is None else f"{cache / 1000:,.0f}k tokens",
        )
    console.print(table)
    for sentence in document["advice"]:
        console.print(f"- {sentence}")


def _seconds(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.1f} s"


def evaluate_via(run: Path, url: str, *, as_json: bool) -> None:
    """Compare a running server with a run's report; exits with 1 if they differ too much.

    Raises:
        UserError: the run is not finished, or the server does not serve its adapter.
    """
    from llm_lora import run as runs
    from llm_lora.cli.show import live as show
    from llm_lora.serving import Client
    from llm_lora.serving.measure import drift
    from llm_lora.tasks.text import task as text_task

    here = runs.find(run)
    prepared = text_task.reopen(here)
    with Client(url) as client, show.Live(quiet=as_json) as watch, here.claimed():
        document = drift.check(here, prepared, client, watch)
    if as_json:
        print_json(document)
    else:
        show_drift(document, here.folder / drift.SERVED)
    require(document["passed"])


def show_drift(document: Mapping[str, Any], path: Path) -> None:
    """Engine and server side by side, and the first answers that differ."""
    from rich.markup import escape

    from llm_lora.cli.console import console

    tokens = document["tokens"]
    console.print(f"\ntoken ids as in training: {tokens['equal']} of {tokens['prompts']} prompts")
    if (first := tokens["first_difference"]) is not None:
        console.print(
            f"  {first['id']} differs from token {first['position']} on: "
            f"training {escape(repr(first['training']))}, server {escape(repr(first['server']))}"
        )
    console.print(_scores(document))
    for form in document["forms"]:
        rows = [row for row in document["answers"] if row["form"] == form and "engine" in row]
        for row in rows[:_SHOWN]:
            start = max(row["differs_at"] - _BEFORE, 0)
            console.print(
                f"\n[dim]{form}, {row['id']}, differs from character {row['differs_at']} on[/]"
                f"\n  engine  {escape(row['engine'][start : start + _AROUND])}"
                f"\n  server  {escape(row['server'][start : start + _AROUND])}"
                f"  [dim]{row['verdict']['kind']}[/]"
            )
    if document["sampled"]:
        console.print(
            "\n[yellow]note[/] the recipe samples its answers (generate.temperature above 0), so "
            "two tries always differ"
        )
    if document["passed"]:
        console.print(f"\n[bold green]passed[/]: engine and server agree · {path}")
    for reason in document["reasons"]:
        console.print(f"\n[bold red]drift[/] {escape(reason)}")


def _scores(document: Mapping[str, Any]) -> Table:
    """Scores of engine and server, by form and part."""
    from rich.table import Table

    from llm_lora.cli.console import cell

    table = Table(
        "answers", "part", "n", *("valid: engine", "server"), *("field F1: engine", "server"),
        "identical", "same value", box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for form, figures in document["forms"].items():
        for row, (part, ours) in enumerate(figures["engine"].items()):
            theirs, whole = figures["server"][part], part == "all"
            pairs = [(ours[key], theirs[key]) for key in ("schema_valid", "field_f1")]
            shares = [figures[key] if whole else None for key in ("identical", "same_value")]
            table.add_row(
                "" if row else form,
                part,
                str(ours["n"]),
                *(cell(value) for pair in pairs for value in pair),
                *map(cell, shares),
            )
    return table
