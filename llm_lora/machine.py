"""This machine: its hardware and the profile that fits it, its user, free ports; no torch."""

from __future__ import annotations

import getpass
import ipaddress
import math
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_lora.errors import UserError

GIB = 2**30

_SMI_TIMEOUT_S = 20.0  # nvidia-smi takes seconds if the driver is not kept loaded.
_SMI_QUERY = "index,uuid,name,memory.total,compute_cap"

_FITS = 0.93
"""Fraction of a class's nominal memory that a card must have: cards with error correction report
15.0 of 16 GB (T4) or 22.5 of 24 GB (A10), while an 11 GB card does not count as 12 GB."""


@dataclass(frozen=True)
class Hardware:
    """The hardware that training can use; `gpu` is the first card visible to CUDA.

    Attributes:
        cores: CPU cores that this process may use (affinity, container quota).
        memory_bytes: host memory that it may use (container limit included).
        gpu_capability: CUDA compute capability, such as (8, 9).
        bf16: whether the GPU, or else the CPU, has bf16 instructions.
        gpu_problem: why no GPU was found, if nvidia-smi exists but fails.
    """

    cores: int
    memory_bytes: int
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_capability: tuple[int, int] | None = None
    bf16: bool = False
    gpu_problem: str | None = None

    def __str__(self) -> str:
        cores = f"{self.cores} core{'' if self.cores == 1 else 's'}"
        host = f"{cores}, {self.memory_bytes / GIB:.1f} GiB memory"
        if self.gpu is None or self.gpu_memory_bytes is None:
            return host
        return f"{self.gpu} with {self.gpu_memory_bytes / GIB:.1f} GiB, {host}"


@dataclass(frozen=True)
class Choice:
    """A profile, and the reason for choosing it."""

    name: str
    reason: str


def pick_profile(names: Sequence[str], hardware: Hardware) -> Choice:
    """The largest GPU profile that fits into the card's memory, else `cpu`.

    Args:
        names: the profiles of the recipe.
        hardware: usually `detect()`.

    Raises:
        UserError: none of them fits.
    """
    on_gpu = sorted((size, name) for name in names if (size := _gigabytes(name)) is not None)
    memory = hardware.gpu_memory_bytes or 0
    if hardware.gpu is None:
        why = f"{hardware.gpu_problem or 'no NVIDIA GPU found'}: {hardware}"
    elif fitting := [name for size, name in on_gpu if memory >= _FITS * size * GIB]:
        return Choice(fitting[-1], f"{hardware.gpu} has {memory / GIB:.1f} GiB")
    elif on_gpu:
        why = f"{hardware.gpu} has {memory / GIB:.1f} GiB, too little for {on_gpu[0][1]}"
    else:
        why = f"the recipe has no profile for {hardware.gpu}"
    if "cpu" in names:
        return Choice("cpu", why)
    raise UserError(
        f"no profile of this recipe fits this machine ({why})",
        fix=f"choose one of {', '.join(names)} with --profile, or add a cpu profile"
        if names
        else "the recipe has no profiles",
    )


def detect(root: Path = Path("/")) -> Hardware:
    """Detect this machine's hardware. Never fails: what cannot be detected counts as absent.

    Args:
        root: the parent of /proc and /sys; other than "/" only in tests.
    """
    gpu = _gpu()
    if isinstance(gpu, _Card):
        capability = gpu.capability
        return Hardware(
            cores=_cores(root),
            memory_bytes=_memory(root),
            gpu=gpu.name,
            gpu_memory_bytes=gpu.memory_bytes,
            gpu_capability=capability,
            bf16=capability is not None and capability >= (8, 0),
        )
    words = set((_read(root / "proc/cpuinfo") or "").split())
    bf16 = bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
    return Hardware(cores=_cores(root), memory_bytes=_memory(root), bf16=bf16, gpu_problem=gpu)


@dataclass(frozen=True)
class _Card:
    name: str
    memory_bytes: int
    capability: tuple[int, int] | None


def _gpu() -> _Card | str | None:
    """The first card visible to CUDA, or why there is none; None without any sign of a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={_SMI_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"nvidia-smi did not respond in {_SMI_TIMEOUT_S:g} s"
    except OSError as error:
        return f"nvidia-smi cannot be run ({error.strerror})"
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        return f"nvidia-smi failed ({said[0].rstrip('.') if said else done.returncode})"
    cells = ([cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines())
    rows = [row for row in cells if len(row) == len(_SMI_QUERY.split(","))]
    visible = _visible(rows)
    if not visible:
        hidden = "CUDA_VISIBLE_DEVICES hides every GPU"
        return hidden if rows else "nvidia-smi lists no GPU"
    _, _, name, mebibytes, capability = visible[0]
    if not mebibytes.isdigit():
        return f"nvidia-smi does not report the memory of {name}"
    major, _, minor = capability.partition(".")
    known = major.isdigit() and minor.isdigit()
    return _Card(name, int(mebibytes) * 2**20, (int(major), int(minor)) if known else None)


def _visible(rows: list[list[str]]) -> list[list[str]]:
    """Cards in CUDA's order, filtered by CUDA_VISIBLE_DEVICES, which nvidia-smi ignores."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return rows
    found = []
    for one in (part.strip() for part in wanted.split(",")):
        match = [row for row in rows if one and (row[0] == one or row[1].startswith(one))]
        if not match:
            break  # As in CUDA, an unknown device hides all that follow it.
        found.append(match[0])
    return found


def _gigabytes(profile: str) -> int | None:
    size = profile.removeprefix("gpu-").removesuffix("gb")
    return int(size) if profile == f"gpu-{size}gb" and size.isdigit() else None


def _cores(root: Path) -> int:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity.
        cores = os.cpu_count() or 1
    quotas = [quota for folder in _control_groups(root, "cpu") if (quota := _quota(folder))]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _quota(folder: Path) -> float | None:
    """Cores that a control group may use; reads cgroup version 2, then version 1."""
    words = (_read(folder / "cpu.max") or "").split() or [
        (_read(folder / f"cpu.cfs_{part}_us") or "").strip() for part in ("quota", "period")
    ]
    if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
        return int(words[0]) / int(words[1])
    return None


def _memory(root: Path) -> int:
    # Imported on use, as only slow commands need it.
    import psutil

    limits = [
        int(text)
        for folder in _control_groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := (_read(folder / name) or "").strip()).isdigit()
    ]
    return min([int(psutil.virtual_memory().total), *limits])


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups of this process, innermost first."""
    base = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controller if controllers else base
        inner = top / path.lstrip("/")
        yield from (inner, *(one for one in inner.parents if one.is_relative_to(top)))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def user() -> str:
    """The user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # The user of a container may have no name.
        return "unknown"


def account() -> str:
    """The user and host that run this process."""
    return f"{user()}@{socket.gethostname()}"
