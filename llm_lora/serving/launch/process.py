"""The server as a child process under a guard, and the timing of restarts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_lora import files

_MARGIN_S = 10.0
"""Time that the guard gets beyond the server's before it is killed as well."""


class Server:
    """A running command with its output in a file; it never outlives this process.

    The standard input of the guard (`guard.py`) is a pipe from here: when this process ends, in
    whatever way, the pipe closes and the guard ends the command.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        grace_seconds: float,
    ) -> None:
        """Start the command; its output is added to `log`.

        Args:
            command: the program and its arguments.
            environment: its complete environment.
            log: the file for its output.
            grace_seconds: how long an orderly end may take.

        Raises:
            UserError: the log cannot be written.
        """
        self._grace = grace_seconds
        guard = [sys.executable, "-m", "llm_lora.serving.launch.guard", str(grace_seconds)]
        try:
            with log.open("ab") as output:
                self._guard = subprocess.Popen(
                    [*guard, *command],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    # A session of its own: Ctrl-C in a terminal reaches only the launcher.
                    start_new_session=True,
                )
        except OSError as error:
            raise files.write_error(error, log) from error

    def exit_code(self) -> int | None:
        """None while it runs; 128 + N where signal N ended it."""
        code = self._guard.poll()
        return 128 - code if code is not None and code < 0 else code

    def ask_to_end(self) -> None:
        """Begin an orderly end; returns at once."""
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()

    def end(self) -> None:
        """Stop in order, or by force after the time limit; returns when every process is gone."""
        self.ask_to_end()
        try:
            self._guard.wait(self._grace + _MARGIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def processes(self) -> list[int]:
        """The guard, the command and its children."""
        return _members(self._guard.pid)

    def kill(self) -> None:
        """Kill guard and command at once."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._guard.wait()


def _members(session: int) -> list[int]:
    """The processes of a session."""
    # Imported here: an orderly start and end need no psutil.
    import psutil

    found = []
    for process in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process) == session:
                found.append(process)
    return found


@dataclass
class Restarts:
    """The delay before each restart of a dead server: longer each time, until it gives up.

    A server that lived `steady_seconds` resets the count; all times are in seconds.
    """

    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    steady_seconds: float = 120.0
    most: int = 5
    deaths: int = 0
    """Quick deaths in a row."""

    def after(self, lived_seconds: float) -> float | None:
        """Seconds to wait before the next start; None: give up."""
        self.deaths = 1 if lived_seconds >= self.steady_seconds else self.deaths + 1
        if self.deaths > self.most:
            return None
        return min(self.longest_seconds, self.first_seconds * 2.0 ** (self.deaths - 1))
