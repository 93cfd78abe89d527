"""The text engine: QLoRA with TRL's SFTTrainer and PEFT on a bitsandbytes NF4 base."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig

from llm_lora.base import Base, Chat, Encoded
from llm_lora.data.text import Course, weigh
from llm_lora.engines.shared import (
    Complete,
    Metrics,
    StopEarly,
    StopOnSignal,
    free_memory,
    full_disk,
    load_base,
    newest_checkpoint,
    out_of_memory,
    peak_memory_bytes,
)
from llm_lora.engines.text import batches, tuning
from llm_lora.engines.text.answers import Answerer, Sampling
from llm_lora.engines.text.comparing import Form, compare
from llm_lora.engines.text.merging import merge
from llm_lora.engines.text.preferring import prefer
from llm_lora.engines.text.served_ids import require_allowed_start, require_served_ids
from llm_lora.engines.text.trainer import PlannedTrainer
from llm_lora.errors import UserError
from llm_lora.example import Example
from llm_lora.progress import Fit, Interrupted, Listener, silent
from llm_lora.recipe.text import Recipe
from llm_lora.run import Places
from llm_lora.schema import AnswerSchema

__all__ = [
    "Answerer",
    "Form",
    "Sampling",
    "compare",
    "fit",
    "merge",
    "peak_memory_bytes",
    "prefer",
    "reinforce",
    "require_served_ids",
]

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
"""Arguments that exact resumption, the planned order and the CPU loss rely on."""


def fit(
    recipe: Recipe,
    train: Sequence[Example],
    validation: Sequence[Example],
    base: Base,
    chat: Chat,
    places: Places,
    *,
    schema: AnswerSchema | None = None,
    resume: bool = False,
    listener: Listener = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Train a LoRA adapter and write it to `places.adapter`.

    Args:
        recipe: all settings except paths.
        train, validation: checked examples; validation decides when to stop and what is best.
        base, chat: the frozen model and its tokenizer with template.
        places: where to write.
        schema: determines which values are closed, if the recipe weights them.
        resume: continue from the newest complete checkpoint.
        listener: receives progress.
        tell: receives every decision, as a sentence, before training begins.

    Raises:
        Interrupted: the user pressed Ctrl-C; a checkpoint was saved.
        UserError: the server would build other token ids, out of memory, a NaN loss, or an `extra`
            key that TRL refuses.
    """
    tuning.quiet()
    require_served_ids(base, chat, (*train, *validation))
    started, cpu_started = time.monotonic(), time.process_time()
    encoded = [chat.encode(example) for example in train]
    if schema is not None:
        require_allowed_start(
            chat,
            schema,
            encoded,
            tell,
            forced_weight=recipe.train.forced_weight,
            validation_loss=recipe.train.validation_loss,
        )
    rows = [_row(one) for one in encoded]
    if schema is not None and (recipe.train.closed_weight, recipe.train.forced_weight) != (1, 1):
        weights = weigh(
            train,
            encoded,
            chat,
            schema,
            closed=recipe.train.closed_weight,
            forced=recipe.train.forced_weight,
        )
        for row, one in zip(rows, weights, strict=True):
            row[batches.WEIGHTS] = one
    lengths = [len(row["input_ids"]) for row in rows]
    order = batches.plan(
        lengths,
        epochs=recipe.train.epochs,
        batch_size=recipe.train.batch_size,
        grouped=recipe.train.batching == "grouped",
        seed=recipe.train.seed,
    )
    micro_per_epoch = -(-len(rows) // recipe.train.batch_size)
    # Rounded up: the last step may accumulate fewer batches.
    steps = -(-len(order) // recipe.train.accumulate)
    if recipe.train.max_steps is not None:
        steps = min(steps, recipe.train.max_steps)
    order = order[: steps * recipe.train.accumulate]
    steps_per_epoch = micro_per_epoch / recipe.train.accumulate

    with out_of_memory(), full_disk(places.checkpoints):
        loaded = load_base(base, bits=recipe.lora.bits, precision=recipe.train.precision)
        arguments = _arguments(recipe, places.checkpoints, steps, steps_per_epoch, loaded.compute)
        done = batches.tokens_after(order, lengths, recipe.train.accumulate)
        record = Metrics(places, listener, done, steps_per_epoch)
        stop = StopOnSignal()
        early = StopEarly(recipe.train.patience, arguments.eval_steps)
        trainer = _trainer(
            order=order,
            pad_id=chat.pad_id,
            concatenated=recipe.train.batching == "packed",
            course=_course(recipe, schema, chat),
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
        tuning.keep_adapter_in_fp32(trainer.model)
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
        checkpoint = newest_checkpoint(places.checkpoints) if resume else None
        # After a kill between the last checkpoint and `tuning.save`, only saving is left to do.
        if checkpoint is not None and (ended := tuning.ended(checkpoint, steps, early)):
            trainer.state = ended
            trainer._load_best_model()
        else:
            with stop:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    if stop.requested and state.global_step < steps:
        saved = newest_checkpoint(places.checkpoints)
        raise Interrupted(state.global_step, steps, saved or places.checkpoints)
    tuning.save(trainer.model, places.adapter, base)
    best = state.best_global_step or state.global_step
    # Model, optimizer and callbacks form reference cycles; evaluation needs their memory.
    del trainer
    free_memory()
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


def reinforce(*arguments: Any, **options: Any) -> Fit:
    """Call `rewarding.reinforce`; its import of vLLM takes seconds that other methods avoid."""
    with warnings.catch_warnings():
        # TRL warns about vLLM versions it was not tested with; its vLLM support is not used.
        warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
        from llm_lora.engines.text import rewarding
    return rewarding.reinforce(*arguments, **options)


def _trainer(**options: Any) -> PlannedTrainer:
    """The trainer; it can only refuse the recipe's `extra`: all else was checked before."""
    try:
        return PlannedTrainer(**options)
    except ValueError as error:
        raise UserError(f"TRL refuses it: {error}", where="extra", fix="leave it out") from error


def _row(encoded: Encoded) -> batches.Row:
    labels = [
        token if scored else batches.IGNORED
        for token, scored in zip(encoded.input_ids, encoded.mask, strict=True)
    ]
    return {"input_ids": list(encoded.input_ids), "labels": labels}


def _course(recipe: Recipe, schema: AnswerSchema | None, chat: Chat) -> Course | None:
    if schema is None or recipe.train.validation_loss == "free":
        return None
    return Course(schema, chat)


def _targets(recipe: Recipe) -> str | list[str]:
    targets = recipe.lora.targets
    return targets if isinstance(targets, str) else list(targets)


def _every(value: float | int, steps_per_epoch: float) -> int:
    """`evaluate_every` in steps: a float is a share of an epoch, a whole number is steps."""
    return value if isinstance(value, int) else max(1, round(value * steps_per_epoch))


def _arguments(
    recipe: Recipe, checkpoints: Path, steps: int, steps_per_epoch: float, compute: torch.dtype
) -> SFTConfig:
    train = recipe.train
    options = tuning.options(
        recipe,
        checkpoints,
        steps=steps,
        save_every=_every(train.evaluate_every, steps_per_epoch),
        learning_rate=train.learning_rate,
        compute=compute,
    )
    options |= {
        "per_device_eval_batch_size": train.batch_size,
        "max_length": None,
        "eval_strategy": "steps",
        "eval_steps": options["save_steps"],
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
    clashes = sorted((set(options) | _RELIED_ON) & set(recipe.extra))
    if clashes:
        raise UserError(
            f"extra may not set {', '.join(clashes)}: llm-lora sets it, for exact resumption",
            where="extra",
            fix="use the recipe's own keys (train.batching, train.batch_size, …)",
        )
    try:
        return tuning.on_one_card(SFTConfig(**options, **recipe.extra))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"TRL's SFTConfig refuses it: {error}", where="extra", fix="see TRL's SFTConfig"
        ) from error
