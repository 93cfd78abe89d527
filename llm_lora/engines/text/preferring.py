"""Preference training on top of a trained adapter: TRL's DPO on pairs of answers, and the parts
that it shares with GRPO (`rewarding`).

The reference for both is the adapter that they start from. The adapter of the last step is kept: no
validation loss says which one is best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import transformers
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from llm_lora.base import Base, Chat, Unencodable
from llm_lora.engines.shared import (
    Complete,
    Loaded,
    Metrics,
    StopOnSignal,
    free_memory,
    full_disk,
    load_base,
    newest_checkpoint,
    out_of_memory,
    peak_memory_bytes,
)
from llm_lora.engines.text import batches, tuning
from llm_lora.engines.text.trainer import planned_loader
from llm_lora.errors import UserError
from llm_lora.example import Example
from llm_lora.progress import Fit, Interrupted, Listener, silent
from llm_lora.recipe.text import Recipe
from llm_lora.run import Places
from llm_lora.scores import Pair


class Resumed:
    """Trainer mix-in for PEFT models with a reference adapter: resumes the trained adapter too.

    transformers loads the adapters in a checkpoint's subfolders (the reference), but then skips the
    adapter that is trained (5.19, `Trainer._load_from_checkpoint`).
    """

    model: Any

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter(self.model, Path(resume_from_checkpoint))


class _Pairwise(Resumed, DPOTrainer):
    """TRL's DPO over pairs of token ids, in a planned order."""

    def __init__(self, *, order: list[list[int]], **options: Any) -> None:
        self._order = order
        super().__init__(**options)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def get_train_dataloader(self) -> Any:
        return planned_loader(self, self._order)


def prefer(
    recipe: Recipe,
    examples: Sequence[Example],
    pairs: Sequence[Pair],
    base: Base,
    chat: Chat,
    places: Places,
    *,
    start: Path,
    resume: bool = False,
    listener: Listener = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Train an adapter further with DPO (arXiv 2305.18290), and write it to `places.adapter`.

    Args:
        recipe: `prefer` and `train` hold all settings except paths.
        examples: the training examples that pairs refer to by id.
        pairs: for a prompt, the chosen and the rejected answer.
        base, chat: the frozen model and its tokenizer with template.
        places: where to write.
        start: the adapter to start from; it is also the reference.
        resume: continue from the newest complete checkpoint.
        listener: receives progress.
        tell: receives every decision.

    Raises:
        Interrupted: the user pressed Ctrl-C; a checkpoint was saved.
        UserError: out of memory, a NaN loss, or no pair that can be encoded.
    """
    rows = _encoded(examples, pairs, chat, tell)
    lengths = [
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in rows
    ]
    train = recipe.train
    order = batches.plan(
        lengths,
        epochs=recipe.prefer.epochs,
        batch_size=train.batch_size,
        grouped=False,
        seed=train.seed,
    )
    steps = -(-len(order) // train.accumulate)
    tokens = batches.tokens_after(order, lengths, train.accumulate)

    def trainer(loaded: Loaded, options: tuning.Options) -> DPOTrainer:
        config = DPOConfig(**options, beta=recipe.prefer.beta, max_length=None)
        return _Pairwise(
            order=order,
            model=loaded.model,
            args=tuning.on_one_card(config),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(base.path, local_files_only=True),
        )

    tell(f"dpo on {len(rows)} pairs: {steps} steps")
    record = Metrics(places, listener, tokens, steps_per_epoch=steps / recipe.prefer.epochs)
    fit = go_on(recipe, base, places, trainer, record, start=start, resume=resume)
    return replace(fit, tokens=tokens[fit.steps])


def _encoded(
    examples: Sequence[Example],
    pairs: Sequence[Pair],
    chat: Chat,
    tell: Callable[[str], None],
) -> list[dict[str, list[int]]]:
    """The pairs as token ids, encoded as training answers are.

    Raises:
        UserError: none of them can be encoded.
    """
    by_id = {example.id: example for example in examples}
    rows = []
    for pair in pairs:
        example = by_id[pair.example]
        try:
            chosen = chat.encode(replace(example, answer=pair.chosen))
            rejected = chat.encode(replace(example, answer=pair.rejected))
        except Unencodable:
            continue
        prompt = chosen.prompt_tokens
        # A truncated answer had no end-of-turn token.
        end = prompt + chosen.answer_tokens, prompt + rejected.answer_tokens - (not pair.ended)
        rows.append(
            {
                "prompt_ids": chosen.input_ids[:prompt],
                "chosen_ids": chosen.input_ids[prompt : end[0]],
                "rejected_ids": rejected.input_ids[prompt : end[1]],
            }
        )
    rows = [row for row in rows if row["rejected_ids"]]
    if len(rows) < len(pairs):
        tell(f"{len(pairs) - len(rows)} pairs skipped: their answers could not be encoded")
    if not rows:
        raise UserError("none of the pairs can be encoded", where="prefer", fix="use method: sft")
    return rows


def go_on(
    recipe: Recipe,
    base: Base,
    places: Places,
    make: Callable[[Loaded, tuning.Options], Any],
    record: Metrics,
    *,
    start: Path,
    resume: bool,
) -> Fit:
    """Run a trainer, starting from the adapter `start`, and save the adapter.

    Args:
        make: makes the trainer from a model with adapter and transformers' arguments.
        record: of the training; it knows the number of steps.
    """
    tuning.quiet()
    started, cpu_started = time.monotonic(), time.process_time()
    steps = record.steps
    with out_of_memory(), full_disk(places.checkpoints):
        loaded = load_base(base, bits=recipe.lora.bits, precision=recipe.train.precision)
        model = PeftModel.from_pretrained(loaded.model, start, is_trainable=True)
        options = tuning.options(
            recipe,
            places.checkpoints,
            steps=steps,
            save_every=min(recipe.prefer.save_every, steps),
            learning_rate=recipe.prefer.learning_rate,
            compute=loaded.compute,
        )
        options["logging_steps"] = 1
        trainer = make(replace(loaded, model=model), options)
        trainer.remove_callback(transformers.PrinterCallback)
        _start_from(trainer.model, start, base)
        record.peak_memory = peak_memory_bytes
        stop = StopOnSignal()
        for callback in (record, stop, Complete()):
            trainer.add_callback(callback)
        trainable, total = model.get_nb_trainable_parameters()
        checkpoint = newest_checkpoint(places.checkpoints) if resume else None
        # After a kill between the last checkpoint and saving, only saving is left to do.
        if checkpoint is not None and (ended := tuning.ended(checkpoint, steps)):
            trainer.state = ended
            load_adapter(model, checkpoint)
        else:
            with stop:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    if stop.requested and state.global_step < steps:
        saved = newest_checkpoint(places.checkpoints)
        raise Interrupted(state.global_step, steps, saved or places.checkpoints)
    tuning.save(model, places.adapter, base)
    seen = state.num_input_tokens_seen
    # Model, optimizer and callbacks form reference cycles; evaluation needs their memory.
    del trainer, model
    free_memory()
    return Fit(
        steps=state.global_step,
        planned_steps=steps,
        tokens=int(seen),
        seconds=time.monotonic() - started,
        cpu_seconds=time.process_time() - cpu_started,
        best_step=state.global_step,
        best_validation_loss=None,
        stopped_early=False,
        trainable_parameters=trainable,
        base_parameters=total - trainable,
        peak_memory_bytes=peak_memory_bytes(),
        decisions=loaded.decisions,
        curve=tuple(record.rows),
    )


def load_adapter(model: Any, folder: Path, name: str = "default") -> None:
    """Load the weights of a saved adapter into the adapter `name` of a model."""
    weights = load_peft_weights(str(folder), device=str(model.device))
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _start_from(model: Any, start: Path, base: Base) -> None:
    """Load the weights of `start` into the adapter and, if TRL made one, its reference, in fp32.

    TRL casts them to bf16 first, which would round away the last updates.
    """
    for config in model.peft_config.values():
        # The adapter stores the base's name in the recipe; PEFT needs its folder.
        config.base_model_name_or_path = str(base.path)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    for name in model.peft_config:
        load_adapter(model, start, name)
