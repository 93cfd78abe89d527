"""Failures from outside the program: no memory, a full disk, no base, a wrong `extra`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import Command

from llm_lora.base import text as bases
from llm_lora.engines.shared.trouble import full_disk, out_of_memory
from llm_lora.errors import UserError


def test_an_allocation_that_really_fails_names_the_settings_that_free_memory() -> None:
    with (
        pytest.raises(UserError, match=r"out of memory; in this order: train\.checkpointing=true"),
        out_of_memory(),
    ):
        torch.empty(10**15)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_a_gpus_libraries_tell_exhausted_memory_in_words_of_their_own(message: str) -> None:
    with pytest.raises(UserError, match="out of memory"), out_of_memory():
        raise RuntimeError(message)


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(), full_disk(Path("x")):
        raise RuntimeError("shapes do not match")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_torch_and_the_system_tell_a_full_disk_differently_but_we_do_not() -> None:
    with pytest.raises(UserError, match="the disk is full"), full_disk(Path("checkpoints")):
        Path("/dev/full").write_bytes(b"x")
    with pytest.raises(UserError, match="the disk is full"), full_disk(Path("checkpoints")):
        torch.save(torch.zeros(100_000), "/dev/full")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small disk")
def test_a_disk_that_fills_up_while_training(small_recipe: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this container may not mount a disk")
    try:
        code, output = Command("train", small_recipe, "--runs", disk).finish()
        assert code == 2, output
        assert "the disk is full" in output and "free some space" in output
        assert "Traceback" not in output
        assert not list(disk.rglob("manifest.json")) + list(disk.rglob("adapter"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_base_that_is_not_there(small_recipe: Path, tmp_path: Path) -> None:
    code, output = Command(
        "train", small_recipe, "--set", "base=no/such-model", "--runs", tmp_path
    ).finish()
    assert code == 2, output
    assert "no/such-model" in output and "→" in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_trl_does_not_know_is_refused(small_recipe: Path, tmp_path: Path) -> None:
    code, output = Command(
        "train", small_recipe, "--set", "extra.no_such_thing=1", "--runs", tmp_path
    ).finish()
    assert code == 2, output
    assert "error: extra: TRL's SFTConfig refuses it" in output and "no_such_thing" in output
    code, output = Command(
        "train", small_recipe, "--set", "extra.learning_rate=1", "--runs", tmp_path
    ).finish()
    assert code == 2, output
    assert "extra may not set learning_rate" in output


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_with_the_remedy(small_recipe: Path, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    shutil.copytree(bases.resolve("tiny").path, sick)
    tensors = load_file(sick / "model.safetensors")
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, sick / "model.safetensors", metadata={"format": "pt"})
    code, output = Command(
        "train", small_recipe, "--runs", tmp_path / "runs", "--set", f"base={sick}"
    ).finish()
    assert code == 2, output
    assert "the loss became NaN at step" in output
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.slow
def test_the_settings_of_the_gpu_profiles_run_on_a_cpu(small_recipe: Path, tmp_path: Path) -> None:
    code, output = Command(
        *("train", small_recipe, "--runs", tmp_path, "--set", "train.max_steps=4"),
        *("--set", "train.checkpointing=true", "--set", "train.optimizer=paged-adamw-8bit"),
        *("--set", "train.batch_size=2", "--set", "train.accumulate=4"),
        *("--set", "train.batching=packed"),
    ).finish()
    assert code == 0, output
    assert "optimizer: adamw_bnb_8bit" in output
