"""Layers of a recipe (the file, its parents, a profile, each --set) and their merging.

Reading does not stop at the first mistake: all of them are collected in `Layers.problems`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.errors import Problem, UserError
from llm_lora.recipe import yaml as yaml_source
from llm_lora.recipe.lora_scripts import Converted
from llm_lora.recipe.lora_scripts import reading as flat_recipe
from llm_lora.recipe.mistakes import show
from llm_lora.recipe.root import map_paths
from llm_lora.recipe.scalars import PROFILES
from llm_lora.recipe.yaml import KeyPath, Settings


@dataclass(frozen=True)
class Layer:
    """The settings from one source.

    Attributes:
        label: the file, or "--set key=value".
        settings: partial settings; null resets a setting of the layers below.
        folder: the folder that relative paths start from.
        lines: the line of every key in the file; None for --set.
        root: the path of these settings in the file, `("profiles", "cpu")` for a profile.
    """

    label: str
    settings: Settings
    folder: Path
    lines: Mapping[KeyPath, int] | None = None
    root: KeyPath = ()

    @property
    def prefix(self) -> str:
        """The prefix of setting names in messages, such as "profiles.cpu."."""
        return "".join(f"{part}." for part in self.root)

    def place(self, path: KeyPath) -> str:
        """The "file:line" of a key or value, or of the closest one that contains it."""
        if self.lines is None:
            return self.label
        whole = (*self.root, *path)
        near = next(whole[:end] for end in range(len(whole), -1, -1) if whole[:end] in self.lines)
        return f"{self.label}:{self.lines[near]}"

    def says(self, path: KeyPath) -> bool:
        """Whether this layer sets the setting."""
        value: Any = self.settings
        for part in path:
            if not isinstance(value, dict) or part not in value:
                return False
            value = value[part]
        return True


@dataclass
class Layers:
    """All layers of one recipe, farthest parent first, and the mistakes in them.

    `converted` lists its files that were written for lora-scripts.
    """

    path: Path
    files: list[Layer] = field(default_factory=list)
    profiles: dict[str, list[Layer]] = field(default_factory=dict)
    overrides: list[Layer] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    converted: list[Converted] = field(default_factory=list)
    whole: bool = True
    """False if a parent could not be read; missing settings are not reported then."""

    @property
    def names(self) -> tuple[str, ...]:
        """The profiles, smallest hardware first."""
        return tuple(name for name in PROFILES if name in self.profiles)

    def add(self, what: str, where: str, fix: str | None = None) -> None:
        """Record a mistake, once."""
        problem = Problem(what, where, fix)
        if problem not in self.problems:
            self.problems.append(problem)

    def all(self) -> list[Layer]:
        """Every layer, including those of profiles that are not chosen."""
        profiles = [layer for layers in self.profiles.values() for layer in layers]
        return [*self.files, *profiles, *self.overrides]

    def applied(self, profile: str | None, overrides: Iterable[Layer]) -> list[Layer]:
        """The layers that make one resolved recipe, lowest first."""
        return [*self.files, *self.profiles.get(profile or "", ()), *overrides]

    def merged(self, profile: str | None, overrides: Iterable[Layer]) -> Settings:
        """One resolved recipe as plain settings; paths are relative to the working directory."""
        settings: Settings = {}
        for layer in self.applied(profile, overrides):
            settings = _merge(settings, _anchored(layer))
        return settings | ({"profile": profile} if profile else {})


def read(path: Path, overrides: Iterable[str]) -> Layers:
    """Read a recipe file, its parents, its profiles and the --set texts.

    Raises:
        UserError: the file itself is missing, not text, not YAML or not a mapping.
    """
    layers = Layers(path)
    _read_file(layers, path, children=())
    _take_out_profiles(layers)
    for text in overrides:
        _read_override(layers, text)
    return layers


def _read_file(layers: Layers, path: Path, children: tuple[Path, ...]) -> None:
    """Read a file after the files that it extends."""
    label = str(path)
    source = yaml_source.parse(_text(path), label)
    layers.problems.extend(source.problems)
    if not isinstance(source.data, dict):
        what = "the file is empty" if source.data is None else f"this is {show(source.data)}"
        raise UserError(what, where=f"{label}:1", fix='a recipe consists of "key: value" lines')
    layer = Layer(label, source.data, path.parent, source.lines)
    parent = layer.settings.pop("extends", None)
    place = layer.place(("extends",))
    if isinstance(parent, str) and parent:
        target = Path(os.path.normpath(path.parent / Path(parent).expanduser()))
        _read_parent(layers, target, place, (*children, path))
    elif parent is not None:
        layers.add(f"extends must be a path, not {show(parent)}", place)
    if flat_recipe.is_flat(source.data):
        inherited = next((one.settings.get("task") for one in reversed(layers.files)), None)
        converted = flat_recipe.convert(source, label, inherited)
        layers.problems.extend(converted.problems)
        layers.converted.append(converted)
        # In lora-scripts, paths are relative to the working directory.
        layer = Layer(label, converted.settings, Path(), converted.lines)
    layers.files.append(layer)


def _read_parent(layers: Layers, path: Path, place: str, chain: tuple[Path, ...]) -> None:
    try:
        if any(path.absolute() == one.absolute() for one in chain):
            circle = " -> ".join(one.name for one in (*chain, path))
            raise UserError(
                f"extends forms a cycle: {circle}", where=place, fix="remove one of them"
            )
        if not path.is_file():
            raise UserError(f"extends: no such file: {path}", where=place, fix=_nearest_file(path))
        _read_file(layers, path, chain)
    except UserError as error:
        layers.problems.extend(error.problems)
        layers.whole = False


def _text(path: Path) -> str:
    if path.is_file():
        return files.read_text(path)
    if path.is_dir():
        raise UserError("this is a folder", where=str(path), fix=_nearest_file(path / path.name))
    raise UserError("no such file", where=str(path), fix=_nearest_file(path))


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    found = sorted(one for one in folder.iterdir() if one.suffix in (".yaml", ".yml"))
    near = difflib.get_close_matches(path.stem, [one.stem for one in found], n=1)
    if near:
        return f"did you mean {next(one for one in found if one.stem == near[0])}?"
    names = ", ".join(one.name for one in found[:8])
    return f"{folder} holds {names}" if names else f"{folder} holds no YAML file"


def _take_out_profiles(layers: Layers) -> None:
    resolved = len(layers.files) == 1 and "profiles" not in layers.files[0].settings
    for layer in layers.files:
        block = layer.settings.pop("profiles", None)
        if isinstance(block, dict):
            for name, settings in block.items():
                _take_out_profile(layers, layer, name, settings)
        elif block is not None:
            what = f"profiles must be a block of settings, not {show(block)}"
            layers.add(what, layer.place(("profiles",)), "indent hardware classes below it: cpu:")
        # Only a resolved recipe, one that llm-lora wrote, records a profile.
        if not resolved and layer.settings.pop("profile", None) is not None:
            fix = "remove it and choose with --profile"
            layers.add("profile is set by llm-lora only", layer.place(("profile",)), fix)


def _take_out_profile(layers: Layers, layer: Layer, name: str, settings: object) -> None:
    root: KeyPath = ("profiles", name)
    place = layer.place(root)
    if name not in PROFILES:
        # A high cutoff, because gpu-10gb is not a misspelling of gpu-80gb.
        spelled = name.lower().replace("_", "-")
        near = difflib.get_close_matches(spelled, PROFILES, n=1, cutoff=0.9)
        fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(PROFILES)}"
        layers.add(f"profiles.{name} is not a hardware class", place, fix)
    elif isinstance(settings, dict):
        known = layers.profiles.setdefault(name, [])
        known.append(Layer(layer.label, settings, layer.folder, layer.lines, root))
    elif settings is None:  # As everywhere, null resets what a parent set.
        layers.profiles[name] = [Layer(layer.label, {}, layer.folder, layer.lines, root)]
    else:
        what = f"profiles.{name} must be a block of settings, not {show(settings)}"
        layers.add(what, place, "indent its settings below it")


def _read_override(layers: Layers, text: str) -> None:
    label = f"--set {text}"
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        layers.add("this is not key=value", label, "write it like --set lora.rank=32")
        return
    if parts[0] in ("extends", "profiles", "profile"):
        fix = "set the setting itself" if parts[0] == "profiles" else "choose with --profile"
        layers.add(f"{parts[0]} cannot be set here", label, fix)
        return
    try:
        source = yaml_source.parse(value, label)
        problems = source.problems
    except UserError as error:
        source, problems = None, error.problems
    for problem in problems:
        layers.add(problem.what, label, problem.fix)
    if source is not None:
        settings: Any = source.data
        for part in reversed(parts):
            settings = {part: settings}
        layers.overrides.append(Layer(label, settings, Path()))


def _merge(below: Settings, above: Settings, is_extra: bool = False) -> Settings:
    """Deep merge: blocks are joined, other values are replaced, null resets a setting.

    In `extra`, whose settings belong to the trainer, null is an ordinary value.
    """
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict):
            under = merged.get(key)
            merged[key] = _merge(
                under if isinstance(under, dict) else {}, value, is_extra or key == "extra"
            )
        elif value is None and not is_extra:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _anchored(layer: Layer) -> Settings:
    """A layer's settings with paths relative to the working directory, if they are below it.

    Relative paths keep messages short and home directories out of reports.
    """
    here = Path.cwd()

    def anchor(path: str) -> str:
        if not path:
            return path
        whole = Path(os.path.normpath(here / layer.folder / Path(path).expanduser()))
        return f"./{whole.relative_to(here)}" if whole.is_relative_to(here) else str(whole)

    return map_paths(layer.settings, anchor)
