"""`llm-lora label`: captions for a folder of pictures, written by a model for people to edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_lora.cli.options import PATH, count_option, json_option, path_option
from llm_lora.cli.outcome import print_json
from llm_lora.errors import EXIT_INTERRUPTED, UserError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from llm_lora.data import Finding
    from llm_lora.label import Labeller, Order, Outcome

_USUAL = {
    "clip": "openai/clip-vit-base-patch32",
    "blip": "Salesforce/blip-image-captioning-base",
}
_SHOWN = 5


def _list_candidates(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from llm_lora import files
        from llm_lora.label import candidates

        click.echo(files.read_text(candidates.BUILT_IN), nl=False)
        context.exit()


@click.command()
@click.argument("folder", type=PATH)
@click.option(
    "--method",
    type=click.Choice(["clip", "blip", "vlm"]),
    default="blip",
    show_default=True,
    help="clip: choose among candidates; blip: describe; vlm: ask a vision model on a server.",
)
@click.option(
    "--model",
    metavar="NAME|FOLDER",
    help="tiny, a folder or a hub id; for vlm, the model's name on the server.  "
    f"[default: {_USUAL['clip']}, {_USUAL['blip']}]",
)
@path_option("--candidates", metavar="FILE", help="clip: captions to choose from.")
@click.option(
    "--list-candidates",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_candidates,
    help="clip: print the built-in candidates, as a starting point for your own.",
)
@click.option("--url", metavar="URL", help="vlm: an OpenAI-compatible server, ending in /v1.")
@click.option("--ask", metavar="TEXT", help="vlm: the question to ask about each picture.")
@count_option("--jobs", type=click.IntRange(1, 64), default=4, help="vlm: concurrent requests.")
@click.option("--trigger", metavar="WORDS", help="Prepend these to every caption without them.")
@count_option(
    "--batch-size", type=click.IntRange(1, 1024), default=16, help="Pictures per forward pass."
)
@path_option("--review", metavar="FILE", help="Write an HTML page for review.")
@click.option(
    "--redo",
    is_flag=True,
    help="Also replace machine captions written with other settings; never captions by people.",
)
@json_option
def label(folder: Path, as_json: bool, **given: Any) -> None:
    """Write captions for the pictures of FOLDER into its metadata.csv.

    Pictures that already have a caption are skipped. After an interruption, the same command
    continues. The server's API key is read from LLM_LORA_VISION_KEY.
    """
    from llm_lora.data.image import caption_lint
    from llm_lora.label import labelling
    from llm_lora.label import review as label_review

    order, make = _order(**given)
    with _Bar(quiet=as_json) as bar:
        try:
            outcome = labelling.label(folder, make, order, bar.move)
        except KeyboardInterrupt:
            bar.stop()
            click.echo("Stopped; finished captions are kept. Rerun to continue.", err=True)
            raise SystemExit(EXIT_INTERRUPTED) from None
    texts = {item.name: item.caption for item in outcome.items if item.caption}
    findings = list(caption_lint.lint(texts, trigger=order.trigger))
    if (review := given["review"]) is not None:
        label_review.write(review, folder, findings, outcome.failed)
    if as_json:
        print_json(_document(outcome, findings))
    else:
        _show(outcome, findings, review)


def _order(
    method: str,
    model: str | None,
    candidates: Path | None,
    url: str | None,
    ask: str | None,
    jobs: int,
    trigger: str | None,
    batch_size: int,
    review: Path | None,
    redo: bool,
) -> tuple[Order, Callable[[], Labeller]]:
    """The labelling settings, and a function that loads the labeller.

    Raises:
        UserError: options contradict each other, or name something that does not exist.
    """
    from llm_lora.label import Order
    from llm_lora.label import candidates as choices

    for name, value, of in (
        ("--candidates", candidates, "clip"),
        ("--url", url, "vlm"),
        ("--ask", ask, "vlm"),
    ):
        if value is not None and method != of:
            raise UserError(f"{name} is for --method {of}", fix=f"add --method {of}")
    if method == "vlm":
        from llm_lora.label import ASK, Describer, Endpoint

        if url is None or model is None:
            raise UserError(
                "--method vlm needs --url and --model",
                fix="such as --url http://127.0.0.1:8000/v1 --model Qwen/Qwen2.5-VL-7B-Instruct",
            )
        details = ask or ASK
        describer = Describer(Endpoint(url, model, details, jobs))
        return Order(method, model, details, trigger, redo, batch_size), lambda: describer
    name = model or _USUAL[method]
    parts = choices.read(candidates or choices.BUILT_IN) if method == "clip" else ()

    def make() -> Labeller:
        from llm_lora.vision import models as vision_models

        found = vision_models.resolve(name, method)
        # Imported late, so that a mistake in the options is reported at once.
        from llm_lora.engines.vision import Captioner, ZeroShot

        return ZeroShot(found, parts) if method == "clip" else Captioner(found)

    return Order(method, name, repr(parts), trigger, redo, batch_size), make


class _Bar:
    """Progress bar over labelled pictures; prints nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("  Labelling", BarColumn(bar_width=28), MofNCompleteColumn())
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=Console(quiet=quiet, stderr=True)
        )
        self._task: TaskID | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        # A bar that never started would print an empty line before the error.
        if self._task is not None:
            self._progress.stop()

    def move(self, done: int, total: int) -> None:
        """Move the bar to `done` of `total`."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=total)
        self._progress.update(self._task, completed=done)


def _document(outcome: Outcome, findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "written": outcome.written,
        "kept": {"people": outcome.people, "machine": outcome.machine},
        "failed": [{"where": row.where, "reason": row.reason} for row in outcome.failed],
        "captions": {item.name: item.caption for item in outcome.items},
        "findings": [asdict(finding) for finding in findings],
    }


def _show(outcome: Outcome, findings: Sequence[Finding], review: Path | None) -> None:
    from rich.markup import escape

    from llm_lora.cli.console import console

    console.print(
        f"{outcome.written} captions written to {escape(str(outcome.path))} · kept: "
        f"{outcome.people} by people, {outcome.machine} by machines"
    )
    for row in outcome.failed[:_SHOWN]:
        console.print(f"  [red]no caption[/] {escape(row.where)}: {escape(row.reason)}")
    if (more := len(outcome.failed) - _SHOWN) > 0:
        console.print(f"  … and {more} more")
    for finding in findings:
        place = f" ({finding.where})" if finding.where else ""
        console.print(f"  [yellow]note[/] {finding.count} {escape(finding.message + place)}")
    if review is not None:
        console.print(f"review page: {escape(str(review))}")
