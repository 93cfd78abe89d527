"""Engines: training and answering; only they import torch and the libraries built on it."""

from __future__ import annotations

import logging
import os
from typing import Any

from llm_lora import task as tasks
from llm_lora.errors import UserError
from llm_lora.task import TASKS


def load(task: str) -> Any:
    """Import the engine of a task; the heavy imports (seconds) happen here.

    Raises:
        UserError: the task is unknown, or a library that it needs is not installed.
    """
    if task not in TASKS:
        raise UserError(f"no engine for task {task}", fix=f"known tasks: {', '.join(TASKS)}")
    # Tokenizer threads can deadlock with forked data loaders; tokenizing is no bottleneck here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Warns at import about a faster single-token path that is not available on CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Warns, when diffusers is imported, that torchvision is missing; nothing here needs it.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    try:
        return tasks.load(TASKS[task].engine)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the library {error.name} is not installed",
            fix="run `llm-lora doctor`, or rebuild the environment: make env",
        ) from error
