"""What can be published: the adapter of a run or an adapter folder, with its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_lora import run as runs
from llm_lora.adapter import AnyBase
from llm_lora.adapter import base as any_base
from llm_lora.adapter import folder as adapters
from llm_lora.errors import UserError
from llm_lora.files import Json, read_object
from llm_lora.store.published import REPORT


@dataclass(frozen=True)
class Publishable:
    """An adapter folder with its report, if it has one; `name` is the recipe's."""

    folder: Path
    report: Json | None
    name: str


def publishable(source: Path) -> Publishable:
    """The adapter of a run, or the one in an adapter folder.

    Raises:
        UserError: the path is neither, or the run is not finished.
    """
    if (source / adapters.CONFIG).is_file():
        home = source.resolve().parent
        if not (home / "recipe.yaml").is_file():
            # An adapter from elsewhere, or a version of another store with its report.
            report = source / REPORT
            called = str(read_object(source / adapters.MANIFEST).get("name", ""))
            return Publishable(source, read_object(report) if report.is_file() else None, called)
        source = home
    run = runs.find(source)
    if not run.finished:
        raise UserError(
            "this run is not finished",
            where=str(run.folder),
            fix="finish it: llm-lora train RECIPE --resume",
        )
    called = str(read_object(run.adapter / adapters.MANIFEST).get("name", run.name))
    return Publishable(run.adapter, run.read(run.report), called)


def base_at_hand(folder: Path) -> AnyBase | None:
    """The base that an adapter was trained on, if this machine has it; never downloads it."""
    return any_base.at_hand(adapters.read(folder).manifest)
