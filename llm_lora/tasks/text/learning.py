"""Training of a text adapter: supervised, then, if the recipe says so, on preferences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from llm_lora import engines, files
from llm_lora.errors import UserError
from llm_lora.example import Example
from llm_lora.progress import Fit, Watcher
from llm_lora.run import Places, Run
from llm_lora.schema import AnswerSchema
from llm_lora.scores import Pair, preference
from llm_lora.tasks.text.prepared import Prepared, max_new_tokens


def learn(prepared: Prepared, here: Run, watch: Watcher, *, resume: bool) -> Fit:
    """Train the adapter of a run.

    Raises:
        Interrupted: the user stopped it.
        UserError: the engine cannot train it, or there is no pair to train on.
    """
    engine = engines.load(prepared.recipe.task)
    if prepared.recipe.train.method == "sft":
        return _supervise(engine, prepared, here.places, watch, resume=resume)
    return _with_preference(engine, prepared, here, watch, resume=resume)


def _supervise(
    engine: Any, prepared: Prepared, places: Places, watch: Watcher, *, resume: bool
) -> Fit:
    fit: Fit = engine.fit(
        prepared.recipe,
        prepared.dataset.train,
        prepared.dataset.validation,
        prepared.base,
        prepared.chat,
        places,
        schema=prepared.schema,
        resume=resume,
        listener=watch.progress,
        tell=watch.say,
    )
    return fit


def _with_preference(
    engine: Any, prepared: Prepared, here: Run, watch: Watcher, *, resume: bool
) -> Fit:
    """Supervised training, then dpo or grpo starting from its adapter.

    The end of each stage is recorded in a file, so that a resumed run skips finished stages.
    """
    schema = prepared.schema
    assert schema is not None, "the recipe's own check"
    recipe = prepared.recipe
    if here.supervised_fit.is_file():
        watch.say("supervised training had finished already; using its adapter")
        first = Fit.from_json(here.read(here.supervised_fit), here.supervised_fit)
    else:
        places = replace(here.places, adapter=here.supervised)
        first = _supervise(engine, prepared, places, watch, resume=resume)
        files.write_json(here.supervised_fit, asdict(first))
    examples = preference.some(prepared.dataset.train, recipe.prefer.prompts, recipe.train.seed)
    places = replace(
        here.places,
        checkpoints=here.checkpoints / recipe.train.method,
        metrics=here.preference_metrics,
        tensorboard=here.tensorboard / recipe.train.method,
    )
    common = {
        "start": here.supervised,
        "resume": resume,
        "listener": watch.progress,
        "tell": watch.say,
    }
    second: Fit
    if recipe.train.method == "dpo":
        found = _pairs(engine, prepared, schema, examples, here, watch)
        watch.stage("Learning from pairs")
        second = engine.prefer(
            recipe, examples, found, prepared.base, prepared.chat, places, **common
        )
    else:
        watch.stage("Learning from rewards")
        second = engine.reinforce(
            recipe,
            examples,
            schema,
            prepared.base,
            prepared.chat,
            places,
            max_new_tokens=max_new_tokens(prepared),
            **common,
        )
    return replace(
        first,
        steps=first.steps + second.steps,
        planned_steps=first.planned_steps + second.planned_steps,
        tokens=first.tokens + second.tokens,
        seconds=first.seconds + second.seconds,
        cpu_seconds=first.cpu_seconds + second.cpu_seconds,
        best_step=first.steps + second.steps,
        peak_memory_bytes=max(first.peak_memory_bytes, second.peak_memory_bytes),
    )


def _pairs(
    engine: Any,
    prepared: Prepared,
    schema: AnswerSchema,
    examples: Sequence[Example],
    here: Run,
    watch: Watcher,
) -> list[Pair]:
    """The pairs of a run: sampled, judged and saved, or read if an earlier attempt saved them.

    Raises:
        UserError: no two answers differ enough.
    """
    prefer = prepared.recipe.prefer
    if here.pairs.is_file():
        rows = map(json.loads, files.read_text(here.pairs).splitlines())
        return [Pair.from_dict(row) for row in rows]
    watch.stage("Answering training prompts")
    answerer = engine.Answerer(
        prepared.base,
        prepared.chat,
        adapter=here.supervised,
        bits=prepared.recipe.lora.bits,
        precision=prepared.recipe.train.precision,
    )
    answers = answerer.answer(
        [example.prompt for example in examples for _ in range(prefer.samples)],
        engine.Sampling(
            max_new_tokens=max_new_tokens(prepared),
            temperature=prefer.temperature,
            batch_size=prepared.recipe.generate.batch_size,
        ),
        schema=schema if prefer.constrained else None,
        seed=prepared.recipe.train.seed,
        listener=watch.progress,
    )
    answerer.close()
    drawn = [answers[i : i + prefer.samples] for i in range(0, len(answers), prefer.samples)]
    found = preference.pairs(schema, examples, drawn, chosen=prefer.chosen, margin=prefer.margin)
    if not found:
        raise UserError(
            f"no pair to train on: no answers to {len(examples)} prompts differ by "
            f"prefer.margin {prefer.margin:g}",
            where="prefer",
            fix="lower prefer.margin, raise prefer.temperature or prefer.samples, or train with "
            "method: sft",
        )
    watch.say(f"{len(found)} pairs from {len(answers)} answers to {len(examples)} prompts")
    files.write_jsonl(here.pairs, (pair.to_dict() for pair in found))
    return found
