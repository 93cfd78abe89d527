"""The text task: contents of its adapters, and evaluation on held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_lora import engines, files, versions
from llm_lora.adapter import Adapter, Manifest, Origin
from llm_lora.adapter import folder as adapters
from llm_lora.base import Chat
from llm_lora.base import text as bases
from llm_lora.data.text import Dataset
from llm_lora.example import Answer, Message
from llm_lora.progress import Fit, Watcher
from llm_lora.recipe.text import Recipe
from llm_lora.report import BaseIdentity, RecipeIdentity
from llm_lora.report.text import FORMS, AdapterIdentity, Decoding, TextReport, compare
from llm_lora.report.text import building as report
from llm_lora.run import Run
from llm_lora.schema import AnswerSchema
from llm_lora.store import suggest_name
from llm_lora.tasks.reopening import recipe_of, schema_of
from llm_lora.tasks.text import rivals, timing
from llm_lora.tasks.text.learning import learn
from llm_lora.tasks.text.prepared import Prepared, max_new_tokens, prepare

__all__ = [
    "Prepared",
    "compare",
    "evaluate",
    "learn",
    "max_new_tokens",
    "prepare",
    "reopen",
    "seal",
]

Prompts = Sequence[tuple[Message, ...]]


def seal(prepared: Prepared, here: Run, scores: dict[str, Any] | None = None) -> Adapter:
    """Complete the adapter folder with all files that serving needs, and verify it from disk."""
    recipe, base, chat, schema = (
        prepared.recipe,
        prepared.base,
        prepared.chat,
        prepared.schema,
    )
    if schema is not None:
        files.write_text(here.adapter / adapters.SCHEMA, schema.text)
    files.write_text(here.adapter / adapters.TEMPLATE, chat.template)
    files.write_json(
        here.adapter / adapters.MANIFEST,
        Manifest(
            name=recipe.name,
            task=recipe.task,
            digest=adapters.digest(here.adapter),
            base=Origin(
                name=base.name,
                revision=base.revision,
                digest=base.digest,
                architecture=base.architecture,
                bits=recipe.lora.bits,
            ),
            schema_digest=schema.digest if schema else None,
            chat_template_digest=chat.template_digest,
            chat_template_options=chat.template_kwargs,
            system=recipe.data.system,
            sampling={
                "temperature": recipe.generate.temperature,
                "top_p": recipe.generate.top_p,
                "max_new_tokens": max_new_tokens(prepared),
            },
            dataset_fingerprint=prepared.dataset.fingerprint,
            recipe_digest=recipe.digest(),
            scores=scores,
            versions=versions.installed(),
        ).to_json(),
    )
    return adapters.read(here.adapter)


def evaluate(
    prepared: Prepared,
    here: Run,
    watch: Watcher,
    *,
    fit: Fit,
    started: float,
    store: Path = Path("store"),
) -> TextReport:
    """Answer the held-out prompts with base and adapter, free and constrained, and report.

    If the recipe sets `check.max_drop`, the live version of its name in `store` answers them too.

    Raises:
        UserError: the adapter is damaged or belongs to another base, or memory ran out.
    """
    recipe, schema = prepared.recipe, prepared.schema
    adapter = adapters.read(here.adapter)
    adapters.require_base(adapter, prepared.base)
    engine = engines.load(recipe.task)
    answerer = _answerer(engine, prepared, here.adapter, recipe.lora.bits)
    sampling = engine.Sampling(
        max_new_tokens=max_new_tokens(prepared),
        temperature=recipe.generate.temperature,
        top_p=recipe.generate.top_p,
        batch_size=recipe.generate.batch_size,
    )
    held_out = prepared.dataset.held_out
    prompts = [example.prompt for example in held_out]
    watch.stage("Answering held-out prompts")
    watch.say(f"{len(prompts)} prompts, at most {sampling.max_new_tokens} tokens each")

    def answer(model: str, who: Any, asked: Prompts, how: Any, fit_to: AnswerSchema | None) -> None:
        answers[model] = {}
        for form in FORMS if fit_to is not None else FORMS[:1]:
            watch.stage(f"{model}, {form}")
            answers[model][form] = who.answer(
                asked,
                how,
                schema=fit_to if form == "constrained" else None,
                base_only=model == "base",
                chances=schema is not None,
                seed=recipe.train.seed,
                listener=watch.progress,
            )

    answers: dict[str, dict[str, Sequence[Answer]]] = {}
    for model in ("adapter", "base"):
        answer(model, answerer, prompts, sampling, schema)
    latency = None
    if recipe.check.max_latency_ms is not None:
        watch.stage("Timing answers")
        alone = replace(sampling, batch_size=1)
        latency = timing.latency(
            lambda prompt: answerer.answer([prompt], alone, schema=schema), prompts
        )
    decoding = Decoding(**answerer.decoding()) if schema is not None else None
    answerer.close()
    rival = None
    if recipe.check.max_drop is not None:
        name = suggest_name(recipe.name)
        rival, opponent = rivals.find(store, name, prepared.base, prepared.chat)
        if opponent is not None:
            manifest = opponent.version.manifest
            answerer = _answerer(
                engine,
                prepared,
                opponent.version.folder,
                manifest.base.bits or recipe.lora.bits,
            )
            asked = opponent.prompts(held_out, recipe.data.system)
            how = replace(sampling, **manifest.sampling)
            answer("published", answerer, asked, how, opponent.schema)
            answerer.close()
    found = report.build(
        recipe=RecipeIdentity(recipe.name, recipe.digest(), recipe.profile),
        base=BaseIdentity(prepared.base.name, prepared.base.digest),
        adapter=AdapterIdentity(adapter.digest, adapter.rank, bits=recipe.lora.bits),
        schema=schema,
        held_out=held_out,
        answers=answers,
        gates=recipe.check.gates(),
        train=prepared.dataset.train,
        seconds=time.monotonic() - started,
        peak_memory_bytes=max(fit.peak_memory_bytes, engine.peak_memory_bytes()),
        tolerances=recipe.check.tolerance,
        rival=rival,
        latency=latency,
        decoding=decoding,
    )
    report.write(
        here.folder,
        found,
        schema=schema,
        held_out=held_out,
        answers=answers,
        curve=fit.curve,
        lengths=prepared.dataset.stats.tokens,
        tolerances=recipe.check.tolerance,
        closed_weight=recipe.train.closed_weight,
        forced_weight=recipe.train.forced_weight,
        constrained_loss=recipe.train.validation_loss == "constrained",
    )
    return found


def _answerer(engine: Any, prepared: Prepared, adapter: Path, bits: int) -> Any:
    return engine.Answerer(
        prepared.base,
        prepared.chat,
        adapter=adapter,
        bits=bits,
        precision=prepared.recipe.train.precision,
    )


def reopen(
    here: Run, *, otherwise: str = "name a run of a text recipe; llm-lora runs lists them"
) -> Prepared:
    """The inputs of a trained run, read from its own folder.

    Args:
        here: the run.
        otherwise: advice for a run of another task.

    Raises:
        UserError: training is not finished, the run is of another task, or the base or a file of
            the run is missing or changed.
    """
    other = "this run has task {task}, but this command is for text"
    recipe = recipe_of(here, Recipe, other=other, fix=otherwise)
    base = bases.resolve(recipe.base, recipe.revision)
    schema = schema_of(here.adapter)
    return Prepared(recipe, base, Chat.load(base.path), schema, Dataset.read(here.dataset))
