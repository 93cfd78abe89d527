"""The life of a server: its files, start, watching, restarts and end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.serving import sources
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.launch.log import Line, Tail
from llm_lora.serving.launch.plans import AnyPlan
from llm_lora.serving.launch.process import Restarts, Server
from llm_lora.serving.layer import any_for_use
from llm_lora.serving.readiness import Readiness

_LOOK_S = 0.25
_PROBE_S = 10.0

_GRACE_S = flags.DRAIN_SECONDS + 15.0
"""Time for an orderly end: running requests, then vLLM's own cleanup."""

CONFIG = "layer.json"


class Watcher(Protocol):
    """Receives events in order; implemented by the command line."""

    def starting(self, log: Path) -> None:
        """The server is being started; its whole output goes to `log`."""

    def waiting(self, seconds: float, doing: str) -> None:
        """Still starting; `doing` is the server's latest log line. Called often."""

    def ready(self, seconds: float, state: Readiness) -> None:
        """Requests are answered; `state` is the reply of /ready."""

    def alarm(self, line: Line) -> None:
        """An error in the server's log, while it runs."""

    def died(self, code: int, reasons: Sequence[str], again_in: float | None) -> None:
        """The server ended by itself; `again_in` None: it is not restarted."""

    def ending(self) -> None:
        """A stop was requested; running requests are being finished."""


class Stop:
    """Counts stop requests: one means an orderly end, two an immediate one."""

    def __init__(self) -> None:
        self.asked = 0
        self._event = threading.Event()

    def ask(self) -> None:
        self.asked += 1
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep until the first stop request at the latest; returns whether there was one."""
        if self.asked:
            time.sleep(seconds)
            return True
        return self._event.wait(seconds)


@contextmanager
def signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGHUP request an end instead of killing the process."""
    stop = Stop()

    def handle(_: int, __: FrameType | None) -> None:
        stop.ask()

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(plan: AnyPlan, watch: Watcher) -> None:
    """Serve until a signal requests a stop; as `run`."""
    with signals() as stop:
        run(plan, watch, stop)


def run(plan: AnyPlan, watch: Watcher, stop: Stop) -> None:
    """Serve until a stop is requested.

    Raises:
        UserError: the server does not start, or keeps dying; with the last lines of its log.
    """
    if plan.wanted.store is None:
        sources.publish(plan.served, plan.store)
    config = prepare(plan)
    log = plan.state / f"{plan.server.lower()}.log"
    _put_aside(log)
    command, environment = plan.command(), flags.environment(os.environ, config)

    def start() -> Server:
        return Server(command, environment, log, grace_seconds=_GRACE_S)

    key = any_for_use(plan.wanted.api_keys)
    keep_running(start, plan.url, log, watch, stop, Restarts(), key, plan.server)


def prepare(plan: AnyPlan) -> Path:
    """Write the layer's configuration; returns its path.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    path = plan.state / CONFIG
    try:
        plan.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.write_error(error, plan.state) from error
    plan.config().write(path)
    return path


def keep_running(
    start: Callable[[], Server],
    url: str,
    log: Path,
    watch: Watcher,
    stop: Stop,
    restarts: Restarts,
    key: str | None = None,
    name: str = "vLLM",
) -> None:
    """Start a server, and restart it whenever it dies, until a stop is requested.

    `key` is a key for use: without it /ready does not list what is still loading; `name` is the
    server's name in messages.
    A server that never became ready is not restarted: the same fault would stop it again.

    Raises:
        UserError: it did not start, or died too often.
    """
    was_ready = False
    while True:
        watch.starting(log)
        tail, began, server = Tail(log), time.monotonic(), start()
        try:
            ready_at = _follow(server, url, tail, watch, stop, key)
        finally:
            server.end()
        if stop.asked:
            return
        was_ready = was_ready or ready_at is not None
        now = time.monotonic()
        pause = restarts.after(now - (ready_at or now)) if was_ready else None
        code, reasons = server.exit_code() or 0, tail.explain()
        watch.died(code, reasons, pause)
        if pause is None:
            raise _gave_up(name, reasons, code, now - began, log, was_ready=was_ready)
        if stop.wait(pause):
            return


def _follow(
    server: Server, url: str, tail: Tail, watch: Watcher, stop: Stop, key: str | None
) -> float | None:
    """Watch one server until it ends; returns when it became ready (monotonic), if ever."""
    began, ready_at, ending, doing = time.monotonic(), None, False, ""
    while server.exit_code() is None:
        for line in tail.new():
            doing = line.text.strip() or doing
            if line.alarming and ready_at is not None:
                watch.alarm(line)
        if stop.asked > 1:
            server.kill()
        elif stop.asked and not ending:
            ending = True
            watch.ending()
            server.ask_to_end()
        elif not stop.asked and ready_at is None:
            seconds = time.monotonic() - began
            state = ask_ready(url, key) or Readiness(False)
            if state.ready:
                ready_at = time.monotonic()
                watch.ready(seconds, state)
            else:
                loading = ", ".join(f"{label}: {why}" for label, why in state.missing.items())
                watch.waiting(seconds, loading or doing)
        stop.wait(_LOOK_S)
    return ready_at


def ask_ready(url: str, key: str | None = None) -> Readiness | None:
    """The reply of /ready; None where nothing answers.

    `ready`, and, with a key or where none is required, what is `missing` or `refused`.
    """
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_PROBE_S)
    try:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        connection.request("GET", "/ready", headers=headers)
        state = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return Readiness.from_json(state) if isinstance(state, dict) else None


def _gave_up(
    name: str,
    reasons: Sequence[str],
    code: int,
    seconds: float,
    log: Path,
    *,
    was_ready: bool,
) -> UserError:
    what = (
        f"{name} died too often in a row"
        if was_ready
        else f"{name} did not start: it ended with code {code} after {seconds:.0f} s"
    )
    said = "".join(f"\n    {reason}" for reason in reasons)
    return UserError(what + said, where=str(log), fix="see that file for its whole output")


def _put_aside(log: Path) -> None:
    """Keep one earlier log."""
    if log.is_file():
        log.replace(log.with_suffix(".before.log"))
