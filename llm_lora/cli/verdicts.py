"""`llm-lora validate`: verdicts as they come, then what they come to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice

from rich.markup import escape
from rich.table import Table

from llm_lora.cli.console import console
from llm_lora.validate import LineVerdict, Summary

_SHOWN = 20
_REASONS = 15


def show(judged: Iterable[LineVerdict], *, as_json: bool) -> bool:
    """Print verdicts and their summary; True when every answer was valid.

    For people the first invalid answers with their reasons; as JSON one verdict a line, and the
    summary as the last line.
    """
    summary = Summary()
    verdicts = iter(judged)
    told = 0
    for one in verdicts:
        summary.add(one)
        if as_json:
            print(json.dumps(one.to_dict(), ensure_ascii=False))
        elif not one.verdict.valid and told < _SHOWN:
            told += 1
            for reason in islice(one.verdict.reasons, 3):
                place = f"{reason.path}: " if reason.path else ""
                console.print(f"line {one.line}: {place}{reason.message}", markup=False)
    bad = summary.answers - summary.valid
    if as_json:
        print(json.dumps({"summary": summary.to_dict()}, ensure_ascii=False))
    else:
        if bad > told:
            console.print(f"… and {bad - told} more invalid answers; all of them: --json")
        _print_summary(summary)
    return bad == 0


def _print_summary(summary: Summary) -> None:
    rows = summary.to_dict()["reasons"]
    if rows:
        table = Table("where", "rule", "answers", "first line", box=None, padding=(0, 2, 0, 0))
        for row in rows[:_REASONS]:
            table.add_row(
                escape(row["path"] or "(answer)"),
                row["keyword"],
                str(row["answers"]),
                str(row["first_line"]),
            )
        console.print(table)
    share = summary.valid / summary.answers if summary.answers else 0.0
    colour = "green" if summary.answers and summary.valid == summary.answers else "red"
    console.print(
        f"[{colour}]{summary.valid} of {summary.answers} answers valid ({share:.1%})[/], "
        f"{summary.invalid} of the wrong shape, {summary.not_json} not JSON"
    )
