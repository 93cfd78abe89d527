"""The straight line: recipe → dataset → run → fit → adapter → answers → report → manifest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from llm_lora import adapter as adapters
from llm_lora import base as bases
from llm_lora import dataset as datasets
from llm_lora import engines, files, gates, report, rivals, run, timing, versions
from llm_lora.adapter import Adapter
from llm_lora.base import Base
from llm_lora.chat import Chat
from llm_lora.dataset import Dataset
from llm_lora.engines.events import Fit, Progress
from llm_lora.errors import UserError
from llm_lora.formats import Answer, Message
from llm_lora.names import suggest_name
from llm_lora.recipe import Recipe
from llm_lora.report import FORMS
from llm_lora.run import Run
from llm_lora.schema import AnswerSchema

_TOKENS_HEADROOM = 1.25

Prompts = Sequence[tuple[Message, ...]]


class Watcher(Protocol):
    """Whoever shows the pipeline's progress: the command line, or nobody."""

    def stage(self, title: str) -> None:
        """A new stage begins."""

    def say(self, text: str) -> None:
        """A decision or a fact worth a line."""

    def progress(self, progress: Progress) -> None:
        """Work goes on."""

    def checked(self, dataset: Dataset) -> None:
        """The dataset passed its check."""

    def began(self, here: Run) -> None:
        """The run's folder is there; from now on it can be resumed."""


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything that it names, read and checked."""

    recipe: Recipe
    base: Base
    chat: Chat
    schema: AnswerSchema | None
    dataset: Dataset


def prepare(recipe: Recipe) -> Prepared:
    """Read the base's tokenizer, the schema and the data, and check them; no heavy import.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    base = bases.resolve(recipe.base, recipe.revision)
    chat = Chat.load(base.path)
    path = recipe.data.answer_schema
    schema = AnswerSchema.load(path) if path is not None else None
    if schema is not None:
        check, where = recipe.check, f"{recipe.name} recipe"
        gates.require_fields(schema, [*check.fields], [*check.tolerance], where)
    return Prepared(recipe, base, chat, schema, datasets.prepare(recipe, schema, chat))


def train(
    recipe: Recipe,
    watch: Watcher,
    *,
    root: Path = Path("runs"),
    store: Path = Path("store"),
    resume: bool = False,
) -> Run:
    """Run the whole line; what an earlier, interrupted run has finished is not done again.

    Raises:
        Interrupted: the user stopped it; `resume=True` continues.
        UserError: a mistake in recipe, data or machine.
    """
    started = time.monotonic()
    watch.stage("Checking data")
    prepared = prepare(recipe)
    watch.checked(prepared.dataset)
    open_run = run.unfinished if resume else run.create
    here = open_run(root, recipe.name, recipe.to_yaml)
    with here.claimed():
        _begin(prepared, here)
        watch.began(here)

        watch.stage("Training")
        fit = _fit(prepared, here, watch, resume=resume)
        seal(prepared, here)
        evaluate(prepared, here, watch, fit=fit, started=started, store=store)
        here.become_latest()
    return here


def _begin(prepared: Prepared, here: Run) -> None:
    """Write the dataset and what the run works on; a resumed run must find the same.

    Raises:
        UserError: data, schema or base were changed since the run was interrupted.
    """
    schema = prepared.schema
    inputs = {
        "dataset": prepared.dataset.fingerprint,
        "schema": schema.digest if schema else None,
        "base": prepared.base.digest,
    }
    if here.inputs.is_file():
        before = here.read(here.inputs)
        changed = [name for name, digest in inputs.items() if before.get(name) != digest]
        if changed:
            raise UserError(
                f"changed since that run was interrupted: {', '.join(changed)}",
                where=str(here.folder),
                fix="undo the change, or start anew without --resume",
            )
        return
    prepared.dataset.write(here.dataset)
    files.write_json(here.inputs, inputs)


def _fit(prepared: Prepared, here: Run, watch: Watcher, *, resume: bool) -> Fit:
    if here.fit.is_file():
        watch.say("training was finished before; its adapter is used")
        return Fit.from_json(here.read(here.fit), here.fit)
    engine = engines.load(prepared.recipe.task)
    fit: Fit = engine.fit(
        prepared.recipe,
        prepared.dataset.train,
        prepared.dataset.validation,
        prepared.base,
        prepared.chat,
        schema=prepared.schema,
        adapter=here.adapter,
        checkpoints=here.checkpoints,
        metrics=here.metrics,
        tensorboard=here.folder / "tensorboard",
        resume=resume,
        listener=watch.progress,
        tell=watch.say,
    )
    files.write_json(here.fit, asdict(fit))
    return fit


def seal(prepared: Prepared, here: Run, scores: dict[str, Any] | None = None) -> Adapter:
    """Put into the adapter folder what serving it faithfully needs, then verify it from disk."""
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
        {
            "format": 1,
            "name": recipe.name,
            "task": recipe.task,
            "digest": adapters.digest(here.adapter),
            "base": {
                "name": base.name,
                "revision": base.revision,
                "digest": base.digest,
                "architecture": base.architecture,
                "bits": recipe.lora.bits,
            },
            "schema_digest": schema.digest if schema else None,
            "chat_template_digest": chat.template_digest,
            "chat_template_options": chat.template_kwargs,
            "system": recipe.data.system,
            "sampling": {
                "temperature": recipe.generate.temperature,
                "top_p": recipe.generate.top_p,
                "max_new_tokens": max_new_tokens(prepared),
            },
            "dataset_fingerprint": prepared.dataset.fingerprint,
            "recipe_digest": recipe.digest(),
            "scores": scores,
            "versions": versions.installed(),
        },
    )
    return adapters.read(here.adapter)


def max_new_tokens(prepared: Prepared) -> int:
    """The recipe's limit, or else what the longest training answer needs, with a quarter more."""
    if prepared.recipe.generate.max_new_tokens is not None:
        return prepared.recipe.generate.max_new_tokens
    answers = prepared.dataset.stats["tokens"]["answer"]
    longest = max(answers[: len(prepared.dataset.train)])
    return -(-int(longest * _TOKENS_HEADROOM) // 16) * 16


def evaluate(
    prepared: Prepared,
    here: Run,
    watch: Watcher,
    *,
    fit: Fit,
    started: float,
    store: Path = Path("store"),
) -> dict[str, Any]:
    """Answer the held-out prompts with base and adapter, free and constrained; report; finish.

    Where the recipe limits how far figures may drop, the version that is live under the recipe's
    name in `store` answers them as well.

    Returns:
        the document written to `report.json`.

    Raises:
        UserError: the adapter is damaged or belongs to another base, or memory ran out.
    """
    # While its files are renewed the run does not count as finished.
    here.manifest.unlink(missing_ok=True)
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
    decoding = answerer.decoding() if schema is not None else None
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
                manifest["base"].get("bits", recipe.lora.bits),
            )
            asked = opponent.prompts(held_out, recipe.data.system)
            how = replace(sampling, **manifest["sampling"])
            answer("published", answerer, asked, how, opponent.schema)
            answerer.close()
    document = report.build(
        recipe={"name": recipe.name, "digest": recipe.digest(), "profile": recipe.profile},
        base={"name": prepared.base.name, "digest": prepared.base.digest},
        adapter={"digest": adapter.digest, "rank": adapter.rank, "bits": recipe.lora.bits},
        schema=schema,
        held_out=held_out,
        answers=answers,
        gates=recipe.check.gates(),
        seconds=time.monotonic() - started,
        peak_memory_bytes=max(fit.peak_memory_bytes, engine.peak_memory_bytes()),
        tolerances=recipe.check.tolerance,
        rival=rival,
        latency=latency,
    )
    document["decoding"] = decoding
    report.write(
        here.folder,
        document,
        schema=schema,
        held_out=held_out,
        answers=answers,
        curve=fit.curve,
        lengths=prepared.dataset.stats["tokens"],
        tolerances=recipe.check.tolerance,
        closed_weight=recipe.train.closed_weight,
    )
    _finish(prepared, here, fit, document)
    shutil.rmtree(here.checkpoints, ignore_errors=True)
    return document


def _answerer(engine: Any, prepared: Prepared, adapter: Path, bits: int) -> Any:
    return engine.Answerer(
        prepared.base,
        prepared.chat,
        adapter=adapter,
        bits=bits,
        precision=prepared.recipe.train.precision,
    )


def _finish(prepared: Prepared, here: Run, fit: Fit, document: dict[str, Any]) -> None:
    """Write scores into the adapter's manifest, and then the run's manifest: finished."""
    adapter = seal(prepared, here, scores=headline(document))
    here.finish(
        {
            "format": 1,
            "name": prepared.recipe.name,
            "recipe_digest": prepared.recipe.digest(),
            "profile": prepared.recipe.profile,
            "seed": prepared.recipe.train.seed,
            "base": {"name": prepared.base.name, "digest": prepared.base.digest},
            "dataset_fingerprint": prepared.dataset.fingerprint,
            "adapter_digest": adapter.digest,
            "steps": fit.steps,
            "passed": document["passed"],
            "seconds": document["seconds"],
            "peak_memory_bytes": document["peak_memory_bytes"],
            "versions": versions.installed(),
            "files": {
                path.name: files.file_sha256(path)
                for path in (here.recipe, here.metrics, here.answers, here.report, here.page)
            },
        }
    )


def headline(document: dict[str, Any]) -> dict[str, Any]:
    """The few figures of a report that travel with the adapter: its own, over all held-out."""
    keys = ("n", "parsed", "schema_valid", "exact_match", "field_f1")
    return {
        form: {part: {key: block[key] for key in keys} for part, block in parts.items()}
        for form, parts in document["scores"]["adapter"].items()
    }


def reopen(here: Run, load: Callable[[Path], Recipe]) -> Prepared:
    """What a finished run was made from, read from its own folder.

    Raises:
        UserError: training is not finished, or the base or a file of the run is gone or changed.
    """
    here.read(here.fit)
    recipe = load(here.recipe)
    base = bases.resolve(recipe.base, recipe.revision)
    schema_path = here.adapter / adapters.SCHEMA
    schema = AnswerSchema.load(schema_path) if schema_path.is_file() else None
    if not here.dataset.is_dir():
        raise UserError("the run has no dataset folder", where=str(here.folder), fix="train again")
    return Prepared(recipe, base, Chat.load(base.path), schema, Dataset.read(here.dataset))
