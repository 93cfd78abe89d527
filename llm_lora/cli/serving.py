"""`llm-lora serve`: what will be served, the way to readiness, and what happens after it."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.status import Status

    from llm_lora.serving.launch import AnyPlan, Line

_FILE = click.Path(path_type=Path)
_EVERY_S = 10.0
"""Between two lines of progress, where they are not drawn over each other."""
_SHOWN = 90
"""Characters of the server's latest word."""


@click.command()
@click.argument("runs", metavar="[RUN|ADAPTER]...", nargs=-1, type=_FILE)
@click.option("--store", type=_FILE, metavar="DIR", help="Serve what is live in this store.")
@click.option(
    "--task",
    type=click.Choice(["text", "image"]),
    help="Of a store that holds adapters for both.",
)
@click.option("--base", metavar="NAME", help="The base; else the one the adapters were trained on.")
@click.option(
    "--merged", type=_FILE, metavar="DIR", help="What `merge` made of the RUN, in its place."
)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--max-adapters",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Adapter versions that are loaded at once.",
)
@click.option(
    "--context",
    type=click.IntRange(16),
    metavar="TOKENS",
    help="Longest prompt and answer together.  [default: 8192, or what the base has]",
)
@click.option("--api-keys", type=_FILE, metavar="FILE", help="Keys for use, one a line.")
@click.option(
    "--admin-keys", type=_FILE, metavar="FILE", help="Keys for promoting and the like, one a line."
)
@click.option("--open", "is_open", is_flag=True, help="Serve others without any key.")
@click.option(
    "--on-invalid",
    type=click.Choice(["flag", "retry", "error"]),
    default="flag",
    show_default=True,
    help="What to do with an answer that does not fit: say so, ask once more, or answer 422.",
)
@click.option("--access-log", type=_FILE, metavar="FILE", help="One JSON line a request.")
@click.option("--log-contents", is_flag=True, help="Log requests and answers as well.")
@click.option(
    "--max-concurrent",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="N",
    help="Requests that are answered at once; the next ones wait. Pictures: always one.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    metavar="N",
    help="Requests that may wait; others get 429.  [default: 256, for pictures 64]",
)
@click.option(
    "--max-body",
    type=click.IntRange(1, 1024),
    default=2,
    show_default=True,
    metavar="MIB",
    help="Largest request.",
)
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Longest that a whole answer may take.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and print the server's command.")
@click.option(
    "--extra-vllm",
    "extra",
    multiple=True,
    metavar='"--FLAG VALUE"',
    help="Passed on to vLLM; may be given several times.",
)
def serve(runs: tuple[Path, ...], is_open: bool, dry_run: bool, **options: Any) -> None:
    """Serve adapters behind an OpenAI-compatible endpoint, each with its schema enforced.

    Either RUNs (or their adapter folders), or what is live in a store. Adapters for pictures get
    a server of their own, which paints: POST /v1/images/generations. Keys may also come from
    LLM_LORA_API_KEYS and LLM_LORA_ADMIN_KEYS, separated by commas. Ctrl-C ends the server once the
    running requests are answered; a second Ctrl-C ends it at once.
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
    """Tells people what happens; implements `launch.Watcher`."""

    def __init__(self, plan: AnyPlan) -> None:
        # Imported here, as `--help` needs none of it.
        from rich.markup import escape

        from llm_lora.cli.console import console

        self._plan = plan
        self._console = console
        self._escape = escape
        self._status: Status | None = None
        self._told = 0.0

    def introduce(self) -> None:
        """What will be served, and what is to be thought of."""
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
        """Begin the line that tells progress."""
        self._told = time.monotonic()
        self._print(f"Starting {self._plan.server}; its log: {self._escape(str(log))}")
        if self._console.is_terminal:
            self._status = self._console.status(f"Starting {self._plan.server}")
            self._status.start()

    def waiting(self, seconds: float, doing: str) -> None:
        """Draw the line anew; without a terminal, print one from time to time."""
        text = f"Starting {self._plan.server} · {seconds:.0f} s · {self._escape(doing[:_SHOWN])}"
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._told >= _EVERY_S:
            self._told = time.monotonic()
            self._print(text)

    def ready(self, seconds: float, state: dict[str, Any]) -> None:
        """The address, a command to try it with, and what does not answer."""
        self._settle()
        plan = self._plan
        self._print(f"[bold green]Ready[/] after {seconds:.0f} s: [bold]{plan.url}[/]")
        for name, reason in state.get("refused", {}).items():
            self._print(f"  [bold red]refused[/] {self._escape(f'{name}: {reason}')}")
        self._print(f"  playground  {plan.url}/")
        # Not through the console: a command must stay on one line, as it is.
        click.echo(f"  try it      {curl(plan)}")
        if not self._plan.keys.admin:
            self._print("  promoting over HTTP is off; --admin-keys FILE turns it on")

    def alarm(self, line: Line) -> None:
        """An error of the server, as it came."""
        self._print(f"[red]{self._plan.server}[/] {self._escape(line.text)}")

    def died(self, code: int, reasons: Sequence[str], again_in: float | None) -> None:
        """Why, and what follows."""
        self._settle()
        if again_in is None:
            return  # The command ends with an error that tells it.
        ended = f"[bold red]{self._plan.server} ended[/] with code {code}"
        self._print(f"{ended}; starting again in {again_in:g} s")
        for reason in reasons:
            self._print(f"    {self._escape(reason)}")

    def ending(self) -> None:
        """An end was asked for."""
        self._settle()
        self._print("Finishing running requests; Ctrl-C again ends at once")

    def _settle(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: str) -> None:
        self._console.print(text)


def curl(plan: AnyPlan) -> str:
    """A command that asks the first adapter, ready to paste."""
    path, body = plan.request(plan.served[0] if plan.served else None)
    words = ["curl", f"{plan.url}{path}", "-H", "Content-Type: application/json"]
    parts = [shlex.join(words)]
    if plan.keys.use:
        parts.append('-H "Authorization: Bearer $LLM_LORA_API_KEY"')
    parts.append(f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}")
    return " ".join(parts)
