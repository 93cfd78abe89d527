"""Mistakes that a settings model (pydantic) finds in plain data, as readable sentences.

The sentences are built from the model's JSON Schema, not from pydantic's wording, so that messages
explain a setting in the words that an editor shows for it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from llm_lora.recipe.yaml import KeyPath, Settings, scalar

Schema = dict[str, Any]
"""A JSON Schema."""

_SHOWN = 60

_SWITCHES = {"yes": "true", "y": "true", "on": "true", "no": "false", "n": "false", "off": "false"}
"""Words that are truth values in YAML 1.1 but not in YAML 1.2."""


@dataclass(frozen=True)
class Mistake:
    """One mistake: `path` leads to the key or value in the data.

    `meant` is the dotted name of the setting that an unknown key probably stands for.
    """

    path: KeyPath
    what: str
    fix: str | None = None
    kind: Literal["value", "missing", "unknown"] = "value"
    meant: str | None = None


@dataclass(frozen=True)
class Checker:
    """Checks plain data against a model.

    Attributes:
        model: the settings.
        synonyms: names in other tools, each with the dotted name here.
        others: models of other kinds, by a phrase for messages; their settings are recognised.
        more: top-level names that a user may write though the model does not have them.
        hidden: names of the model that a user does not write.
        prefix: put before every dotted name in messages ("profiles.cpu.").
    """

    model: type[BaseModel]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    prefix: str = ""

    def mistakes(self, data: Settings) -> list[Mistake]:
        """All mistakes, in the order of the model's checks."""
        try:
            self.model.model_validate(data)
        except ValidationError as error:
            schema = _schema_of(self.model)
            found = [
                self._mistake(one["type"], one["loc"], data, schema)
                for one in error.errors(include_url=False, include_context=False)
            ]
            # If an item of a list is reported, the list itself is not.
            around = {mistake.path[:-1] for mistake in found if mistake.kind == "value"}
            return [one for one in dict.fromkeys(found) if one.path not in around]
        return []

    def _mistake(
        self, kind: str, location: tuple[int | str, ...], data: Any, schema: Schema
    ) -> Mistake:
        absent = kind == "missing"
        path = _real_path(location[:-1] if absent else location, data)
        if absent:
            path = (*path, location[-1])
            summary = _at(schema, schema, path).get("description", "").split(". ")[0].rstrip(".")
            what = f"{self.prefix}{dotted(path)} is missing"
            fix = f"add {dotted(path)}: {summary[:1].lower()}{summary[1:]}"
            return Mistake(path, what, fix, kind="missing")
        if kind == "extra_forbidden":
            return self._unknown(path, schema)
        value = _value(data, path)
        expected = _at(schema, schema, path)
        return Mistake(
            path,
            f"{self.prefix}{dotted(path)} must be {describe(expected, schema)}, not "
            f"{_shown(value, expected)}",
            _hint(value, expected, schema),
        )

    def _unknown(self, path: KeyPath, schema: Schema) -> Mistake:
        name, parent = str(path[-1]), path[:-1]
        siblings = [
            dotted((*parent, key))
            for key in _resolved(_at(schema, schema, parent), schema).get("properties", {})
        ]
        known = [one for one in _names(schema, schema) if one not in self.hidden]
        if not parent:
            siblings = [one for one in siblings if one not in self.hidden] + list(self.more)
        wanted = name.lower().replace("-", "_")
        homes = [one for one in known if _last(one) == wanted]
        synonym = self.synonyms.get(wanted)
        other = next((kind for kind, model in self.others.items() if _has(model, path)), None)
        near = _nearest(wanted, siblings) or _nearest(wanted, known)
        if not near and (alike := _nearest(wanted, [*self.synonyms])):
            synonym = self.synonyms[alike]
        meant: str | None = None
        if dotted((*parent, wanted)) in siblings:
            meant = dotted((*parent, wanted))
            fix = f"did you mean {meant}?"
        elif other:
            fix = f"it belongs to {other}"
        elif homes:
            meant = homes[0]
            blocks = [home.rpartition(".")[0] for home in homes]
            fix = "it belongs " + " or ".join(
                f"under {one}:" if one else "at the top" for one in blocks
            )
        elif synonym:
            meant = synonym
            fix = f"it is called {synonym} here"
        elif near:
            meant = near
            fix = f"did you mean {near}?"
        else:
            where = f"{dotted(parent)} has" if parent else "the settings are"
            fix = f"{where} {', '.join(map(_last, siblings))}"
        what = f"{self.prefix}{dotted(path)} is not a setting"
        return Mistake(path, what, fix, kind="unknown", meant=meant)


def _has(model: type[BaseModel], path: KeyPath) -> bool:
    schema = _schema_of(model)
    return dotted(path) in _names(schema, schema)


@cache
def _schema_of(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def dotted(path: KeyPath) -> str:
    """A path in dotted form.

    >>> dotted(("data", "train", 0))
    'data.train[0]'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def show(value: object) -> str:
    """A short form of a value, close to what the user wrote."""
    if isinstance(value, dict):
        return "a block of settings" if value else "an empty block"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def describe(schema: Schema, root: Schema) -> str:
    """The kind of value that a schema requires, as a noun phrase."""
    schema = _resolved(schema, root)
    if "patternErrorMessage" in schema:
        return str(schema["patternErrorMessage"])
    if options := _options(schema):
        return _either([describe(option, root) for option in options])
    if "const" in schema or "enum" in schema:
        return _either([show(value) for value in schema.get("enum", [schema.get("const")])])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        step = f", a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
        return ("a whole number" if kind == "integer" else "a number") + _bounds(schema) + step
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        items = _resolved(schema.get("items", {}), root)
        if items.get("type") == "number":
            return f"a list of {_count(schema)}numbers"
        return "a list of paths" if items.get("format") == "path" else "a list of text"
    if kind == "string":
        words = "non-empty text" if schema.get("minLength") else "text"
        return "a path" if schema.get("format") == "path" else words
    return "a block of settings" if kind == "object" else "a value"


def _count(schema: Schema) -> str:
    """The number of items that a list may have, if it is limited."""
    if "maxItems" not in schema:
        return ""
    return f"{schema.get('minItems', 0)} to {schema['maxItems']} "


def _shown(value: object, expected: Schema) -> str:
    """A refused value; a list of the wrong length is described by its length."""
    if isinstance(value, list) and value and expected.get("type") == "array":
        return f"one of {len(value)}"
    return show(value)


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _bounds(schema: Schema) -> str:
    bounds = {
        key: f"{bound:g}" if abs(bound) < 1e5 else str(int(bound))
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        if (bound := schema.get(key)) is not None
    }
    match bounds:
        case {"minimum": low, "maximum": high}:
            return f" from {low} to {high}"
        case {"minimum": low, "exclusiveMaximum": high}:
            return f" from {low} to below {high}"
        case {"exclusiveMinimum": low, "maximum": high}:
            return f" above {low} up to {high}"
        case {"exclusiveMinimum": low, "exclusiveMaximum": high}:
            return f" above {low} to below {high}"
        case {"minimum": low}:
            return f" of at least {low}"
        case {"exclusiveMinimum": low}:
            return f" above {low}"
    return ""


def _hint(value: object, expected: Schema, root: Schema) -> str | None:
    options = [_resolved(one, root) for one in _options(expected) or [expected]]
    kinds = {option.get("type") for option in options}
    if kinds == {"object"}:
        return "indent its settings below it"
    if isinstance(value, float) and value.is_integer() and "integer" in kinds:
        return f"write {int(value)}"
    if not isinstance(value, str):
        return None
    if "boolean" in kinds and value.lower() in _SWITCHES:
        return f"write {_SWITCHES[value.lower()]}"
    if "number" in kinds and isinstance(percent := scalar(value.removesuffix("%")), int | float):
        return f"write {percent / 100:g}" if value.endswith("%") else "write it without quotes"
    if kinds & {"integer", "number"}:
        bare = value.strip().replace("_", "")
        decimal = re.fullmatch(r"[-+]?0*,\d+|[-+]?\d+,(\d{1,2}|\d{4,})", bare)
        if decimal and "number" not in kinds:
            return None
        bare = bare.replace(",", "." if decimal else "")
        if isinstance(scalar(bare), int | float):
            return "write it without quotes" if bare == value else f"write {bare}"
    choices = [str(choice) for option in options for choice in option.get("enum", [])]
    near = difflib.get_close_matches(value.lower(), choices, n=1)
    return f"did you mean {near[0]}?" if near else None


def _real_path(location: tuple[int | str, ...], data: Any) -> KeyPath:
    """The part of pydantic's location that exists in the data; unions add extra parts."""
    path: list[str | int] = []
    for part in location:
        has_key = isinstance(data, dict) and part in data
        has_index = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if has_key or has_index:
            data = data[part]
            path.append(part)
    return tuple(path)


def _value(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _resolved(schema: Schema, root: Schema) -> Schema:
    while "$ref" in schema:
        schema = {**root["$defs"][schema["$ref"].rpartition("/")[2]], **_without_ref(schema)}
    return schema


def _without_ref(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "$ref"}


def _options(schema: Schema) -> list[Schema]:
    """The alternatives of a union without null, which only means "not set"."""
    options = schema.get("anyOf") or schema.get("oneOf") or []
    flat = [inner for option in options for inner in (_options(option) or [option])]
    return [option for option in flat if option.get("type") != "null"]


def _at(schema: Schema, root: Schema, path: KeyPath) -> Schema:
    """The schema of the value at a path; empty if unknown."""
    schema = _resolved(schema, root)
    for part in path:
        inner = [_resolved(one, root) for one in (schema, *_options(schema))]
        key = "items" if isinstance(part, int) else "properties"
        found: Schema = next((one[key] for one in inner if key in one), {})
        if not isinstance(part, int):
            # A named setting, or an entry whose name the user chooses.
            named = (one["additionalProperties"] for one in inner if part not in found
                     and isinstance(one.get("additionalProperties"), dict))  # fmt: skip
            found = found.get(part) or next(named, {})
        schema = _resolved(found, root)
    return schema


def _names(schema: Schema, root: Schema, prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting and block."""
    for key, inner in _resolved(schema, root).get("properties", {}).items():
        yield f"{prefix}{key}"
        yield from _names(inner, root, f"{prefix}{key}.")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _nearest(wanted: str, names: list[str]) -> str | None:
    """The closest name, compared by its last part or written as a_b for a.b."""
    spelled = {name.replace(".", "_"): name for name in reversed(names)}
    spelled |= {_last(name): name for name in reversed(names)}
    near = difflib.get_close_matches(wanted, spelled, n=1, cutoff=0.75)
    return spelled[near[0]] if near else None
