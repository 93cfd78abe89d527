"""The commands of `llm-lora`; each reads its arguments, calls the library, prints the outcome."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from llm_lora import __version__
from llm_lora.cli import (
    labelling,
    measuring,
    merging,
    painting,
    publishing,
    recipes,
    schemas,
    serving,
    validating,
)
from llm_lora.errors import EXIT_INTERRUPTED, Problem, UserError

recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
run_argument = click.argument("run", type=click.Path(path_type=Path))
overrides_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a setting, e.g. lora.rank=32; repeatable.",
)
profile_option = click.option(
    "--profile",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Hardware profile of the recipe; auto picks the one that fits this machine.",
)
root_option = click.option(
    "--runs",
    "root",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder that holds the runs.",
)
store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("store"),
    show_default=True,
    help="Folder of published adapters; a check.max_drop gate compares with the live one there.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


class _InOrder(click.Group):
    """Lists commands in the order in which they are added: the order of first use."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="llm-lora %(version)s")
def app() -> None:
    """Fine-tune and serve LoRA adapters: language models whose JSON answers always fit a schema,
    and Stable Diffusion styles learned from a folder of pictures.
    """


@app.group()
def data() -> None:
    """Inspect training data before training."""


@app.command()
@recipe_argument
@overrides_option
@profile_option
@click.option("--resume", is_flag=True, help="Continue the newest unfinished run of this recipe.")
@root_option
@store_option
@json_option
def train(
    recipe: Path,
    overrides: tuple[str, ...],
    profile: str,
    resume: bool,
    root: Path,
    store: Path,
    as_json: bool,
) -> None:
    """Check the data, train an adapter, and evaluate it.

    The evaluation runs on held-out examples, which are never trained on.
    """
    from llm_lora.recipe import read_for_machine

    found, reason = read_for_machine(recipe, overrides, profile)
    if _is_default("root"):
        root = found.runs or (found.resume.parent.parent if found.resume else root)

    # Imported late, so that a mistake in the recipe is reported at once.
    from llm_lora import pipeline
    from llm_lora.cli.show import live as show
    from llm_lora.progress import Interrupted
    from llm_lora.report import read_report

    watch = show.Live(quiet=as_json)
    with watch:
        watch.converted(recipe, found.notes)
        watch.profile(found.recipe, reason)
        try:
            run = pipeline.train(
                found.recipe,
                watch,
                root=root,
                store=store,
                resume=resume or found.resume is not None,
                only=found.resume,
            )
        except (Interrupted, KeyboardInterrupt) as stopped:
            again = _again(recipe, overrides, profile, root, store)
            watch.interrupted(stopped, again)
            if as_json:
                _print_json({"interrupted": str(stopped), "resume": again})
            raise SystemExit(EXIT_INTERRUPTED) from None
    report = read_report(run)
    if as_json:
        _print_json({"run": str(run.folder), "report": report.to_json()})
    else:
        show.outcome(run, report)
    # A failed gate is a result, not an error of this command: `evaluate` and promotion enforce it.


def _again(recipe: Path, overrides: Sequence[str], profile: str, root: Path, store: Path) -> str:
    parts = ["llm-lora train", str(recipe)]
    parts += [f"--set {override}" for override in overrides]
    if profile != "auto":
        parts.append(f"--profile {profile}")
    if root != Path("runs"):
        parts.append(f"--runs {root}")
    if store != Path("store"):
        parts.append(f"--store {store}")
    return " ".join([*parts, "--resume"])


@data.command("check")
@recipe_argument
@overrides_option
@profile_option
@click.option(
    "--quarantine",
    type=click.Path(path_type=Path),
    help="Write the records that were set aside to this file.",
)
@json_option
def data_check(
    recipe: Path,
    overrides: tuple[str, ...],
    profile: str,
    quarantine: Path | None,
    as_json: bool,
) -> None:
    """Check every record of a recipe's data without training."""
    from llm_lora import files, pipeline
    from llm_lora.cli.show import live as show
    from llm_lora.example import TooFewLeft
    from llm_lora.recipe import read_for_machine

    loaded = read_for_machine(recipe, overrides, profile)[0].recipe
    try:
        dataset = pipeline.prepare(loaded).dataset
    except TooFewLeft as error:
        if quarantine is None:
            raise
        files.write_jsonl(quarantine, map(asdict, error.rejected))
        told = f"the {len(error.rejected)} records set aside, with the reasons, are in this file"
        raise UserError([*error.problems, Problem(told, str(quarantine))]) from None
    if quarantine is not None:
        files.write_jsonl(quarantine, map(asdict, show.of(loaded.task).set_aside(dataset)))
    if as_json:
        _print_json(dataset.summary())
    else:
        show.dataset(loaded.task, dataset)


app.add_command(validating.validate)


@app.command()
@run_argument
@click.option(
    "--via", "url", metavar="URL", help="Query a running server and compare it with the report."
)
@store_option
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
        _print_json(report.to_json())
    else:
        show.outcome(here, report)
    if not report.passed:
        raise SystemExit(1)


@app.command()
@run_argument
@click.option(
    "--against",
    "other",
    metavar="RUN",
    type=click.Path(path_type=Path),
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
        from llm_lora.tasks import task as tasks

        told = tasks.compare(here, runs.find(other))
        if as_json:
            _print_json(told.to_json())
        else:
            show.of(here.task).versus(told)
        return
    found = read_report(here)
    if as_json:
        _print_json(found.to_json())
    else:
        show.outcome(here, found)


@app.command()
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


@app.command("runs")
@root_option
@json_option
def list_runs(root: Path, as_json: bool) -> None:
    """List all runs with their state and held-out scores."""
    from llm_lora import run as runs
    from llm_lora.cli.show import live as show

    found = [show.summary(one) for one in runs.every(root)]
    if as_json:
        _print_json([one.to_json() for one in found])
    else:
        show.run_table(found, root)


@app.command()
@json_option
def doctor(as_json: bool) -> None:
    """Report what is installed, missing or untested on this machine."""
    from llm_lora.cli import health

    findings = health.examine()
    if as_json:
        _print_json([finding.to_dict() for finding in findings])
    else:
        health.show(findings)
    if any(finding.status == "wrong" for finding in findings):
        raise SystemExit(1)


for command in (
    labelling.label,
    schemas.schema,
    serving.serve,
    publishing.publish,
    publishing.promote,
    publishing.rollback,
    publishing.canary,
    publishing.retire,
    publishing.adapters,
    publishing.history,
    publishing.remove,
    merging.merge,
    merging.export,
    painting.generate,
    measuring.bench,
    recipes.recipe,
):
    app.add_command(command)


def _is_default(option: str) -> bool:
    """Whether an option of the running command was left out."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.DEFAULT


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))
