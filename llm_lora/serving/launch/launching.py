"""From a plan to a running server: files in place, it is started, watched, restarted, ended."""

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
from typing import Any, Protocol

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.serving import sources
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.launch.log import Line, Tail
from llm_lora.serving.launch.plans import AnyPlan
from llm_lora.serving.launch.process import Restarts, Server
from llm_lora.serving.layer import any_for_use

_LOOK_S = 0.25
_PROBE_S = 10.0

_GRACE_S = flags.DRAIN_SECONDS + 15.0
"""An orderly end: running requests, then vLLM's own tidying."""

CONFIG = "layer.json"


class Watcher(Protocol):
    """Gets told what happens, in order; lives in the command line."""

    def starting(self, log: Path) -> None:
        """The server is being started; its whole output goes to `log`."""

    def waiting(self, seconds: float, doing: str) -> None:
        """Still starting; `doing` is the server's latest word. Called often."""

    def ready(self, seconds: float, state: dict[str, Any]) -> None:
        """Requests are answered; `state` is what /ready says."""

    def alarm(self, line: Line) -> None:
        """An error in the server's log, while it runs."""

    def died(self, code: int, reasons: Sequence[str], again_in: float | None) -> None:
        """The server ended by itself; None: it is not started again."""

    def ending(self) -> None:
        """An end was asked for; running requests are being finished."""


class Stop:
    """How often this process was asked to end: once means in order, twice at once."""

    def __init__(self) -> None:
        self.asked = 0
        self._event = threading.Event()

    def ask(self) -> None:
        self.asked += 1
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep; the first request to end cuts it short. Tells whether there was one."""
        if self.asked:
            time.sleep(seconds)
            return True
        return self._event.wait(seconds)


@contextmanager
def signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGHUP ask for an end instead of breaking the process off."""
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
    """Serve until an end is asked for.

    Raises:
        UserError: the server does not come up, or dies again and again; with its last words.
    """
    if plan.wanted.store is None:
        sources.publish(plan.served, plan.store)
    config = prepare(plan)
    log = plan.state / f"{plan.server.lower()}.log"
    _put_aside(log)
    command, environment = plan.command(), flags.environment(os.environ, config)

    def start() -> Server:
        return Server(command, environment, log, grace_seconds=_GRACE_S)

    with signals() as stop:
        key = any_for_use(plan.wanted.api_keys)
        keep_running(start, plan.url, log, watch, stop, Restarts(), key, plan.server)


def prepare(plan: AnyPlan) -> Path:
    """Write the layer's configuration; returns where it is.

    Raises:
        UserError: the disk is full, or the folder may not be written.
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
    """Start a server, and again whenever it dies, until an end is asked for.

    `key` is one for use: only with it the server tells what it still waits for; `name` is what
    people call the server.
    One that never answered is not started again: whatever is wrong is wrong the next time, too.

    Raises:
        UserError: it did not come up, or died too often.
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
    """Watch one server until it is gone; returns when it became ready (monotonic), if ever."""
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
            state = ask_ready(url, key) or {}
            if state.get("ready"):
                ready_at = time.monotonic()
                watch.ready(seconds, state)
            else:
                missing = state.get("missing", {}).items()
                loading = ", ".join(f"{label}: {why}" for label, why in missing)
                watch.waiting(seconds, loading or doing)
        stop.wait(_LOOK_S)
    return ready_at


def ask_ready(url: str, key: str | None = None) -> dict[str, Any] | None:
    """What /ready says, None where nothing answers.

    `ready`, and to whoever has a key, or where none is asked for, what is `missing` or `refused`.
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
    return state if isinstance(state, dict) else None


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
        else f"{name} did not come up: it ended with code {code} after {seconds:.0f} s"
    )
    said = "".join(f"\n    {reason}" for reason in reasons)
    return UserError(what + said, where=str(log), fix="its whole output is in that file")


def _put_aside(log: Path) -> None:
    """Keep one log of before."""
    if log.is_file():
        log.replace(log.with_suffix(".before.log"))
