"""Loading of transformers' vision models, always from a local folder and for inference only."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from llm_lora.vision import VisionModel


def load(kind: Any, model: VisionModel, device: str | None) -> tuple[Any, torch.device]:
    """A model in fp32, frozen, and the device that it was put on.

    Args:
        kind: transformers' class.
        model: the folder.
        device: where it runs; by default the GPU, if there is one.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded = kind.from_pretrained(
        model.path, use_safetensors=True, dtype=torch.float32, local_files_only=True
    )
    return loaded.requires_grad_(False).eval().to(where), where
