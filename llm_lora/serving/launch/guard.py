"""A guard that runs one command and leaves none of its processes behind.

    python -m llm_lora.serving.launch.guard SECONDS COMMAND...

The guard's standard input is the reading end of a pipe. When the pipe closes, because the other
side wants to stop or was killed, the command is asked to end (SIGTERM), and after SECONDS its
whole process group is killed. The group is also killed when the command ends by itself, so workers
never outlive it. Its exit code is the command's, or 128 + N where signal N ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command until it ends or standard input does."""
    seconds, command = float(arguments[0]), arguments[1:]
    # Only closing the pipe stops the guard; signals to the group are for the command.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_as_child
    )
    threading.Thread(target=_end_on_eof, args=(child, seconds), daemon=True).start()
    code = child.wait()
    _kill_group(child)
    return 128 - code if code < 0 else code


def _as_child() -> None:
    """Prepare the child before it becomes the command: default signals, no life after the guard."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_on_eof(child: subprocess.Popen[bytes], seconds: float) -> None:
    # Reads the descriptor: a thread blocked in sys.stdin would delay the exit of the interpreter.
    while os.read(0, 1):
        pass
    child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        _kill_group(child)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    # A group's id is that of its first process, and lasts as long as any of its members.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
