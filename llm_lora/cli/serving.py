"""`llm-lora serve`: its options, and progress from start to shutdown on the terminal."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_lora.cli.options import PATH, count_option, path_option
from llm_lora.task import TASKS

if TYPE_CHECKING:
    from rich.status import Status

    from llm_lora.serving import Readiness
    from llm_lora.serving.launch import AnyPlan, Line

_EVERY_S = 10.0
"""Interval between progress lines when the output is not a terminal."""
_SHOWN = 90
"""Characters shown of the server's latest log line."""


@click.command()
@click.argument("runs", metavar="[RUN|ADAPTER]...", nargs=-1, type=PATH)
@path_option("--store", metavar="DIR", help="Serve the live adapters of this store.")
@click.option(
    "--task",
    type=click.Choice(list(TASKS)),
    help="Which adapters to serve when the store holds both kinds.",
)
@click.option(
    "--base",
    metavar="NAME",
    help="Base model.  [default: the one that the adapters were trained on]",
)
@path_option("--merged", metavar="DIR", help="Serve this merged model instead of RUN's adapter.")
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@count_option(
    "--max-adapters",
    default=4,
    help="Adapter versions kept loaded at once.",
)
@click.option(
    "--context",
    type=click.IntRange(16),
    metavar="TOKENS",
    help="Maximum length of prompt and answer together.  [default: 8192, or the base's limit]",
)
@path_option("--api-keys", metavar="FILE", help="API keys of clients, one per line.")
@path_option("--admin-keys", metavar="FILE", help="API keys for admin calls, one per line.")
@click.option(
    "--open",
    "is_open",
    is_flag=True,
    help="Accept requests from other machines without an API key.",
)
@click.option(
    "--on-invalid",
    type=click.Choice(["flag", "retry", "error"]),
    default="flag",
    show_default=True,
    help="For an answer that does not fit the schema: mark it, ask once more, or respond with 422.",
)
@path_option("--access-log", metavar="FILE", help="Write a JSON line per request to this file.")
@click.option("--log-contents", is_flag=True, help="Log requests and answers as well.")
@count_option(
    "--max-concurrent",
    default=256,
    metavar="N",
    help="Requests processed at once; further ones wait. For images, always 1.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    metavar="N",
    help="Requests that may wait; further ones get 429.  [default: 256; for images, 64]",
)
@count_option(
    "--max-body",
    type=click.IntRange(1, 1024),
    default=2,
    metavar="MIB",
    help="Maximum request size.",
)
@count_option(
    "--timeout",
    default=600,
    metavar="SECONDS",
    help="Time limit for a complete answer.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and print the server's command.")
@click.option(
    "--extra-vllm",
    "extra",
    multiple=True,
    metavar='"--FLAG VALUE"',
    help="Passed to vLLM; repeatable.",
)
def serve(runs: tuple[Path, ...], is_open: bool, dry_run: bool, **options: Any) -> None:
    """Serve adapters through an OpenAI-compatible API.

    Each adapter's answers are held to its schema. Give RUNs (or their adapter folders), or --store
    for the live adapters of a store. Image adapters need a server of their own, which answers
    POST /v1/images/generations. Keys may also come from LLM_LORA_API_KEYS and LLM_LORA_ADMIN_KEYS,
    separated by commas. Ctrl-C stops the server after the running requests are answered; a second
    Ctrl-C stops it at once.
    """
    from llm_lora import machine
    from llm_lora.serving.launch import Wanted, examining
    from llm_lora.serving.launch import launching as launch

    wanted = Wanted(sources=runs, open=is_open, **options)
    plan = examining.examine(wanted, machine.detect())
    screen = Screen(plan)
    screen.introduce()
    if dry_run:
        click.echo(shlex.join(plan.command()))
    else:
        launch.serve(plan, screen)


class Screen:
    """Prints the server's progress; implements `launch.Watcher`."""

    def __init__(self, plan: AnyPlan) -> None:
        # Imported here to keep `--help` quick.
        from rich.markup import escape

        from llm_lora.cli.console import console

        self._plan = plan
        self._console = console
        self._escape = escape
        self._status: Status | None = None
        self._told = 0.0

    def introduce(self) -> None:
        """Print what will be served, and warnings."""
        plan = self._plan
        self._print(
            f"[bold]{self._escape(plan.base_name)}[/] {plan.base_digest[:12]} on "
            f"{self._escape(str(plan.hardware))} · {plan.form}"
        )
        for one in plan.served:
            self._print(
                f"  [cyan]{one.name}[/] ← {self._escape(one.label)} · rank {one.adapter.rank} · "
                f"{self._escape(plan.told(one))}"
            )
        for warning in plan.warnings:
            self._print(f"  [bold yellow]warning[/] {self._escape(warning)}")

    def starting(self, log: Path) -> None:
        """Begin the progress line."""
        self._told = time.monotonic()
        self._print(f"Starting {self._plan.server}; log: {self._escape(str(log))}")
        if self._console.is_terminal:
            self._status = self._console.status(f"Starting {self._plan.server}")
            self._status.start()

    def waiting(self, seconds: float, doing: str) -> None:
        """Redraw the progress line; without a terminal, print one from time to time."""
        text = f"Starting {self._plan.server} · {seconds:.0f} s · {self._escape(doing[:_SHOWN])}"
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._told >= _EVERY_S:
            self._told = time.monotonic()
            self._print(text)

    def ready(self, seconds: float, state: Readiness) -> None:
        """Print the address, a command to try, and the adapters that were refused."""
        self._settle()
        plan = self._plan
        self._print(f"[bold green]Ready[/] after {seconds:.0f} s: [bold]{plan.url}[/]")
        for name, reason in state.refused.items():
            self._print(f"  [bold red]refused[/] {self._escape(f'{name}: {reason}')}")
        self._print(f"  playground  {plan.url}/")
        # Not through the console, which would wrap the command and read it as markup.
        click.echo(f"  try it      {curl(plan)}")
        if not self._plan.keys.admin:
            self._print("  admin calls over HTTP are disabled; enable them with --admin-keys FILE")

    def alarm(self, line: Line) -> None:
        """Print an error from the server's log."""
        self._print(f"[red]{self._plan.server}[/] {self._escape(line.text)}")

    def died(self, code: int, reasons: Sequence[str], again_in: float | None) -> None:
        """Print why the server ended and when it restarts."""
        self._settle()
        if again_in is None:
            return  # The error that ends the command says it.
        ended = f"[bold red]{self._plan.server} exited[/] with code {code}"
        self._print(f"{ended}; restarting in {again_in:g} s")
        for reason in reasons:
            self._print(f"    {self._escape(reason)}")

    def ending(self) -> None:
        """Print that a shutdown was requested."""
        self._settle()
        self._print("Finishing running requests; press Ctrl-C again to stop at once")

    def _settle(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: str) -> None:
        self._console.print(text)


def curl(plan: AnyPlan) -> str:
    """A curl command for the first adapter, ready to paste."""
    path, body = plan.request(plan.served[0] if plan.served else None)
    words = ["curl", f"{plan.url}{path}", "-H", "Content-Type: application/json"]
    parts = [shlex.join(words)]
    if plan.keys.use:
        parts.append('-H "Authorization: Bearer $LLM_LORA_API_KEY"')
    parts.append(f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}")
    return " ".join(parts)
