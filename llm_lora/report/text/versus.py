"""Comparison of two runs' adapters by their answers to the same held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_lora.errors import UserError
from llm_lora.record import OtherVersion
from llm_lora.report.document import Versus
from llm_lora.report.text.answers import FORMS
from llm_lora.run import Run
from llm_lora.schema import Verdict
from llm_lora.scores import Comparison, Tally, figures

_Scores = dict[tuple[str, str], Tally]


@dataclass(frozen=True)
class TextVersus(Versus):
    """Two runs on the `prompts` that both answered, for each form that both have answers in."""

    prompts: int
    forms: Mapping[str, Comparison]


def compare(ours: Run, theirs: Run) -> TextVersus:
    """The paired comparison of two runs.

    Raises:
        UserError: one of them has no answers, or they were scored by another version, or the two
            have no held-out prompt in common.
    """
    sets = _read(ours), _read(theirs)
    forms: dict[str, Comparison] = {}
    prompts = 0
    for form in FORMS:
        # A prompt with a different reference is a different example.
        shared = [key for key in sets[0].get(form, {}) if key in sets[1].get(form, {})]
        if shared:
            pairs = [[found[form][key] for key in shared] for found in sets]
            forms[form] = figures.compare(*pairs)
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
                found.setdefault(row["form"], {})[row["id"], row["reference"]] = _tally(row, run)
    return found


def _tally(row: Mapping[str, Any], run: Run) -> Tally:
    """What an answer of `answers.jsonl` adds to the figures."""
    verdict = Verdict(row["verdict"]["kind"])
    try:
        counts = {
            name: (field["hits"], field["expected"], field["given"])
            for name, field in row["fields"].items()
        }
    except TypeError:  # A plain number: the mean score, in which absent values counted as right.
        raise OtherVersion(
            "the answers were scored by another version of llm-lora",
            where=str(run.answers),
            fix=f"score them anew: llm-lora evaluate {run.folder}",
        ) from None
    return Tally(verdict.parsed, verdict.valid, row["exact_match"], counts)
