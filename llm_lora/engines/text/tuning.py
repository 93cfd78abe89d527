"""Shared parts of every text training: trainer arguments, fp32 adapter weights, saving."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from transformers import TrainerState, TrainingArguments

from llm_lora import files
from llm_lora.adapter import CONFIG
from llm_lora.base import Base
from llm_lora.engines.shared import StopEarly, full_disk
from llm_lora.recipe.text import Recipe

Config = TypeVar("Config", bound=TrainingArguments)

Options = dict[str, Any]
"""Arguments of transformers' trainers, by name."""

_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
}
_LOG_EVERY = 5


def options(
    recipe: Recipe,
    checkpoints: Path,
    *,
    steps: int,
    save_every: int,
    learning_rate: float,
    compute: torch.dtype,
) -> Options:
    """The arguments of transformers' trainers that every training sets.

    Args:
        recipe: decides everything else.
        checkpoints: the folder to save them in.
        steps: optimizer steps of the whole training.
        save_every: steps between two checkpoints.
        learning_rate: the peak.
        compute: the compute dtype.
    """
    train = recipe.train
    return {
        "output_dir": str(checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulate,
        "learning_rate": learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": max(1, round(train.warmup * steps)) if train.warmup else 0,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": optimizer(train.optimizer),
        "gradient_checkpointing": train.checkpointing,
        "seed": train.seed,
        "bf16": compute == torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "steps",
        "save_steps": save_every,
        "save_total_limit": 2,
        "logging_steps": _LOG_EVERY,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": [],
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def on_one_card(config: Config) -> Config:
    """Limit training to one card: TRL refuses to start if more are visible to one process."""
    config._n_gpu = min(config.n_gpu, 1)
    return config


def optimizer(name: str) -> str:
    """TRL's name of an optimizer; paged ones need a GPU to page memory out of."""
    if name == "paged-adamw-8bit" and not torch.cuda.is_available():
        name = "adamw-8bit"
    return _OPTIMIZERS[name]


def keep_adapter_in_fp32(model: Any) -> None:
    """Undo TRL's cast of LoRA weights to bf16: small updates would round to nothing.

    Under autocast the products are bf16 anyway, so this costs no speed.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def ended(checkpoint: Path, steps: int, early: StopEarly | None = None) -> TrainerState | None:
    """The state of a checkpoint of a finished training; None if steps are left."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    stopped = early is not None and early.reached(state)
    return state if stopped or state.global_step >= steps else None


def save(model: Any, adapter: Path, base: Base) -> None:
    """Write the adapter to a temporary folder, make it reproducible, and move it into place."""
    unfinished = adapter.with_name(f".{adapter.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with full_disk(adapter):
        model.save_pretrained(unfinished, safe_serialization=True, selected_adapters=["default"])
    path = unfinished / CONFIG
    config = json.loads(files.read_text(path))
    # PEFT keeps the targets in a set, whose order changes from process to process.
    config["target_modules"] = sorted(config["target_modules"])
    # The name, not the path: the same recipe gives the same bytes in another folder.
    config["base_model_name_or_path"] = base.name
    files.write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    (unfinished / "README.md").unlink(missing_ok=True)
    shutil.rmtree(adapter, ignore_errors=True)
    unfinished.replace(adapter)


def quiet() -> None:
    """Silence repeated and developer-facing library messages; errors still come through."""
    datasets.disable_progress_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # TRL warns about every vLLM newer than itself, though no training here uses vLLM.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
