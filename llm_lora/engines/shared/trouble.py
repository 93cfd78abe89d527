"""Exhausted memory and full disks, whose many faces become one message each."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llm_lora import files
from llm_lora.errors import UserError

_SMALLER = (
    "in this order: train.checkpointing=true, half train.batch_size with double "
    "train.accumulate, smaller train.max_tokens, a smaller base (--set KEY=VALUE)"
)

_EXHAUSTED = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""What says so: torch's allocator on CPUs, the CUDA driver, cuBLAS and cuDNN in two spellings."""


@contextmanager
def out_of_memory(fix: str = _SMALLER) -> Iterator[None]:
    """Tells what frees memory; for training, in the order of what it frees: activations dominate.

    Raises:
        UserError: memory ran out within the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("out of memory", fix=fix) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    # torch.OutOfMemoryError is a RuntimeError; all other allocators raise plain ones.
    if isinstance(error, RuntimeError):
        text = str(error)
        return isinstance(error, torch.OutOfMemoryError) or any(one in text for one in _EXHAUSTED)
    return isinstance(error, MemoryError)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Tells that the disk is full, whoever of the libraries below noticed it.

    Raises:
        UserError: a write within the block failed for want of space.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # safetensors and torch wrap the operating system's error in their own.
        words = ("No space left on device", "PytorchStreamWriter", "inline_container")
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(word in str(error) for word in words):
            raise
        raise files.write_error(OSError(errno.ENOSPC, ""), folder) from error
