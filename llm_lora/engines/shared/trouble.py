"""Out-of-memory and full-disk errors, in all their forms, as one message each."""

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
"""Parts of the messages of torch's CPU allocator, the CUDA driver, cuBLAS and cuDNN (two forms)."""


@contextmanager
def out_of_memory(fix: str = _SMALLER) -> Iterator[None]:
    """Turn out-of-memory errors into advice; for training, the most effective first (activations).

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
    """Whether an error means that memory ran out."""
    # torch.OutOfMemoryError is a RuntimeError; all other allocators raise plain ones.
    if isinstance(error, RuntimeError):
        text = str(error)
        return isinstance(error, torch.OutOfMemoryError) or any(one in text for one in _EXHAUSTED)
    return isinstance(error, MemoryError)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Turn a full-disk error of any library into one message.

    Raises:
        UserError: a write within the block failed for lack of space.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # safetensors and torch wrap the operating system's error in their own exceptions.
        words = ("No space left on device", "PytorchStreamWriter", "inline_container")
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(word in str(error) for word in words):
            raise
        raise files.write_error(OSError(errno.ENOSPC, ""), folder) from error
