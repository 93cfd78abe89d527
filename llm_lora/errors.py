"""Errors that a user can cause and correct: what is wrong, where, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EXIT_USER_ERROR = 2
"""Exit code of the command line for every `UserError`."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count it."""


@dataclass(frozen=True)
class Problem:
    """One mistake: `where` is "file:line", a key or a record; `fix` says what to do."""

    what: str
    where: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"; {self.fix}" if self.fix else ""
        return f"{place}{self.what}{remedy}"


class UserError(Exception):
    """Mistakes that the user can correct; printed without a traceback, one line per problem.

    >>> str(UserError("no such file", where="a.yaml", fix="check the path"))
    'a.yaml: no such file; check the path'
    """

    def __init__(
        self, what: str | Iterable[Problem], *, where: str | None = None, fix: str | None = None
    ) -> None:
        self.problems: tuple[Problem, ...] = (
            (Problem(what, where, fix),) if isinstance(what, str) else tuple(what)
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))
