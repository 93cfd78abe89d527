"""The command line: parse, call, print. Heavy modules are imported inside the commands."""

from __future__ import annotations

import json
import sys

from llm_lora.errors import EXIT_USER_ERROR, UserError


def main() -> None:
    """Entry point of `llm-lora`: a user's mistake is told in a few lines, never as a traceback."""
    from llm_lora.cli.commands import app

    try:
        app()
    except UserError as error:
        tell(error, as_json="--json" in sys.argv)
        sys.exit(EXIT_USER_ERROR)


def tell(error: UserError, *, as_json: bool) -> None:
    """Print all problems of an error: for people on stderr, for machines as JSON on stdout."""
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
