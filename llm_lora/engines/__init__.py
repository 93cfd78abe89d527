"""Engines: training and answering; only they import torch and the libraries built on it."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

from llm_lora.errors import UserError

_MODULES = {"text": "llm_lora.engines.text.engine", "image": "llm_lora.engines.image.engine"}


def load(task: str) -> ModuleType:
    """Import the engine of a task; the heavy imports (seconds) happen here.

    Raises:
        UserError: the task is unknown, or a library that it needs is not installed.
    """
    if task not in _MODULES:
        raise UserError(f"no engine for task {task}", fix=f"known tasks: {', '.join(_MODULES)}")
    # Tokenizer threads can deadlock with forked data loaders; tokenizing is no bottleneck here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Warns at import about a faster single-token path that is not available on CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Warns, when diffusers is imported, that torchvision is missing; nothing here needs it.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    try:
        return importlib.import_module(_MODULES[task])
    except ModuleNotFoundError as error:
        raise UserError(
            f"the library {error.name} is not installed",
            fix="run `llm-lora doctor`, or rebuild the environment: make env",
        ) from error
