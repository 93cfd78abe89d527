"""The command line: parse, call, print. Commands import heavy modules only when they run."""

from __future__ import annotations

import errno
import io
import json
import sys

from llm_lora.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError

_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
"""Error numbers for paths that cannot exist; any attempt to look at them fails."""


def main() -> None:
    """Entry point of `llm-lora`: reports a user's mistake in a few lines, not as a traceback."""
    import click

    from llm_lora.cli.commands import app

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name need not be valid UTF-8; escaping it keeps the command from failing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        tell(error, as_json="--json" in sys.argv)
        sys.exit(EXIT_USER_ERROR)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as error:
        pressed = isinstance(error.__cause__, KeyboardInterrupt)
        print("interrupted" if pressed else "aborted; nothing was done", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED if pressed else EXIT_USER_ERROR)
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise
        place = str(error.filename or "")
        what = f"no such path: {error.strerror}"
        tell(UserError(what, where=place, fix="check the path"), as_json="--json" in sys.argv)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(code if isinstance(code, int) else 0)


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
