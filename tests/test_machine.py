"""What the machine has, seen through a fake nvidia-smi and fake /proc, and the profile it gets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_lora import machine
from llm_lora.errors import UserError
from llm_lora.machine import GIB, Hardware, detect, pick_profile
from llm_lora.recipe.scalars import PROFILES

Program = Callable[..., None]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the fake nvidia-smi is a script")

RTX_4070 = "0, GPU-aa11, NVIDIA GeForce RTX 4070, 12282, 8.9"
A10 = "1, GPU-bb22, NVIDIA A10, 23028, 8.6"


def host(**changes: object) -> Hardware:
    return Hardware(**{"cores": 2, "memory_bytes": int(23.5 * GIB), **changes})  # type: ignore[arg-type]


def card(mebibytes: int) -> Hardware:
    return host(gpu="NVIDIA X", gpu_memory_bytes=mebibytes * 2**20, gpu_capability=(8, 9))


@pytest.fixture(autouse=True)
def no_gpu_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Program:
    """Puts a program of that name on PATH: `nvidia_smi("exit 9")`."""

    def put(*lines: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        program.chmod(0o755)

    return put


def listing(*rows: str) -> tuple[str, ...]:
    """A program that answers only the query that is really asked."""
    query = "--query-gpu=index,uuid,name,memory.total,compute_cap --format=csv,noheader,nounits"
    return (f'[ "$*" = "{query}" ] || exit 2', *(f"echo '{row}'" for row in rows))


# Picking.


@pytest.mark.parametrize(
    ("mebibytes", "name"),
    [
        (81559, "gpu-80gb"),  # H100
        (49140, "gpu-48gb"),  # RTX 6000 Ada
        (46068, "gpu-48gb"),  # L40S
        (40960, "gpu-24gb"),  # A100 40 GB
        (24564, "gpu-24gb"),  # RTX 4090
        (23028, "gpu-24gb"),  # A10
        (16376, "gpu-16gb"),  # RTX 4080
        (15360, "gpu-16gb"),  # T4
        (12282, "gpu-12gb"),  # RTX 4070
        (11264, "gpu-8gb"),  # RTX 2080 Ti, 11 GB
        (8188, "gpu-8gb"),  # RTX 4060
        (7783, "gpu-8gb"),  # 7.6 GiB
        (6144, "cpu"),  # RTX 2060
    ],
)
def test_the_largest_class_that_a_card_fits_is_picked(mebibytes: int, name: str) -> None:
    assert pick_profile(PROFILES, card(mebibytes)).name == name
    assert pick_profile(tuple(reversed(PROFILES)), card(mebibytes)).name == name


def test_only_the_recipes_own_profiles_are_picked() -> None:
    assert pick_profile(["cpu", "gpu-8gb"], card(81559)).name == "gpu-8gb"
    assert pick_profile(["cpu"], card(81559)).name == "cpu"


def test_the_reason_is_a_sentence_about_this_machine() -> None:
    names = ["cpu", "gpu-8gb", "gpu-24gb"]
    assert pick_profile(names, host()).reason == "no NVIDIA GPU found: 2 cores, 23.5 GiB memory"
    assert pick_profile(names, host(cores=1)).reason.endswith(": 1 core, 23.5 GiB memory")
    assert pick_profile(names, card(12282)).reason == "NVIDIA X has 12.0 GiB"
    small = pick_profile(names, card(6144)).reason
    assert small == "NVIDIA X has 6.0 GiB, too little for gpu-8gb"
    assert pick_profile(["cpu"], card(12282)).reason == "the recipe has no profile for NVIDIA X"
    broken = host(gpu_problem="nvidia-smi failed (no driver)")
    assert pick_profile(names, broken).reason.startswith("nvidia-smi failed (no driver): 2 cores")


def test_nothing_that_fits_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(UserError) as caught:
        pick_profile(["gpu-8gb", "gpu-24gb"], host())
    assert str(caught.value) == (
        "no profile of this recipe fits this machine (no NVIDIA GPU found: 2 cores, 23.5 GiB "
        "memory); choose one of gpu-8gb, gpu-24gb with --profile, or add a cpu profile"
    )
    with pytest.raises(UserError, match="the recipe has no profiles"):
        pick_profile([], card(81559))


# The GPU.


def test_without_nvidia_smi_there_is_no_gpu_and_no_complaint() -> None:
    found = detect()
    assert (found.gpu, found.gpu_memory_bytes, found.gpu_problem) == (None, None, None)
    assert found.cores >= 1
    assert found.memory_bytes > GIB // 2


def test_the_first_card_is_read(nvidia_smi: Program) -> None:
    nvidia_smi(*listing(RTX_4070, A10))
    found = detect()
    assert (found.gpu, found.gpu_capability) == ("NVIDIA GeForce RTX 4070", (8, 9))
    assert found.gpu_memory_bytes == 12282 * 2**20
    assert found.bf16
    assert str(found).startswith("NVIDIA GeForce RTX 4070 with 12.0 GiB, ")


def test_old_cards_have_no_bf16(nvidia_smi: Program) -> None:
    nvidia_smi(*listing("0, GPU-cc33, Tesla T4, 15360, 7.5"))
    assert not detect().bf16


@pytest.mark.parametrize(
    ("visible", "gpu"),
    [
        ("1", "NVIDIA A10"),
        ("1,0", "NVIDIA A10"),
        ("GPU-bb", "NVIDIA A10"),
        ("0", "NVIDIA GeForce RTX 4070"),
        ("", None),
        ("-1", None),
        ("7,0", None),
    ],
)
def test_cuda_visible_devices_is_heeded(
    visible: str, gpu: str | None, nvidia_smi: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(*listing(RTX_4070, A10))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = detect()
    assert found.gpu == gpu
    hidden = "CUDA_VISIBLE_DEVICES hides every GPU"
    assert found.gpu_problem == (None if gpu else hidden)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (("echo 'Cannot talk to the driver.'", "exit 9"), "failed (Cannot talk to the driver)"),
        (("exit 9",), "failed (9)"),
        (("true",), "lists no GPU"),
        (("echo 'No devices were found'",), "lists no GPU"),
        (("echo '0, GPU-a, GB10, [N/A], 12.1'",), "does not report the memory of GB10"),
    ],
)
def test_an_nvidia_smi_that_fails_says_why(
    lines: tuple[str, ...], problem: str, nvidia_smi: Program
) -> None:
    nvidia_smi(*lines)
    found = detect()
    assert found.gpu is None
    assert found.gpu_problem == f"nvidia-smi {problem}"


def test_an_nvidia_smi_that_hangs_is_left(
    nvidia_smi: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SMI_TIMEOUT_S", 0.2)
    nvidia_smi("while true; do :; done")
    assert detect().gpu_problem == "nvidia-smi did not respond in 0.2 s"


def test_an_nvidia_smi_that_is_no_program_is_told(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_bytes(b"\x7fnonsense")
    program.chmod(0o755)
    assert str(detect().gpu_problem).startswith("nvidia-smi cannot be run (")


# The host.


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_container_limits_of_version_2_count(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/cgroup", "0::/pod/box\n")
    put(tmp_path, "sys/fs/cgroup/pod/box/memory.max", "max\n")
    put(tmp_path, "sys/fs/cgroup/pod/memory.max", f"{GIB // 4}\n")
    put(tmp_path, "sys/fs/cgroup/pod/box/cpu.max", "50000 100000\n")
    found = detect(tmp_path)
    assert (found.memory_bytes, found.cores) == (GIB // 4, 1)


def test_container_limits_of_version_1_count(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/cgroup", "5:cpu,cpuacct:/box\n4:memory:/box\n1:name=systemd:/\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB // 8}\n")
    put(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "100000\n")
    put(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    found = detect(tmp_path)
    assert (found.memory_bytes, found.cores) == (GIB // 8, 1)


def test_limits_of_other_controllers_do_not_count(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/cgroup", "6:cpuset:/other\n")
    put(tmp_path, "sys/fs/cgroup/cpu/other/cpu.cfs_quota_us", "100000\n")
    put(tmp_path, "sys/fs/cgroup/cpu/other/cpu.cfs_period_us", "100000\n")
    assert detect(tmp_path).cores == detect(tmp_path / "nothing").cores


def test_no_limit_leaves_what_the_machine_has(tmp_path: Path) -> None:
    unlimited = detect(tmp_path / "nothing")
    put(tmp_path, "proc/self/cgroup", "0::/\n")
    put(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    put(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert detect(tmp_path) == unlimited


def test_version_1_without_quota_says_minus_one(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/cgroup", "5:cpu:/\n4:memory:/\n")
    put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert detect(tmp_path) == detect(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [
        ("flags : fpu avx2 avx512f", False),
        ("flags : fpu avx512_bf16", True),
        ("flags : amx_bf16 amx_tile", True),
        ("Features : fp asimd bf16", True),
    ],
)
def test_bf16_of_the_cpu_is_read_from_its_flags(flags: str, bf16: bool, tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", f"model name : x\n{flags}\n")
    assert detect(tmp_path).bf16 is bf16


def test_systems_without_affinity_count_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert detect(Path("/nonexistent")).cores == 6
