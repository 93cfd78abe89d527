"""`llm-lora` as tests run it: as a process, or in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

RunCommand = Callable[..., tuple[int, str, str]]
"""Runs a command in this process: exit code, stdout, stderr."""


class Command:
    """`llm-lora` as a separate process, as users run it."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_lora.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "160"},
        )

    def finish(self, timeout: float = 600) -> tuple[int, str]:
        """The exit code and the whole output."""
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output

    def wait_until(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        """Wait until the command has done something; fails with its output if it ends first."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"ended early:\n{self.process.communicate()[0]}")
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"took too long:\n{self.process.communicate()[0]}")
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Interrupt it, like Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill it, like a power failure."""
        self.process.kill()
        self.process.wait()
