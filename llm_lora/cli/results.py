"""Commands on finished runs: `evaluate`, `report`, `chat` and `runs`."""

from __future__ import annotations

from pathlib import Path

import click

from llm_lora.cli import measuring
from llm_lora.cli.options import (
    gate_store_option,
    json_option,
    path_option,
    run_argument,
    runs_option,
)
from llm_lora.cli.outcome import print_json, require


@click.command()
@run_argument
@click.option(
    "--via", "url", metavar="URL", help="Query a running server and compare it with the report."
)
@gate_store_option
@json_option
def evaluate(run: Path, url: str | None, store: Path, as_json: bool) -> None:
    """Re-evaluate a run on its held-out data and rewrite its report.

    With --via, a running server answers instead; the report is kept, and the differences are
    written to RUN/served.json. The exit code is 1 if a gate fails or if server and report differ.
    """
    if url is not None:
        measuring.evaluate_via(run, url, as_json=as_json)
        return

    import time

    from llm_lora import pipeline
    from llm_lora import run as runs
    from llm_lora.cli.show import live as show
    from llm_lora.progress import Fit

    here = runs.find(run)
    prepared = pipeline.reopen(here)
    fit = Fit.from_json(here.read(here.fit), here.fit)
    with show.Live(quiet=as_json) as watch, here.claimed():
        report = pipeline.evaluate(
            prepared, here, watch, fit=fit, started=time.monotonic(), store=store
        )
    if as_json:
        print_json(report.to_json())
    else:
        show.outcome(here, report)
    require(report.passed)


@click.command()
@run_argument
@path_option(
    "--against",
    "other",
    metavar="RUN",
    help="Compare with another run's adapter on the held-out prompts that both answered.",
)
@json_option
def report(run: Path, other: Path | None, as_json: bool) -> None:
    """Show a run's held-out report and the path of its HTML page."""
    from llm_lora import run as runs
    from llm_lora.cli.show import live as show
    from llm_lora.report import read_report

    here = runs.find(run)
    if other is not None:
        from llm_lora.tasks import steps

        told = steps.compare(here, runs.find(other))
        if as_json:
            print_json(told.to_json())
        else:
            show.of(here.task).versus(told)
        return
    found = read_report(here)
    if as_json:
        print_json(found.to_json())
    else:
        show.outcome(here, found)


@click.command()
@run_argument
@click.argument("message", required=False)
@click.option("--free", is_flag=True, help="Do not constrain answers to the schema.")
@click.option("--base", "base_only", is_flag=True, help="Answer without the adapter.")
@json_option
def chat(run: Path, message: str | None, free: bool, base_only: bool, as_json: bool) -> None:
    """Ask a run's adapter; each answer is shown with its verdict.

    Without MESSAGE, messages are read from the terminal, one a line.
    """
    from llm_lora import run as runs
    from llm_lora.cli import talk
    from llm_lora.tasks.text import Talker

    talker = Talker(runs.find(run), free=free, base_only=base_only)
    if message is not None:
        talk.once(talker, message, as_json=as_json)
    else:
        talk.loop(talker, as_json=as_json)


@click.command("runs")
@runs_option
@json_option
def list_runs(root: Path, as_json: bool) -> None:
    """List all runs with their state and held-out scores."""
    from llm_lora import run as runs
    from llm_lora.cli.show import live as show

    found = [show.summary(one) for one in runs.every(root)]
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        show.run_table(found, root)
