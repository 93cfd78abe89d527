"""The commands of `llm-lora`; each reads its arguments, calls the library, prints the outcome."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_lora import __version__
from llm_lora.cli.exits import EXIT_INTERRUPTED

app = typer.Typer(
    name="llm-lora",
    help="From prompt/response pairs and an answer schema to a model whose JSON always fits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="Look at training data before anything is trained.", no_args_is_help=True
)
app.add_typer(data_app, name="data")

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, e.g. recipes/x.yaml.")
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run, e.g. runs/medical_qa/latest.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. lora.rank=32."),
]
Profile = Annotated[
    str, typer.Option("--profile", help="A profile of the recipe; auto picks by what is there.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Root = Annotated[Path, typer.Option("--runs", help="The folder of all runs.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llm-lora {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From prompt/response pairs and an answer schema to a model whose JSON always fits."""


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    profile: Profile = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the newest unfinished run of this recipe.")
    ] = False,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Check the data, train an adapter, and report on held-out examples."""
    loaded, reason = _load(recipe, overrides, profile)

    # Only now: a mistake in the recipe is told before anything else is imported.
    from llm_lora import pipeline
    from llm_lora.cli import show
    from llm_lora.engines.events import Interrupted

    watch = show.Live(quiet=as_json)
    with watch:
        watch.profile(loaded, reason)
        try:
            run = pipeline.train(loaded, watch, root=root, resume=resume)
        except (Interrupted, KeyboardInterrupt) as stopped:
            again = _again(recipe, overrides, profile, root)
            watch.interrupted(stopped, again)
            if as_json:
                _print_json({"interrupted": str(stopped), "resume": again})
            raise typer.Exit(EXIT_INTERRUPTED) from None
    document = run.read(run.report)
    if as_json:
        _print_json({"run": str(run.folder), "report": document})
    else:
        show.outcome(run, document)
    # Unmet gates are a result, not a failure of the command: `evaluate` and promotion judge them.


def _again(recipe: Path, overrides: Sequence[str] | None, profile: str, root: Path) -> str:
    parts = ["llm-lora train", str(recipe)]
    parts += [f"--set {override}" for override in overrides or ()]
    if profile != "auto":
        parts.append(f"--profile {profile}")
    if root != Path("runs"):
        parts.append(f"--runs {root}")
    return " ".join([*parts, "--resume"])


@data_app.command("check")
def data_check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    profile: Profile = "auto",
    quarantine: Annotated[
        Path | None, typer.Option(help="Write the records that were set aside to this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read and judge every record of a recipe's data; nothing is trained."""
    from llm_lora import files, pipeline
    from llm_lora.cli import show

    loaded, _ = _load(recipe, overrides, profile)
    dataset = pipeline.prepare(loaded).dataset
    if quarantine is not None:
        files.write_jsonl(
            quarantine,
            (
                {"where": row.where, "reason": row.reason, "raw": row.raw}
                for row in dataset.rejected
            ),
        )
    if as_json:
        _print_json(dataset.summary())
    else:
        show.dataset(dataset)


@app.command()
def validate(
    answers: Annotated[Path, typer.Argument(metavar="FILE", help="Answers; - reads stdin.")],
    schema: Annotated[Path, typer.Option("--schema", help="The answer schema.")],
    as_json: AsJson = False,
) -> None:
    """Judge every answer of a file against a schema; exit code 1 when any is invalid."""
    from llm_lora import validate as judging
    from llm_lora.cli import verdicts
    from llm_lora.schema import AnswerSchema

    judged = judging.judge_file(answers, AnswerSchema.load(schema))
    if not verdicts.show(judged, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def evaluate(run: RunFolder, as_json: AsJson = False) -> None:
    """Answer a run's held-out prompts again and renew its report; exit code 1 if a gate fails."""
    import time

    from llm_lora import pipeline, recipe
    from llm_lora import run as runs
    from llm_lora.cli import show
    from llm_lora.engines.events import Fit

    here = runs.find(run)
    prepared = pipeline.reopen(here, recipe.load)
    fit = Fit.from_json(here.read(here.fit), here.fit)
    with show.Live(quiet=as_json) as watch, here.claimed():
        document = pipeline.evaluate(prepared, here, watch, fit=fit, started=time.monotonic())
    if as_json:
        _print_json(document)
    else:
        show.outcome(here, document)
    if not document["passed"]:
        raise typer.Exit(1)


@app.command()
def report(run: RunFolder, as_json: AsJson = False) -> None:
    """Show the held-out report of a run, and where its page lies."""
    from llm_lora import run as runs
    from llm_lora.cli import show

    here = runs.find(run)
    document = here.read(here.report)
    if as_json:
        _print_json(document)
    else:
        show.outcome(here, document)


@app.command()
def chat(
    run: RunFolder,
    message: Annotated[
        str | None, typer.Argument(help="One message; without it, a conversation begins.")
    ] = None,
    free: Annotated[bool, typer.Option("--free", help="Do not constrain by the schema.")] = False,
    base_only: Annotated[bool, typer.Option("--base", help="Answer without the adapter.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a run's adapter; each answer comes with its verdict."""
    from llm_lora import pipeline, recipe
    from llm_lora import run as runs
    from llm_lora.cli import talk

    prepared = pipeline.reopen(runs.find(run), recipe.load)
    talker = talk.Talker(prepared, runs.find(run), free=free, base_only=base_only)
    if message is not None:
        talker.once(message, as_json=as_json)
    else:
        talker.loop(as_json=as_json)


@app.command("runs")
def list_runs(root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """List all runs with their state and held-out figures."""
    from llm_lora import run as runs
    from llm_lora.cli import show

    found = [show.summary(one) for one in runs.every(root)]
    if as_json:
        _print_json(found)
    else:
        show.run_table(found, root)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Tell what this machine has, and what differs from the versions that were tested."""
    from llm_lora.cli import health

    findings = health.examine()
    if as_json:
        _print_json([finding.to_dict() for finding in findings])
    else:
        health.show(findings)
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)


def _load(recipe: Path, overrides: Sequence[str] | None, profile: str) -> tuple[Any, str]:
    """The recipe in the profile asked for, and why it is that profile."""
    from llm_lora import plan
    from llm_lora import recipe as recipes

    reason = "as asked"

    def pick(names: tuple[str, ...]) -> str:
        nonlocal reason
        choice = plan.pick_profile(names, plan.detect())
        reason = choice.reason
        return choice.name

    loaded = recipes.load(
        recipe, overrides=overrides or (), profile=pick if profile == "auto" else profile
    )
    return loaded, reason


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
