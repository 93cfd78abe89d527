"""Recipes: YAML files that say everything about a training, read into one frozen value.

    defaults < extends < the file < its profile < --set

Every layer is checked alone, so a mistake is told where it was written even when another layer
hides it; then the layers are merged and the whole is checked for what is missing or contradicts
itself, under each profile.

`python -m llm_lora.recipe` writes recipes/recipe.schema.json for editors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_lora import files, recipe_layers
from llm_lora.errors import Problem, UserError
from llm_lora.mistakes import Checker, Mistake, dotted
from llm_lora.recipe_blocks import (
    CheckRecipe,
    DataRecipe,
    GenerateRecipe,
    LoraRecipe,
    PreferRecipe,
    TrainRecipe,
)
from llm_lora.recipe_layers import Layer, Layers
from llm_lora.recipe_types import PROFILES, Recipe
from llm_lora.yaml_source import KeyPath

__all__ = [
    "PROFILES",
    "CheckRecipe",
    "DataRecipe",
    "GenerateRecipe",
    "LoraRecipe",
    "PreferRecipe",
    "Recipe",
    "TrainRecipe",
    "json_schema",
    "load",
]

Pick = str | Callable[[tuple[str, ...]], str] | None

_SYNONYMS = {
    "early_stopping_patience": "train.patience",
    "eval_steps": "train.evaluate_every",
    "gradient_accumulation_steps": "train.accumulate",
    "gradient_checkpointing": "train.checkpointing",
    "load_in_4bit": "lora.bits",
    "lora_r": "lora.rank",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "max_length": "train.max_tokens",
    "max_seq_length": "train.max_tokens",
    "model": "base",
    "model_name_or_path": "base",
    "num_train_epochs": "train.epochs",
    "optim": "train.optimizer",
    "per_device_train_batch_size": "train.batch_size",
    "r": "lora.rank",
    "target_modules": "lora.targets",
    "warmup_ratio": "train.warmup",
}
"""What other trainers call our settings, for suggestions only."""


def load(path: Path, *, overrides: Sequence[str] = (), profile: Pick = None) -> Recipe:
    """Read a recipe.

    Args:
        path: the YAML file.
        overrides: settings that win over the file, each `key.of.setting=value` with the value
            in YAML; their paths are relative to the working directory.
        profile: the name of a profile of the recipe, or a function that picks one from the
            names it has (not called where it has none); None applies none.

    Raises:
        UserError: every mistake of the file, its parents, all its profiles and the overrides.
    """
    layers = recipe_layers.read(Path(path), overrides)
    meant = {name for layer in layers.all() for name in _check(layers, layer)}
    candidates: list[str | None] = [*layers.names]
    if profile is None or not candidates:
        candidates.insert(0, None)
    if layers.whole:
        _check_missing(layers, candidates, meant)
    chosen = _choose(layers, profile)
    if not layers.problems:
        _check_sense(layers, candidates, chosen)
    if layers.problems:
        raise UserError(_in_reading_order(layers, overrides))
    return Recipe.model_validate(_settings(layers, chosen, layers.overrides))


def _check(layers: Layers, layer: Layer) -> Iterator[str]:
    """Check a layer alone: what is missing may come from another, null says "the default".

    Yields the settings that misspelled keys were meant to be.
    """
    is_file = not layer.root and layer.lines is not None
    checker = Checker(
        Recipe,
        synonyms=_SYNONYMS,
        more=("extends", "profiles") if is_file else (),
        hidden=("profile",),
        prefix=layer.prefix,
    )
    settings = dict(layer.settings)
    if layer.root and settings.pop("profile", None) is not None:
        layers.add(f"{layer.prefix}profile is not a setting", layer.place(("profile",)))
    for mistake in checker.mistakes(settings):
        if mistake.kind != "missing" and not _is_reset(mistake, settings):
            layers.add(mistake.what, layer.place(mistake.path), mistake.fix)
            if mistake.meant:
                yield mistake.meant


def _is_reset(mistake: Mistake, settings: Any) -> bool:
    """Whether a value is refused only because it is null, outside of lists."""
    for part in mistake.path:
        settings = settings[part]
    return mistake.kind == "value" and settings is None and isinstance(mistake.path[-1], str)


def _check_missing(layers: Layers, candidates: Iterable[str | None], meant: set[str]) -> None:
    missing = {
        name: {
            mistake.path: mistake
            for mistake in Checker(Recipe).mistakes(_settings(layers, name, layers.overrides))
            if mistake.kind == "missing" and dotted(mistake.path) not in meant
        }
        for name in candidates
    }
    everywhere = set.intersection(*(set(found) for found in missing.values()))
    file = layers.files[-1]
    for name, found in missing.items():
        for path, mistake in found.items():
            if path in everywhere:
                layers.add(mistake.what, file.place(path), mistake.fix)
            elif name is None:
                fix = f"add it, or choose a profile: {', '.join(layers.names)}"
                layers.add(mistake.what, file.place(path), fix)
            else:
                what = f"{mistake.what} in profile {name}"
                fix = "add it there, or at the top for all profiles"
                layers.add(what, layers.profiles[name][-1].place(()), fix)


def _choose(layers: Layers, profile: Pick) -> str | None:
    names = layers.names
    if callable(profile):
        return profile(names) if names and not layers.problems else None
    if profile is None or profile in names:
        return profile
    if not names and profile == layers.files[-1].settings.get("profile"):
        return None  # A resolved recipe: the profile was applied when it was written.
    fix = f"it has {', '.join(names)}" if names else "it has no profiles at all"
    layers.add(f"no profile {profile} in this recipe", str(layers.path), fix)
    return None


def _check_sense(layers: Layers, candidates: list[str | None], chosen: str | None) -> None:
    """Check that the settings go together, under each profile."""
    found: dict[tuple[str, str, str], list[str | None]] = {}
    for profile in candidates:
        overrides = layers.overrides if profile == chosen else []
        try:
            recipe = Recipe.model_validate(_settings(layers, profile, overrides))
        except ValueError:
            continue  # Only an override completes it, and that is for the chosen profile.
        for path, what, fix in contradictions(recipe):
            said = [layer for layer in layers.applied(profile, overrides) if layer.says(path)]
            place = said[-1].place(path) if said else str(layers.path)
            found.setdefault((what, place, fix), []).append(profile)
    for (what, place, fix), profiles in found.items():
        everywhere = len(profiles) == len(candidates)
        names = "" if everywhere else f"in profile {', '.join(map(str, profiles))}: "
        layers.add(f"{names}{what}", place, fix)


def contradictions(recipe: Recipe) -> Iterator[tuple[KeyPath, str, str]]:
    """Settings that cannot hold together: (which to blame, what is wrong, what to do)."""
    data, train = recipe.data, recipe.train
    steps = train.evaluate_every
    if isinstance(steps, int) and train.max_steps is not None and steps > train.max_steps:
        yield (
            ("train", "evaluate_every"),
            f"train.evaluate_every is {steps} steps, but train.max_steps ends after "
            f"{train.max_steps}, so no checkpoint would be chosen",
            "lower train.evaluate_every",
        )
    if isinstance(data.held_out, float) and data.held_out + data.validation > 0.5:
        yield (
            ("data", "held_out"),
            f"data.held_out {data.held_out:g} and data.validation {data.validation:g} leave less "
            "than half of train to learn from",
            "lower one of them",
        )
    held_out = data.held_out if isinstance(data.held_out, tuple) else ()
    for path in sorted(set(data.train) & set(held_out)):
        yield (
            ("data", "held_out"),
            f"data.held_out and data.train both name {path}",
            "held-out examples must never be trained on: cut a share, such as held_out: 0.1",
        )
    for key, paths in (("train", data.train), ("held_out", held_out)):
        for path in sorted({one for one in paths if paths.count(one) > 1}):
            yield ("data", key), f"data.{key} names {path} twice", "keep one"
    if data.answer_schema is None:
        for key in ("schema_valid", "fields", "tolerance"):
            if getattr(recipe.check, key) not in (None, {}):
                yield (
                    ("check", key),
                    f"check.{key} needs data.schema, the schema to judge by",
                    f"set data.schema, or remove check.{key}",
                )
        needs = {
            "closed_weight": (train.closed_weight != 1, "which tells the closed values"),
            "forced_weight": (train.forced_weight != 1, "which forces tokens"),
            "validation_loss": (train.validation_loss != "free", "which constrains"),
            "method": (train.method != "sft", "by which answers are judged"),
        }
        for key, (used, why) in needs.items():
            if used:
                yield (
                    ("train", key),
                    f"train.{key} needs data.schema, {why}",
                    f"set data.schema, or remove train.{key}",
                )
    elif train.forced_weight == 0 and train.validation_loss == "free":
        yield (
            ("train", "forced_weight"),
            "train.forced_weight 0 teaches nothing of what the schema forces, and the free "
            "validation loss counts that: an early checkpoint would pass for the best",
            "set train.validation_loss to constrained",
        )
    if train.method == "grpo":
        yield from _grpo_contradictions(recipe)
    if recipe.profile == "cpu" and train.optimizer == "paged-adamw-8bit":
        yield (
            ("train", "optimizer"),
            "train.optimizer paged-adamw-8bit moves GPU memory, and there is no GPU",
            "use adamw",
        )


def _grpo_contradictions(recipe: Recipe) -> Iterator[tuple[KeyPath, str, str]]:
    step = recipe.train.batch_size * recipe.train.accumulate
    if step % recipe.prefer.samples:
        yield (
            ("prefer", "samples"),
            f"prefer.samples {recipe.prefer.samples} does not divide the {step} answers of a step, "
            "train.batch_size x train.accumulate; grpo compares all answers to a prompt in one",
            "set it to a divisor",
        )
    if recipe.prefer.constrained:
        yield (
            ("prefer", "constrained"),
            "prefer.constrained is for dpo; grpo needs the chances of its own free answers",
            "remove it, or set train.method to dpo",
        )


def _settings(layers: Layers, profile: str | None, overrides: Iterable[Layer]) -> dict[str, Any]:
    settings = layers.merged(profile, overrides)
    stem = re.sub(r"[^a-z0-9_-]+", "-", layers.path.stem.lower()).strip("-_")[:64]
    settings.setdefault("name", stem or "recipe")
    return settings


def _in_reading_order(layers: Layers, overrides: Iterable[str]) -> list[Problem]:
    """The file itself first, then its parents, from top to bottom in each; then --set."""
    files_read = [str(layers.path), *(layer.label for layer in reversed(layers.files))]
    labels = [*files_read, *(f"--set {text}" for text in overrides)]

    def order(problem: Problem) -> tuple[int, int]:
        where = re.sub(r"(:\d+):\d+$", r"\1", problem.where or "")
        label, _, line = where.rpartition(":")
        if label in labels and line.isdigit():
            return labels.index(label), int(line)
        return labels.index(where) if where in labels else len(labels), 0

    return sorted(layers.problems, key=order)


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors (yaml-language-server) to complete and check.

    Nothing is required in it, for any layer may be partial, and null is allowed everywhere, for
    it takes back what a parent said.
    """
    schema = Recipe.model_json_schema()
    blocks = {name: _for_editors(block) for name, block in schema["$defs"].items()}
    settings = _for_editors(schema)["properties"]
    of_profile = {key: value for key, value in settings.items() if key != "profile"}
    extends = {
        "type": "string",
        "description": "Another recipe, relative to this file; what it says holds unless said "
        "otherwise here. Blocks are merged, lists replaced, null takes back.",
    }
    profiles = {
        "type": ["object", "null"],
        "description": "Settings for a class of hardware, over all others; --profile auto picks "
        "the largest that fits the machine.",
        "additionalProperties": False,
        "properties": {name: {"$ref": "#/$defs/Profile"} for name in PROFILES},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llm-lora recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {"extends": extends, **settings, "profiles": profiles},
        "$defs": {
            **blocks,
            "Profile": {
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": of_profile,
            },
        },
    }


def _for_editors(schema: Any) -> Any:
    """A part of pydantic's schema without its noise, with null allowed as the value of a key."""
    if isinstance(schema, list):
        return [_for_editors(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    noise = {"title", "required", "discriminator", "format"}
    # 1 is both a share and a number of steps, and oneOf would refuse what fits both.
    clean = {
        {"oneOf": "anyOf"}.get(key, key): _for_editors(value)
        for key, value in schema.items()
        if key not in noise
        and not (key == "default" and (value is None or isinstance(value, dict)))
    }
    if "properties" in schema:
        clean["properties"] = {
            key: _or_null(_for_editors(value)) for key, value in schema["properties"].items()
        }
    return clean


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    about = {key: schema[key] for key in schema.keys() & {"description", "default"}}
    value = {key: inner for key, inner in schema.items() if key not in about}
    options = value.get("anyOf", [value])
    if not any(option.get("type") == "null" for option in options):
        options = [*options, {"type": "null"}]
    return {**about, "anyOf": options}


if __name__ == "__main__":
    target = Path(__file__).parent.parent / "recipes" / "recipe.schema.json"
    files.write_json(target, json_schema())
    print(f"wrote {target}")
