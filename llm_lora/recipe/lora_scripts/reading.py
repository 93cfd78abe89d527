"""Conversion of lora-scripts recipes, flat or in the sections data, model, training and output.

They are converted key by key before any check, so that every later message names a line of the
user's file. A key without a counterpart is refused with advice on what to do instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lora.errors import Problem
from llm_lora.recipe.lora_scripts import values
from llm_lora.recipe.lora_scripts.values import Unusable
from llm_lora.recipe.mistakes import show
from llm_lora.recipe.yaml import KeyPath, Settings, Source

SECTIONS = ("data", "model", "training", "output")

_MARKS = frozenset(
    "train_data_dir metadata_path base_model lora_rank task_type output_dir save_steps "
    "resume_from_checkpoint".split()
)
"""Keys that identify a flat recipe; an llm-lora recipe has none of them."""

_TASKS = {
    "image": "image text-to-image image-generation stable-diffusion sd image-to-text",
    "text": "text text-generation llm causal-lm",
}
_WRONG_NAME = "image-to-text"

_ALIASES = {
    "base": "base_model",
    "gradient_accumulation": "gradient_accumulation_steps",
    "image_size": "resolution",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "max_seq_length": "max_length",
    "model_name_or_path": "base_model",
    "network_alpha": "alpha",
    "network_dim": "lora_rank",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "optimizer_type": "optimizer",
    "per_device_train_batch_size": "batch_size",
    "pretrained_model_name_or_path": "base_model",
    "rank": "lora_rank",
    "train_batch_size": "batch_size",
    "trigger": "trigger_word",
}
"""Other names of the same key."""


_Rule = dict[str, tuple[str, values.Reader]]
"""For each task that supports a key: the setting it becomes, and the reader of its value."""


def _both(name: str, read: values.Reader = values.as_it_is) -> _Rule:
    return {"text": (name, read), "image": (name, read)}


def _text(name: str, read: values.Reader = values.as_it_is) -> _Rule:
    return {"text": (name, read)}


def _image(name: str, read: values.Reader = values.as_it_is) -> _Rule:
    return {"image": (name, read)}


_RULES: dict[str, _Rule] = {
    "alpha": _both("lora.alpha", values.number),
    "base_model": _text("base", values.text_base) | _image("base", values.image_base),
    "batch_size": _both("train.batch_size", values.number),
    "dropout": _both("lora.dropout", values.number),
    "epochs": _both("train.epochs", values.number),
    "gradient_accumulation_steps": _both("train.accumulate", values.number),
    "gradient_checkpointing": _both("train.checkpointing", values.switch),
    "learning_rate": _both("train.learning_rate", values.number),
    "lora_rank": _both("lora.rank", values.number),
    "lr_scheduler": _both("train.schedule", values.schedule),
    "max_length": _text("train.max_tokens", values.number),
    "max_train_steps": _both("train.max_steps", values.number),
    "metadata_path": _image("data.captions"),
    "min_snr_gamma": _image("train.min_snr", values.number),
    "mixed_precision": _both("train.precision", values.precision),
    "negative_prompt": _image("generate.negative_prompt"),
    "noise_offset": _image("train.noise_offset", values.number),
    "optimizer": _both("train.optimizer", values.optimizer),
    "output_name": _both("name", values.name),
    "reg_data_dir": _image("data.regularisation"),
    "resolution": _image("data.resolution", values.side),
    "save_steps": _text("train.evaluate_every", values.number)
    | _image("train.save_every", values.number),
    "seed": _both("train.seed", values.number),
    "system_prompt": _text("data.system"),
    "target_modules": _both("lora.targets", values.targets),
    "train_data_dir": _text("data.train", values.texts) | _image("data.train"),
    "train_text_encoder": _image("lora.text_encoder", values.switch),
    "trigger_word": _image("data.trigger"),
}

_STARTS = {"image": "train.start_from"}
"""The setting for weights to start from, for the tasks that support it."""

_WITHOUT = {
    "hard_negatives": "put similar pictures that are not of the subject, with captions of their "
    "own, into reg_data_dir, and what no picture should show into negative_prompt",
    "log_dir": "remove it: every run has its own folder tensorboard",
    "logging_dir": "remove it: every run has its own folder tensorboard",
    "lr_warmup_steps": "use train.warmup, a fraction of all steps, in an llm-lora recipe",
    "num_workers": "remove it: pictures and texts are encoded once, before training",
    "save_model_as": "remove it: adapters are always safetensors",
    "warmup_steps": "use train.warmup, a fraction of all steps, in an llm-lora recipe",
}
"""Keys without a counterpart, and what to do instead."""

_ORDER = ("task", "name", "base", "data", "lora", "train", "generate")
_REQUIRED = ("base", "data.train")
_MOST_RANK = 512
_CONVERT = "llm-lora recipe convert prints an llm-lora recipe to work from"


@dataclass(frozen=True)
class Converted:
    """A flat recipe as llm-lora settings.

    Attributes:
        settings: partial settings, with paths relative to the working directory.
        lines: the line that each resulting key comes from, and that of the root.
        notes: how each key was converted, a sentence each.
        problems: what cannot be converted.
        output: the folder of runs, if the recipe names one.
        resume: the run to continue, if the recipe names a checkpoint of one.
    """

    settings: Settings
    lines: dict[KeyPath, int]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]
    output: Path | None = None
    resume: Path | None = None


def is_flat(data: object) -> bool:
    """Whether this is a lora-scripts recipe rather than an llm-lora one, valid or not."""
    if not isinstance(data, dict) or "task" in data:
        return False
    sections = (data[name] for name in SECTIONS if isinstance(data.get(name), dict))
    return any(_MARKS & part.keys() for part in (data, *sections))


def convert(source: Source, label: str, inherited: str | None = None) -> Converted:
    """Convert a flat recipe to llm-lora settings.

    Args:
        source: the file, without its `extends`.
        label: the name of the file in messages.
        inherited: the task of the recipe that it extends.
    """
    return _Conversion(source, label, inherited).run()


@dataclass
class _Conversion:
    source: Source
    label: str
    inherited: str | None
    settings: Settings = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def run(self) -> Converted:
        found = self._collect()
        task = self._task(found)
        output = self._output(found)
        resume = self._resume(found, task)
        for key, (value, line) in found.items():
            self._convert(task, key, value, line)
        if self.inherited is None:
            self._complete()
        settings = {key: self.settings[key] for key in _ORDER if key in self.settings}
        lines = {(): self.source.lines[()], **self.lines}
        notes, problems = tuple(self.notes), tuple(self.problems)
        return Converted(settings, lines, notes, problems, output, resume)

    def _collect(self) -> dict[str, tuple[Any, int]]:
        """Every key under its common name, with value and line; reports contradictions."""
        found: dict[str, tuple[Any, int]] = {}
        for written, value, line in self._entries():
            key = written.lower().replace("-", "_")
            key = _ALIASES.get(key, key)
            if key not in found:
                found[key] = (value, line)
            elif found[key][0] != value:
                first, where = found[key]
                what = f"{written} is {show(value)}, but line {where} says {show(first)}"
                self._problem(what, line, "keep one")
        return found

    def _entries(self) -> Iterator[tuple[str, Any, int]]:
        lines = self.source.lines
        for key, value in self.source.data.items():
            if key in SECTIONS and isinstance(value, dict):
                for inner, one in value.items():
                    yield inner, one, lines[key, inner]
            elif key in SECTIONS and value is None:
                continue
            elif isinstance(value, dict):
                what = f"{key} is not a section of a lora-scripts recipe"
                self._problem(what, lines[(key,)], f"its sections are {', '.join(SECTIONS)}")
            else:
                yield key, value, lines[(key,)]

    def _task(self, found: dict[str, tuple[Any, int]]) -> str:
        value, line = found.pop("task_type", (None, 1))
        if value is None and self.inherited is not None:
            return self.inherited
        if value is None:
            self._put("task", "image", self.source.lines[()])
            self.notes.append("no task_type: task is image, the default of lora-scripts")
            return "image"
        said = str(value).lower().replace("_", "-")
        for task, names in _TASKS.items():
            if said in names.split():
                self._put("task", task, line)
                wrong = "; that is lora-scripts' name for generating pictures from text"
                self._note("task_type", "task", task, wrong if said == _WRONG_NAME else "")
                return task
        known = ", ".join(name for names in _TASKS.values() for name in names.split())
        self._problem(f"task_type {show(value)} is unknown", line, f"use one of {known}")
        self._put("task", "image", line)
        return "image"

    def _output(self, found: dict[str, tuple[Any, int]]) -> Path | None:
        value, line = found.pop("output_dir", (None, 1))
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            self._problem(f"output_dir must be a path, not {show(value)}", line, None)
            return None
        self.notes.append(f"output_dir → the folder of runs (--runs): {value}")
        return Path(value)

    def _resume(self, found: dict[str, tuple[Any, int]], task: str) -> Path | None:
        value, line = found.pop("resume_from_checkpoint", (None, 1))
        if value in (None, False, ""):
            return None
        try:
            run, weights = values.checkpoint(value)
            if weights is not None and task not in _STARTS:
                raise Unusable(
                    f"{weights} holds weights only, and text training cannot start from them",
                    "start a new training, or name a checkpoint of an interrupted run",
                )
        except Unusable as error:
            self._problem(f"resume_from_checkpoint: {error.what}", line, error.fix)
            return None
        if weights is not None:
            home = _STARTS[task]
            self._put(home, str(weights), line)
            more = "; without optimizer state, this is a new training from these weights"
            self._note("resume_from_checkpoint", home, str(weights), more)
        else:
            self.notes.append(f"resume_from_checkpoint → --resume: {run}")
        return run

    def _convert(self, task: str, key: str, value: Any, line: int) -> None:
        if key in _WITHOUT:
            self._problem(f"{key} has no counterpart here", line, _WITHOUT[key])
            return
        if key not in _RULES:
            near = difflib.get_close_matches(key, [*_RULES, *_ALIASES, *_MARKS], n=1, cutoff=0.75)
            fix = f"did you mean {near[0]}?" if near else _CONVERT
            self._problem(f"{key} is not a known key of lora-scripts", line, fix)
            return
        if task not in _RULES[key]:
            self._problem(f"{key} has no meaning for task {task}", line, "remove it")
            return
        home, reader = _RULES[key][task]
        if value is None:
            return
        try:
            read = reader(value)
        except Unusable as error:
            self._problem(f"{key}: {error.what}", line, error.fix)
            if home in _REQUIRED:  # Set anyway, so that it is not reported as missing as well.
                self._put(home, value, line)
            return
        for name, one in {home: read.value, **read.more}.items():
            self._put(name, one, line)
            self._note(key, name, one, read.said)

    def _complete(self) -> None:
        """Set a missing alpha to twice the rank, as lora-scripts advises."""
        lora = self.settings.get("lora", {})
        rank = lora.get("rank")
        if isinstance(rank, int) and 0 < rank <= _MOST_RANK and "alpha" not in lora:
            self._put("lora.alpha", 2 * rank, self.lines["lora", "rank"])
            self.notes.append(f"no alpha: lora.alpha is twice the rank, {2 * rank}")

    def _put(self, name: str, value: Any, line: int) -> None:
        block, _, key = name.rpartition(".")
        path: KeyPath = (block, key) if block else (key,)
        self.lines.setdefault(path[:1], line)
        self.lines[path] = line
        (self.settings.setdefault(block, {}) if block else self.settings)[key] = value

    def _note(self, key: str, name: str, value: object, said: str = "") -> None:
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        self.notes.append(f"{key} → {name}: {shown}{said}")

    def _problem(self, what: str, line: int, fix: str | None) -> None:
        self.problems.append(Problem(what, f"{self.label}:{line}", fix))
