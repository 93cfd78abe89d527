"""A server for the length of a measurement: start, wait, measure, stop."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llm_lora.errors import UserError
from llm_lora.serving.launch import Server, Tail

START_SECONDS = 1800.0
"""Longest start: a large base is read, and kernels are compiled for the GPU."""

_LOOK_S = 0.25
_GRACE_S = 30.0
_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    url: str,
    log: Path,
    *,
    path: str = "/health",
) -> Iterator[Server]:
    """A server, from when it answers `path` with 200 until the end of the context.

    Raises:
        UserError: it died, or did not answer in time; with the last lines of its log.
    """
    tail = Tail(log)
    server = Server(command, environment, log, grace_seconds=_GRACE_S)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url + path):
            if server.exit_code() is not None or time.monotonic() > deadline:
                said = "".join(f"\n    {reason}" for reason in tail.explain())
                raise UserError(f"vLLM did not start{said}", where=str(log))
            time.sleep(_LOOK_S)
        yield server
    finally:
        server.end()


def memory_bytes(server: Server) -> int:
    """Host memory of a server's processes; shared memory counts once."""
    # Imported here to keep the command line's help fast.
    import psutil

    total = 0
    for process in server.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(process).memory_full_info().pss
    return total


def cache_tokens(url: str) -> int | None:
    """Tokens that the key-value cache of a running vLLM holds; None where it does not report it."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        found = _CACHE.search(response.read().decode())
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1])) if found else {}
    try:
        return int(labels["num_gpu_blocks"]) * int(labels["block_size"])
    except (KeyError, ValueError):
        return None


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
