"""Engines train and answer; only they import torch and the libraries on top of it."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

from llm_lora.errors import UserError

_MODULES = {"text": "llm_lora.engines.text.engine", "image": "llm_lora.engines.image.engine"}


def load(task: str) -> ModuleType:
    """The engine of a task; this is where the heavy imports happen (seconds).

    Raises:
        UserError: there is no such task, or a library that it needs is not installed.
    """
    if task not in _MODULES:
        raise UserError(f"no engine for task {task}", fix=f"known tasks: {', '.join(_MODULES)}")
    # Forked data loaders and tokenizers' own threads deadlock; tokenizing is no bottleneck here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # It warns at import of a faster single-token path, which CPU users cannot get.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # It warns that torchvision is absent, which nothing here needs, when diffusers is imported.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    try:
        return importlib.import_module(_MODULES[task])
    except ModuleNotFoundError as error:
        raise UserError(
            f"the library {error.name} is not installed",
            fix="run `llm-lora doctor`, or make the environment anew: make env",
        ) from error
