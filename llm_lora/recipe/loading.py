"""Recipes: YAML files that describe a whole training run, read into one frozen value.

    defaults < extends < the file < its profile < --set

The setting `task` chooses the model of settings: `Recipe` (text) or `ImageRecipe`. Each layer is
checked on its own first, so that a mistake is reported where it was written even if another layer
overrides it. Then the layers are merged, and the result is checked under each profile for missing
and contradictory settings.

`python -m llm_lora.recipe` writes recipes/recipe.schema.json for editors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from llm_lora.errors import Problem, UserError
from llm_lora.recipe import layers as recipe_layers
from llm_lora.recipe.image import ImageRecipe
from llm_lora.recipe.layers import Layer, Layers
from llm_lora.recipe.mistakes import Checker, Mistake, Schema, dotted
from llm_lora.recipe.root import map_paths, written, yaml_text
from llm_lora.recipe.scalars import PROFILES
from llm_lora.recipe.text import Recipe
from llm_lora.recipe.yaml import Settings
from llm_lora.task import TASKS
from llm_lora.task import load as load_part

AnyRecipe: TypeAlias = Recipe | ImageRecipe
Pick = str | Callable[[tuple[str, ...]], str] | None


@cache
def _models() -> dict[str, type[AnyRecipe]]:
    """The model of each task's recipes."""
    return {name: load_part(task.recipe) for name, task in TASKS.items()}


@dataclass(frozen=True)
class Read:
    """A recipe, with what else a lora-scripts file says.

    Attributes:
        recipe: the resolved recipe.
        notes: how each key was converted.
        runs: the folder of runs, if the file names one.
        resume: the interrupted run to continue, if the file names a checkpoint of one.
    """

    recipe: AnyRecipe
    notes: tuple[str, ...] = ()
    runs: Path | None = None
    resume: Path | None = None


def load(path: Path, *, overrides: Sequence[str] = (), profile: Pick = None) -> AnyRecipe:
    """The recipe that `read` returns."""
    return read(path, overrides=overrides, profile=profile).recipe


def read(path: Path, *, overrides: Sequence[str] = (), profile: Pick = None) -> Read:
    """Read a recipe of any task, in llm-lora's or lora-scripts' format.

    Args:
        path: the YAML file.
        overrides: settings that override the file, each `key.of.setting=value` with the value
            in YAML; their paths are relative to the working directory.
        profile: the name of a profile of the recipe, or a function that picks one from its
            profiles (not called if it has none); None applies no profile.

    Raises:
        UserError: all mistakes in the file, its parents, its profiles and the overrides.
    """
    layers = recipe_layers.read(Path(path), overrides)
    model = _model(layers)
    meant = {name for layer in layers.all() for name in _check(layers, layer, model)}
    candidates: list[str | None] = [*layers.names]
    if profile is None or not candidates:
        candidates.insert(0, None)
    if layers.whole:
        _check_missing(layers, model, candidates, meant)
    chosen = _choose(layers, profile)
    if not layers.problems:
        _check_sense(layers, model, candidates, chosen)
    if layers.problems:
        raise UserError(_in_reading_order(layers, overrides))
    return Read(
        model.model_validate(_settings(layers, chosen, layers.overrides)),
        tuple(note for one in layers.converted for note in one.notes),
        next((one.output for one in reversed(layers.converted) if one.output), None),
        next((one.resume for one in reversed(layers.converted) if one.resume), None),
    )


def convert(path: Path, folder: Path) -> str:
    """A lora-scripts recipe as YAML in llm-lora's format, with its notes as comments.

    Args:
        path: the file.
        folder: the folder that the text will be saved in.

    Raises:
        UserError: a mistake that `read` reports, or the recipe is in llm-lora's format already.
    """
    notes = read(path, profile=lambda names: names[0]).notes
    if not notes:
        raise UserError(
            "this recipe is in llm-lora's format already", where=str(path), fix="train it"
        )
    settings = recipe_layers.read(path, ()).merged(None, ())
    settings = {"task": settings.pop("task"), "name": _name(path), **settings}
    text = yaml_text(map_paths(settings, lambda one: written(one, folder)))
    return "".join(f"# {note}\n" for note in notes) + text


def _model(layers: Layers) -> type[AnyRecipe]:
    """The model of the task that the recipe names, or else the one that it fits better."""
    named = next((task for layer in reversed(layers.files) if (task := _task(layer))), None)
    if named is not None:
        return _models()[named]

    def unfit(model: type[AnyRecipe]) -> int:
        checkers = ((Checker(model), layer.settings) for layer in layers.all())
        found = (one for checker, settings in checkers for one in checker.mistakes(settings))
        return sum(one.kind == "unknown" for one in found)

    return min(_models().values(), key=unfit)


def _task(layer: Layer) -> str | None:
    """The task that a layer names, if it exists."""
    named = layer.settings.get("task")
    return named if isinstance(named, str) and named in TASKS else None


def _check(layers: Layers, layer: Layer, model: type[AnyRecipe]) -> Iterator[str]:
    """Check one layer: missing settings may come from others, and null means "the default".

    Yields the settings that misspelled keys probably stand for.
    """
    named = _task(layer)
    if named is not None and _models()[named] is not model:
        what = f"{layer.prefix}task is {named}, but {layers.path} is {model.CALLED}"
        layers.add(what, layer.place(("task",)), "use one task throughout")
        return
    is_file = not layer.root and layer.lines is not None
    checker = Checker(
        model,
        synonyms=model.SYNONYMS,
        others={other.CALLED: other for other in _models().values() if other is not model},
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


def _check_missing(
    layers: Layers,
    model: type[AnyRecipe],
    candidates: Iterable[str | None],
    meant: set[str],
) -> None:
    missing = {
        name: {
            mistake.path: mistake
            for mistake in Checker(model).mistakes(_settings(layers, name, layers.overrides))
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


def _check_sense(
    layers: Layers,
    model: type[AnyRecipe],
    candidates: list[str | None],
    chosen: str | None,
) -> None:
    """Check that the settings go together, under each profile."""
    found: dict[tuple[str, str, str], list[str | None]] = {}
    for profile in candidates:
        overrides = layers.overrides if profile == chosen else []
        try:
            recipe = model.model_validate(_settings(layers, profile, overrides))
        except ValueError:
            continue  # Incomplete without the overrides, which apply to the chosen profile only.
        for path, what, fix in recipe.contradictions():
            said = [layer for layer in layers.applied(profile, overrides) if layer.says(path)]
            place = said[-1].place(path) if said else str(layers.path)
            found.setdefault((what, place, fix), []).append(profile)
    for (what, place, fix), profiles in found.items():
        everywhere = len(profiles) == len(candidates)
        names = "" if everywhere else f"in profile {', '.join(map(str, profiles))}: "
        layers.add(f"{names}{what}", place, fix)


def _settings(layers: Layers, profile: str | None, overrides: Iterable[Layer]) -> Settings:
    return {"name": _name(layers.path), **layers.merged(profile, overrides)}


def _name(path: Path) -> str:
    """The name of a recipe that does not set one: derived from its file name."""
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:64] or "recipe"


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


def json_schema() -> Schema:
    """The JSON Schema of a recipe file, for completion and checks in editors.

    Nothing is required, because a layer may be partial. Null is allowed everywhere, because it
    resets what a parent set. A layer that names no task may belong to any.
    """
    definitions: dict[str, Schema] = {}
    for model in _models().values():
        definitions |= _definitions(model)
    names = {task: {"$ref": f"#/$defs/{model.__name__}"} for task, model in _models().items()}
    chosen: Schema = {"anyOf": [*names.values()]}
    for task, definition in names.items():
        of_task = {"properties": {"task": {"const": task}}, "required": ["task"]}
        chosen = {"if": of_task, "then": definition, "else": chosen}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llm-lora recipe",
        "type": "object",
        **chosen,
        "$defs": definitions,
    }


def _definitions(model: type[AnyRecipe]) -> dict[str, Schema]:
    """The definitions of a recipe, its blocks and its profiles."""
    schema = model.model_json_schema()
    blocks = {name: _for_editors(block) for name, block in schema["$defs"].items()}
    settings = _for_editors(schema)["properties"]
    of_profile = {key: value for key, value in settings.items() if key != "profile"}
    name = f"{model.__name__}Profile"
    extends = {
        "type": "string",
        "description": "A parent recipe, relative to this file, whose settings are inherited. "
        "Blocks are merged, lists are replaced, and null resets a setting.",
    }
    profiles = {
        "type": ["object", "null"],
        "description": "Settings for a class of hardware, which override all others; --profile "
        "auto picks the largest that fits the machine.",
        "additionalProperties": False,
        "properties": {profile: {"$ref": f"#/$defs/{name}"} for profile in PROFILES},
    }
    return {
        **blocks,
        name: {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": of_profile,
        },
        model.__name__: {
            "type": "object",
            "additionalProperties": False,
            "properties": {"extends": extends, **settings, "profiles": profiles},
        },
    }


def _for_editors(schema: Any) -> Any:
    """A part of pydantic's schema without needless keywords, with null allowed for every key."""
    if isinstance(schema, list):
        return [_for_editors(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    noise = {"title", "required", "discriminator", "format"}
    # 1 is both a fraction and a number of steps, and oneOf refuses a value that fits both.
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


def _or_null(schema: Schema) -> Schema:
    about: Schema = {key: schema[key] for key in ("description", "default") if key in schema}
    value = {key: inner for key, inner in schema.items() if key not in about}
    options = value.get("anyOf", [value])
    if not any(option.get("type") == "null" for option in options):
        options = [*options, {"type": "null"}]
    return {**about, "anyOf": options}
