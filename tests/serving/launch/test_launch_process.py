"""The server as a process: orderly end, no processes left, restarts, cause of death.

A small Python program stands in for vLLM here; tests/test_serving_vllm.py does the same with it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_lora.errors import UserError
from llm_lora.serving.launch import launching as launch
from llm_lora.serving.launch.log import Line, Tail, causes, parse
from llm_lora.serving.launch.process import Restarts, Server
from llm_lora.serving.readiness import Readiness

# Writes its process numbers to a file, then serves /ready until it is asked to end.
FAKE = """
import http.server, os, signal, subprocess, sys, threading, time
port, folder, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-c", sleeper])
with open(f"{folder}/pids", "a") as file:
    file.write(f"{os.getpid()} {worker.pid}\\n")
def end(*_):
    open(f"{folder}/ended", "w").close()
    worker.kill()
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else end)
if mode == "broken":
    print("(EngineCore pid=1) ERROR 11-21 12:00:00 [core.py:1] ValueError: no room", flush=True)
    print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        key = self.headers["Authorization"]
        self.wfile.write(b'{"ready": true%s}' % (b', "missing": {}' if key == "Bearer k" else b""))
    def log_message(self, *_): pass
print("INFO 11-21 12:00:00 [x.py:1] serving", flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
if mode == "brief":
    threading.Timer(1.0, lambda: (print("OSError: gone", flush=True), os._exit(4))).start()
server.serve_forever()
"""


class Fake:
    """Starts such programs and tracks all their processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "fake.py").write_text(FAKE)

    def command(self, mode: str) -> list[str]:
        script = str(self.folder / "fake.py")
        return [sys.executable, script, str(self.port), str(self.folder), mode]

    def start(self, mode: str = "good", grace: float = 10.0) -> Server:
        return Server(self.command(mode), os.environ, self.log, grace_seconds=grace)

    def processes(self) -> list[int]:
        """Every process ever started, the newest program last."""
        path = self.folder / "pids"
        return [int(number) for number in path.read_text().split()] if path.exists() else []

    def wait_ready(self) -> None:
        wait_until(lambda: launch.ask_ready(self.url) is not None)

    def gone(self) -> bool:
        return bool(self.processes()) and not any(map(lives, self.processes()))


def lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path)
    yield made
    for process in filter(lives, made.processes()):
        os.kill(process, signal.SIGKILL)


class Screen:
    """Records events."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def starting(self, log: Path) -> None:
        self.told.append(("starting", log))

    def waiting(self, seconds: float, doing: str) -> None:
        if self.told[-1] != ("waiting", doing):
            self.told.append(("waiting", doing))

    def ready(self, seconds: float, state: Readiness) -> None:
        self.told.append(("ready", state))

    def alarm(self, line: Line) -> None:
        self.told.append(("alarm", line.text))

    def died(self, code: int, reasons: Sequence[str], again_in: float | None) -> None:
        self.told.append(("died", (code, list(reasons), again_in)))

    def ending(self) -> None:
        self.told.append(("ending", None))

    def of(self, kind: str) -> list[Any]:
        return [value for one, value in self.told if one == kind]


def test_an_end_is_orderly_and_leaves_nothing(fake: Fake) -> None:
    server = fake.start()
    fake.wait_ready()
    assert server.exit_code() is None
    server.end()
    assert server.exit_code() == 0
    assert (fake.folder / "ended").exists(), "it was asked to end"
    assert fake.gone()


def test_a_key_is_shown_to_learn_what_is_missing(fake: Fake) -> None:
    server = fake.start()
    try:
        fake.wait_ready()
        assert launch.ask_ready(fake.url) == Readiness(True)
        assert launch.ask_ready(fake.url, "k") == Readiness(True)
    finally:
        server.end()


def test_what_does_not_listen_is_killed_with_its_workers(fake: Fake) -> None:
    server = fake.start("deaf", grace=0.5)
    fake.wait_ready()
    began = time.monotonic()
    server.end()
    assert server.exit_code() == 128 + signal.SIGKILL
    assert time.monotonic() - began < 5
    wait_until(fake.gone)


def test_workers_do_not_outlive_a_killed_program(fake: Fake) -> None:
    server = fake.start()
    fake.wait_ready()
    os.kill(fake.processes()[0], signal.SIGKILL)
    wait_until(lambda: server.exit_code() is not None)
    assert server.exit_code() == 128 + signal.SIGKILL
    wait_until(fake.gone)


@pytest.mark.parametrize("mode", ["good", "deaf"])
def test_nothing_outlives_a_killed_launcher(fake: Fake, mode: str) -> None:
    launcher = f"""
        import os, time
        from pathlib import Path
        from llm_lora.serving.launch.process import Server
        command, log = {fake.command(mode)!r}, Path({str(fake.log)!r})
        server = Server(command, os.environ, log, grace_seconds=1)
        time.sleep(600)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(launcher)])
    try:
        fake.wait_ready()
    finally:
        process.kill()
        process.wait()
    wait_until(fake.gone, 10)
    assert (fake.folder / "ended").exists() is (mode == "good")


def test_nothing_outlives_a_killed_guard_either(fake: Fake) -> None:
    server = fake.start()
    fake.wait_ready()
    os.kill(psutil.Process(fake.processes()[0]).ppid(), signal.SIGKILL)
    wait_until(fake.gone, 10)
    assert server.exit_code() == 128 + signal.SIGKILL


def test_a_second_wish_to_end_is_not_kept_waiting(fake: Fake) -> None:
    server = fake.start("deaf", grace=60)
    fake.wait_ready()
    server.ask_to_end()
    server.kill()
    assert server.exit_code() == 128 + signal.SIGKILL
    wait_until(fake.gone, 5)


def keep_running(fake: Fake, mode: str, screen: Screen, stop: launch.Stop, **limits: Any) -> None:
    restarts = Restarts(**{"first_seconds": 0.05, "most": 2} | limits)
    launch.keep_running(lambda: fake.start(mode), fake.url, fake.log, screen, stop, restarts)


def test_a_server_that_dies_comes_back_until_it_does_so_too_often(fake: Fake) -> None:
    screen = Screen()
    with pytest.raises(UserError, match=r"died too often(.|\n)*OSError: gone"):
        keep_running(fake, "brief", screen, launch.Stop())
    assert screen.of("ready") == [Readiness(True)] * 3
    assert screen.of("died") == [
        (4, ["OSError: gone"], 0.05),
        (4, ["OSError: gone"], 0.1),
        (4, ["OSError: gone"], None),
    ]
    wait_until(fake.gone)


def test_a_server_that_never_came_up_is_not_tried_again(fake: Fake) -> None:
    screen = Screen()
    with pytest.raises(UserError, match=r"did not start(.|\n)*code 3(.|\n)*ValueError: no room"):
        keep_running(fake, "broken", screen, launch.Stop())
    assert len(screen.of("starting")) == 1
    assert screen.of("died") == [(3, ["ValueError: no room"], None)]
    wait_until(fake.gone)


def test_an_end_that_was_asked_for_is_no_death(fake: Fake) -> None:
    screen, stop = Screen(), launch.Stop()
    thread = threading.Thread(target=keep_running, args=(fake, "good", screen, stop))
    thread.start()
    wait_until(lambda: screen.of("ready"))
    stop.ask()
    thread.join(15)
    assert not thread.is_alive()
    assert [kind for kind, _ in screen.told if kind != "waiting"] == ["starting", "ready", "ending"]
    assert "serving" in screen.of("waiting") or screen.of("waiting") == [""]
    assert fake.gone()


def test_asking_twice_ends_at_once(fake: Fake) -> None:
    screen, stop = Screen(), launch.Stop()
    thread = threading.Thread(target=keep_running, args=(fake, "deaf", screen, stop))
    thread.start()
    wait_until(lambda: screen.of("ready"))
    stop.ask()
    wait_until(lambda: screen.of("ending"))
    began = time.monotonic()
    stop.ask()
    thread.join(15)
    assert time.monotonic() - began < 5
    wait_until(fake.gone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_ask_for_an_end(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with launch.signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.wait(5) and stop.asked == 1
    assert signal.getsignal(number) is before


def test_restarts_come_later_each_time_and_a_long_life_starts_the_count_anew() -> None:
    restarts = Restarts(first_seconds=1, longest_seconds=5, steady_seconds=60, most=5)
    assert [restarts.after(1) for _ in range(4)] == [1, 2, 4, 5]
    assert restarts.after(61) == 1
    assert [restarts.after(1) for _ in range(5)] == [2, 4, 5, 5, None]


@pytest.mark.parametrize(
    ("raw", "level", "text"),
    [
        ("(APIServer pid=7) INFO 11-21 12:00:00 [a.py:1] Loading", "INFO", "Loading"),
        ("ERROR 11-21 12:00:00 [core.py:1]   File x", "ERROR", "  File x"),
        ("(EngineCore pid=7) \rShards: 0%\rShards: 100%", None, "Shards: 100%"),
        ("\x1b[32mINFO\x1b[0m:     Started server process [1]", "INFO", "Started server process"),
        ("(EngineCore pid=7) ValueError: no", None, "ValueError: no"),
    ],
)
def test_log_lines_lose_all_but_what_they_say(raw: str, level: str | None, text: str) -> None:
    line = parse(raw)
    assert line.level == level and line.text.startswith(text)


def test_only_the_lead_of_an_error_alarms() -> None:
    told = ["Engine died", "Traceback (most recent call last):", "  File x", ""]
    assert [Line("ERROR", text).alarming for text in told] == [True, False, False, False]
    assert not Line("WARNING", "hm").alarming and not Line(None, "ValueError").alarming


def test_the_cause_is_told_before_what_points_to_it() -> None:
    lines = [
        Line("INFO", "Starting"),
        Line("ERROR", "Traceback (most recent call last):"),
        Line("ERROR", "torch.OutOfMemoryError: no memory"),
        Line(None, "torch.OutOfMemoryError: no memory"),
        Line(None, "RuntimeError: Engine core initialization failed. See root cause above."),
    ]
    assert causes(lines) == ["torch.OutOfMemoryError: no memory"]
    assert causes(lines[-1:]) == [lines[-1].text]
    assert causes([Line(None, "api_server.py: error: unrecognized arguments: --x")]) == [
        "api_server.py: error: unrecognized arguments: --x"
    ]
    assert causes([Line(None, "first"), Line(None, "Killed")]) == ["first", "Killed"]
    assert causes([]) == []


def test_a_growing_log_is_read_in_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("from before\n")
    tail = Tail(log)
    with log.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert [line.text for line in tail.new()] == ["one"]
        file.write("o\n")
        file.flush()
        assert [line.text for line in tail.new()] == ["two"]
    assert tail.new() == []
    assert Tail(tmp_path / "missing").new() == []
