"""Output of `llm-lora validate`: verdicts as they arrive, then the summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from llm_lora import files
from llm_lora.cli.console import console
from llm_lora.schema import KINDS
from llm_lora.validate import Judged, LineVerdict, Summary

_SHOWN = 20
_REASONS = 15
_REPAIRS = {
    "byte_order_mark": "byte order mark",
    "code_fence": "code fence",
    "prose": "text around the JSON",
    "trailing_comma": "trailing comma",
}


def show(judged: Iterable[Judged], *, as_json: bool, out: Path | None, fix: Path | None) -> bool:
    """Print verdicts and their summary, and write the requested files.

    Text output shows the first invalid answers with their reasons. JSON output has one verdict per
    line and the summary as the last line.

    Returns:
        True if there were answers and all of them were valid.
    """
    summary = Summary()
    told = told_bad = 0
    with ExitStack() as open_files:
        verdicts = open_files.enter_context(files.writing(out)) if out else None
        fixed = open_files.enter_context(files.writing(fix)) if fix else None
        for block in judged:
            summary.merge(block.summary, shift=block.before)
            rows = "".join(f'{{"line": {line}, {row}\n' for line, row in block.rows)
            if verdicts:
                verdicts.write(rows.encode())
            if fixed:
                fixed.write(block.fixed)
            if as_json:
                sys.stdout.write(rows)
                continue
            for one in islice(block.bad, _SHOWN - told):
                told += 1
                told_bad += not one.verdict.valid
                _tell(one)
    bad = summary.answers - summary.valid
    if as_json:
        print(json.dumps({"summary": summary.to_dict()}, ensure_ascii=False))
    else:
        if bad > told_bad:
            more = "" if out else "; list all: --out FILE"
            console.print(f"… and {bad - told_bad} more invalid answers{more}")
        _print_summary(summary, repairing=fix is not None)
        for path, what in ((out, "verdicts"), (fix, "repaired answers")):
            if path:
                console.print(f"{what}: {path}", markup=False)
    return bad == 0 < summary.answers


def _tell(one: LineVerdict) -> None:
    for line in _lines(one):
        console.print(f"line {one.line}: {line}", markup=False)


def _lines(one: LineVerdict) -> Iterator[str]:
    if one.repairs:
        yield f"repaired: {', '.join(_REPAIRS[name] for name in one.repairs)} removed"
    for reason in islice(one.verdict.reasons, 3):
        yield f"{reason.path}: {reason.message}" if reason.path else reason.message


def _print_summary(summary: Summary, *, repairing: bool) -> None:
    if reasons := summary.counted():
        table = Table("where", "rule", "answers", "first line", box=None, padding=(0, 2, 0, 0))
        for row in reasons[:_REASONS]:
            table.add_row(
                escape(row.path or "(answer)"),
                row.keyword,
                str(row.answers),
                str(row.first_line),
            )
        console.print(table)
        if (left := len(reasons) - _REASONS) > 0:
            console.print(f"… and {left} more; list all: --json")
    share = summary.valid / summary.answers if summary.answers else 0.0
    colour = "green" if summary.answers and summary.valid == summary.answers else "red"
    told = [f"[{colour}]{summary.valid} of {summary.answers} answers valid ({share:.1%})[/]"]
    for name, kind in KINDS.items():
        if name != "valid":
            told.append(f"{summary.kinds[name]} {kind.counted}")
    console.print(", ".join(told))
    if repairing:
        removed = ", ".join(
            f"{_REPAIRS[name]} {count}" for name, count in summary.repairs.most_common()
        )
        console.print(f"{summary.repaired} repaired" + (f": {removed}" if removed else ""))
