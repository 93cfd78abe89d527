"""Commands that read a recipe: `llm-lora train` and `llm-lora data check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from llm_lora.cli.options import PATH, gate_store_option, json_option, path_option, runs_option
from llm_lora.cli.outcome import print_json
from llm_lora.errors import EXIT_INTERRUPTED, Problem, UserError

recipe_argument = click.argument("recipe", type=PATH)
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


@click.command()
@recipe_argument
@overrides_option
@profile_option
@click.option("--resume", is_flag=True, help="Continue the newest unfinished run of this recipe.")
@runs_option
@gate_store_option
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
                print_json({"interrupted": str(stopped), "resume": again})
            raise SystemExit(EXIT_INTERRUPTED) from None
    report = read_report(run)
    if as_json:
        print_json({"run": str(run.folder), "report": report.to_json()})
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


@click.group()
def data() -> None:
    """Inspect training data before training."""


@data.command("check")
@recipe_argument
@overrides_option
@profile_option
@path_option("--quarantine", help="Write the records that were set aside to this file.")
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
        print_json(dataset.summary())
    else:
        show.dataset(loaded.task, dataset)


def _is_default(option: str) -> bool:
    """Whether an option of the running command was left out."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.DEFAULT
