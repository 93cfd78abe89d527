"""How a command ends: JSON on stdout, problems as text or JSON, exit codes."""

from __future__ import annotations

import json
import sys

import click

from llm_lora.errors import UserError

EXIT_FAILED = 1
"""Exit code of a command whose checks found something wrong."""


def print_json(value: object) -> None:
    """Print a command's result as indented JSON."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def require(passed: bool) -> None:
    """End the command with `EXIT_FAILED` unless its checks passed."""
    if not passed:
        raise SystemExit(EXIT_FAILED)


def tell(error: UserError, *, as_json: bool) -> None:
    """Print all problems of an error: as text on stderr, or as JSON on stdout."""
    if as_json:
        problems = [
            {"what": problem.what, "where": problem.where, "fix": problem.fix}
            for problem in error.problems
        ]
        print(json.dumps({"error": problems}, ensure_ascii=False))
        return
    for problem in error.problems:
        place = f"{problem.where}: " if problem.where else ""
        print(f"error: {place}{problem.what}", file=sys.stderr)
        if problem.fix:
            print(f"  → {problem.fix}", file=sys.stderr)
