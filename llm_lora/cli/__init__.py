"""The command line: parse, call, print. Commands import heavy modules only when they run."""

from __future__ import annotations

import errno
import io
import sys
from typing import NoReturn

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
        _refuse(error)
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
        what, place = f"no such path: {error.strerror}", str(error.filename or "")
        _refuse(UserError(what, where=place, fix="check the path"))
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(error: UserError) -> NoReturn:
    from llm_lora.cli.outcome import tell

    tell(error, as_json="--json" in sys.argv)
    sys.exit(EXIT_USER_ERROR)
