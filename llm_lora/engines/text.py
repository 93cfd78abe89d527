"""The text engine: QLoRA with TRL's SFTTrainer and PEFT on a bitsandbytes NF4 base."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerState
from trl import SFTConfig

from llm_lora import files
from llm_lora.adapter import CONFIG
from llm_lora.base import Base
from llm_lora.chat import Chat, Encoded
from llm_lora.engines import batches
from llm_lora.engines.answers import Answerer, Sampling
from llm_lora.engines.callbacks import (
    Complete,
    Metrics,
    StopEarly,
    StopOnSignal,
    newest_checkpoint,
)
from llm_lora.engines.comparing import Form, compare
from llm_lora.engines.events import Fit, Interrupted, Listener, silent
from llm_lora.engines.loading import load_base, peak_memory_bytes
from llm_lora.engines.merging import merge
from llm_lora.engines.trainer import PlannedTrainer
from llm_lora.engines.trouble import full_disk, out_of_memory
from llm_lora.errors import UserError
from llm_lora.fields import closed_spans
from llm_lora.formats import Example
from llm_lora.recipe import Recipe
from llm_lora.schema import AnswerSchema

__all__ = ["Answerer", "Form", "Sampling", "compare", "fit", "merge", "peak_memory_bytes"]

_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
}
_LOG_EVERY = 5
_RELIED_ON = {
    "eval_on_start",
    "eval_packing",
    "ignore_data_skip",
    "label_smoothing_factor",
    "loss_type",
    "packing",
    "packing_strategy",
    "padding_free",
    "save_only_model",
    "use_liger_kernel",
}
"""What resuming to the same bytes, the planned order and the CPU's loss rely on."""


def fit(
    recipe: Recipe,
    train: Sequence[Example],
    validation: Sequence[Example],
    base: Base,
    chat: Chat,
    *,
    schema: AnswerSchema | None = None,
    adapter: Path,
    checkpoints: Path,
    metrics: Path,
    tensorboard: Path,
    resume: bool = False,
    listener: Listener = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Train a LoRA adapter and leave it, whole, in the folder `adapter`.

    Args:
        recipe: decides everything that is not a path.
        train, validation: checked examples; validation decides when to stop and what is best.
        base, chat: the frozen model and its tokenizer with template.
        schema: tells which values are closed, where the recipe weighs them.
        adapter, checkpoints, metrics, tensorboard: where to write.
        resume: continue from the newest whole checkpoint.
        listener: told about progress.
        tell: told every decision, as a sentence, before training begins.

    Raises:
        Interrupted: the user pressed Ctrl-C; a checkpoint was saved.
        UserError: out of memory, a loss that is not a number, an `extra` key that TRL refuses.
    """
    _quiet()
    started, cpu_started = time.monotonic(), time.process_time()
    encoded = [chat.encode(example) for example in train]
    rows = [_row(one) for one in encoded]
    if schema is not None and recipe.train.closed_weight != 1:
        spans = [closed_spans(schema, example.answer) for example in train]
        _weigh(rows, encoded, spans, recipe.train.closed_weight)
    lengths = [len(row["input_ids"]) for row in rows]
    order = batches.plan(
        lengths,
        epochs=recipe.train.epochs,
        batch_size=recipe.train.batch_size,
        grouped=recipe.train.batching == "grouped",
        seed=recipe.train.seed,
    )
    micro_per_epoch = -(-len(rows) // recipe.train.batch_size)
    steps = -(-len(order) // recipe.train.accumulate)
    if recipe.train.max_steps is not None:
        steps = min(steps, recipe.train.max_steps)
    order = order[: steps * recipe.train.accumulate]
    steps_per_epoch = micro_per_epoch / recipe.train.accumulate

    with out_of_memory(), full_disk(checkpoints):
        loaded = load_base(base, bits=recipe.lora.bits, precision=recipe.train.precision)
        arguments = _arguments(recipe, checkpoints, steps, steps_per_epoch, loaded.compute)
        done = batches.tokens_after(order, lengths, recipe.train.accumulate)
        record = Metrics(metrics, tensorboard, listener, done, steps_per_epoch)
        stop = StopOnSignal()
        early = StopEarly(recipe.train.patience, arguments.eval_steps)
        trainer = _trainer(
            order=order,
            pad_id=chat.pad_id,
            concatenated=recipe.train.batching == "packed",
            model=loaded.model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            eval_dataset=datasets.Dataset.from_list([_row(chat.encode(one)) for one in validation]),
            processing_class=AutoTokenizer.from_pretrained(base.path, local_files_only=True),
            peft_config=LoraConfig(
                r=recipe.lora.rank,
                lora_alpha=recipe.lora.alpha,
                lora_dropout=recipe.lora.dropout,
                target_modules=_targets(recipe),
                task_type="CAUSAL_LM",
            ),
            callbacks=[record, stop, Complete(), early],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        _keep_adapter_in_fp32(trainer.model)
        trainable, total = trainer.model.get_nb_trainable_parameters()
        for decision in loaded.decisions:
            tell(decision)
        if recipe.train.optimizer != "adamw":
            tell(f"optimizer: {arguments.optim.value}")
        tell(
            f"adapter of rank {recipe.lora.rank}: {trainable:,} parameters, "
            f"{trainable / total:.1%} of all; {steps} steps of "
            f"{recipe.train.batch_size * recipe.train.accumulate} examples"
        )
        record.peak_memory = peak_memory_bytes
        checkpoint = newest_checkpoint(checkpoints) if resume else None
        if checkpoint is not None and (ended := _ended(checkpoint, early, steps)):
            trainer.state = ended
            trainer._load_best_model()
        else:
            with stop:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    if stop.requested and state.global_step < steps:
        saved = newest_checkpoint(checkpoints)
        raise Interrupted(state.global_step, steps, saved or checkpoints)
    _save(trainer, adapter, base)
    best = state.best_global_step or state.global_step
    # Model, optimizer and callbacks point at each other; evaluation needs their memory.
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    return Fit(
        steps=state.global_step,
        planned_steps=steps,
        tokens=done[state.global_step],
        seconds=time.monotonic() - started,
        cpu_seconds=time.process_time() - cpu_started,
        best_step=best,
        best_validation_loss=state.best_metric,
        stopped_early=state.global_step < steps,
        trainable_parameters=trainable,
        base_parameters=total - trainable,
        peak_memory_bytes=peak_memory_bytes(),
        decisions=loaded.decisions,
        curve=tuple(record.rows),
    )


def _trainer(**options: Any) -> PlannedTrainer:
    """The trainer; what it refuses is the recipe's `extra`, for all else was checked before."""
    try:
        return PlannedTrainer(**options)
    except ValueError as error:
        raise UserError(f"TRL refuses it: {error}", where="extra", fix="leave it out") from error


def _ended(checkpoint: Path, early: StopEarly, steps: int) -> TrainerState | None:
    """The state of a checkpoint after which training has nothing left to do."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state if early.reached(state) or state.global_step >= steps else None


def _row(encoded: Encoded) -> dict[str, list[Any]]:
    labels = [
        token if scored else batches.IGNORED
        for token, scored in zip(encoded.input_ids, encoded.mask, strict=True)
    ]
    return {"input_ids": list(encoded.input_ids), "labels": labels}


def _weigh(
    rows: Sequence[dict[str, list[Any]]],
    encoded: Sequence[Encoded],
    closed: Sequence[Sequence[tuple[int, int]]],
    closed_weight: float,
) -> None:
    """Give each row the weights of its tokens; over all that have a label their mean is 1."""
    for row, one, spans in zip(rows, encoded, closed, strict=True):
        answer = [
            closed_weight if any(start <= at < end for start, end in spans) else 1.0
            for at in one.starts
        ]
        before = one.prompt_tokens
        after = len(one.mask) - before - len(answer)
        row[batches.WEIGHTS] = [0.0] * before + answer + [0.0] * after
    counted = sum(label != batches.IGNORED for row in rows for label in row["labels"])
    mean = sum(sum(row[batches.WEIGHTS]) for row in rows) / counted
    for row in rows:
        row[batches.WEIGHTS] = [weight / mean for weight in row[batches.WEIGHTS]]


def _targets(recipe: Recipe) -> str | list[str]:
    targets = recipe.lora.targets
    return targets if isinstance(targets, str) else list(targets)


def _every(value: float | int, steps_per_epoch: float) -> int:
    """`evaluate_every` in steps: a float is a share of an epoch, a whole number is steps."""
    return value if isinstance(value, int) else max(1, round(value * steps_per_epoch))


def _optimizer(name: str) -> str:
    """TRL's name of an optimizer; pages need a GPU whose memory they could leave."""
    if name == "paged-adamw-8bit" and not torch.cuda.is_available():
        name = "adamw-8bit"
    return _OPTIMIZERS[name]


def _arguments(
    recipe: Recipe, checkpoints: Path, steps: int, steps_per_epoch: float, compute: torch.dtype
) -> SFTConfig:
    train = recipe.train
    every = _every(train.evaluate_every, steps_per_epoch)
    options: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": train.batch_size,
        "per_device_eval_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulate,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": max(1, round(train.warmup * steps)) if train.warmup else 0,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": _optimizer(train.optimizer),
        "gradient_checkpointing": train.checkpointing,
        "seed": train.seed,
        "bf16": compute == torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "max_length": None,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": _LOG_EVERY,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": [],
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    clashes = sorted((set(options) | _RELIED_ON) & set(recipe.extra))
    if clashes:
        raise UserError(
            f"extra may not set {', '.join(clashes)}: llm-lora decides it, for exact resumption",
            where="extra",
            fix="use the recipe's own keys (train.batching, train.batch_size, …)",
        )
    try:
        config = SFTConfig(**options, **recipe.extra)
        # One process trains on one card; TRL refuses to start when more are merely visible.
        config._n_gpu = min(config.n_gpu, 1)
        return config
    except (TypeError, ValueError) as error:
        raise UserError(
            f"TRL's SFTConfig refuses it: {error}", where="extra", fix="see TRL's SFTConfig"
        ) from error


def _keep_adapter_in_fp32(model: Any) -> None:
    """Undo TRL's cast of LoRA weights to bf16: small updates would round to nothing.

    Under autocast the products are bf16 all the same, so it costs no speed.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _save(trainer: PlannedTrainer, adapter: Path, base: Base) -> None:
    """Write the adapter beside its place, make its configuration reproducible, move it there."""
    unfinished = adapter.with_name(f".{adapter.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with full_disk(adapter):
        trainer.model.save_pretrained(unfinished, safe_serialization=True)
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


def _quiet() -> None:
    """Silence what repeats itself or speaks to programmers; errors still come through."""
    datasets.disable_progress_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
