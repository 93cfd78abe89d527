"""Comparison of two runs' adapters by their answers to the same held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from llm_lora.errors import UserError
from llm_lora.report.document import Versus
from llm_lora.report.text.answers import FORMS
from llm_lora.run import Run
from llm_lora.schema import Verdict
from llm_lora.scores import Comparison, figures

_Scores = dict[tuple[str, str], dict[str, float]]


@dataclass(frozen=True)
class TextVersus(Versus):
    """Two runs on the `prompts` that both answered, for each form that both have answers in."""

    prompts: int
    forms: Mapping[str, Comparison]


def compare(ours: Run, theirs: Run) -> TextVersus:
    """The paired comparison of two runs.

    Raises:
        UserError: one of them has no answers, or the two have no held-out prompt in common.
    """
    sets = _read(ours), _read(theirs)
    forms: dict[str, Comparison] = {}
    prompts = 0
    for form in FORMS:
        # A prompt with a different reference is a different example.
        shared = [key for key in sets[0].get(form, {}) if key in sets[1].get(form, {})]
        if shared:
            pairs = [[found[form][key] for key in shared] for found in sets]
            forms[form] = figures.paired(*pairs)
            prompts = max(prompts, len(shared))
    if not forms:
        raise UserError(
            "the two runs have no held-out example in common",
            where=f"{ours.folder}, {theirs.folder}",
            fix="compare runs with the same data.held_out",
        )
    return TextVersus(str(ours.folder), str(theirs.folder), prompts, forms)


def _read(run: Run) -> dict[str, _Scores]:
    """Form → example → figures of the adapter's answers."""
    if not run.answers.is_file():
        raise UserError(
            "this run has no answers to compare",
            where=str(run.folder),
            fix="run llm-lora evaluate RUN to write its answers",
        )
    found: dict[str, _Scores] = {}
    with run.answers.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["model"] == "adapter":
                verdict = Verdict(row["verdict"]["kind"])
                row_figures = figures.flat(verdict, row["exact_match"], row["fields"])
                found.setdefault(row["form"], {})[row["id"], row["reference"]] = row_figures
    return found
