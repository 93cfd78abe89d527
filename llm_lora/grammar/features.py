"""The features of a schema that a decoder must support, each of which can be probed.

A feature is a keyword, or a use of one that decoders handle differently: `format:date`,
`pattern:space`, `required:unknown`. Each comes with the schema fragment that probes it, alone or
in pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from llm_lora.schema import Node, Place, Schema, Subschemas

FRAGMENTS: Mapping[str, Mapping[str, object]] = {
    "type:string": {"type": "string"},
    "type:integer": {"type": "integer"},
    "type:number": {"type": "number"},
    "type:boolean": {"type": "boolean"},
    "type:null": {"type": "null"},
    "type:object": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False,
    },
    "type:array": {"type": "array", "items": {"type": "integer"}},
    "any value": {},
    "nothing": {"type": "object", "properties": {"a": False}, "additionalProperties": False},
    "enum": {"enum": ["ab", 3, None]},
    "enum:escaped": {"enum": ['a"b\\', "é.*\n"]},
    "enum:nested": {"enum": [{"a": [1]}, [2]]},
    "enum:fraction": {"enum": [2.5]},
    "const": {"const": "ab"},
    "const:escaped": {"const": 'a"b\\'},
    "const:nested": {"const": {"a": [1]}},
    "const:fraction": {"const": 2.5},
    "clash": {"type": "string", "enum": ["ab", 3]},
    "minLength": {"type": "string", "minLength": 2},
    "maxLength": {"type": "string", "maxLength": 3},
    "pattern": {"type": "string", "pattern": "^[ab]{1,3}$"},
    "pattern:unanchored": {"type": "string", "pattern": "b"},
    "pattern:dot": {"type": "string", "pattern": "^a.c$"},
    "pattern:space": {"type": "string", "pattern": "^a\\sc$"},
    "pattern:class": {"type": "string", "pattern": "^a[\\w\\d]c$"},
    "pattern:negated": {"type": "string", "pattern": "^a[^b]\\W?c$"},
    "pattern:escape": {"type": "string", "pattern": "^(?:a\\x62c|a\\p{L}c)$"},
    "minimum": {"type": "integer", "minimum": 5},
    "maximum": {"type": "integer", "maximum": 5},
    "exclusiveMinimum": {"type": "number", "exclusiveMinimum": 5},
    "exclusiveMaximum": {"type": "number", "exclusiveMaximum": 7},
    "exclusiveMinimum:boolean": {"type": "integer", "minimum": 5, "exclusiveMinimum": True},
    "exclusiveMaximum:boolean": {"type": "integer", "maximum": 5, "exclusiveMaximum": True},
    "multipleOf": {"type": "integer", "multipleOf": 5},
    "items": {"type": "array", "items": {"type": "integer"}},
    "items:any": {"type": "array"},
    "items:none": {"type": "array", "prefixItems": [{"type": "integer"}], "items": False},
    "items:list": {"type": "array", "items": [{"type": "integer"}], "additionalItems": False},
    "additionalItems": {
        "type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "null"},
    },
    "prefixItems": {"type": "array", "prefixItems": [{"type": "integer"}], "items": False},
    "minItems": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
    "maxItems": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "contains": {"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}},
    "minContains": {
        "type": "array", "items": {"type": "integer"}, "contains": {"const": 5}, "minContains": 2,
    },
    "maxContains": {
        "type": "array", "items": {"type": "integer"}, "contains": {"const": 5}, "maxContains": 1,
    },
    "unevaluatedItems": {"type": "array", "items": {"type": "integer"}, "unevaluatedItems": False},
    "properties": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"], "additionalProperties": False,
    },
    "properties:escaped": {
        "type": "object", "properties": {'é"\n.*': {"type": "integer"}},
        "required": ['é"\n.*'], "additionalProperties": False,
    },
    "optional": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "additionalProperties": False,
    },
    "required": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["b"], "additionalProperties": False,
    },
    "required:unknown": {"type": "object", "required": ["b"]},
    "additionalProperties:false": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False,
    },
    "additionalProperties": {"type": "object", "additionalProperties": {"type": "integer"}},
    "open object": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "any object": {"type": "object"},
    "patternProperties": {
        "type": "object", "patternProperties": {"^b": {"type": "integer"}},
        "additionalProperties": False,
    },
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 0}},
    "minProperties": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "additionalProperties": False, "minProperties": 1,
    },
    "maxProperties": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "additionalProperties": False, "maxProperties": 1,
    },
    "dependentRequired": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "additionalProperties": False, "dependentRequired": {"a": ["b"]},
    },
    "dependentSchemas": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "additionalProperties": False, "dependentSchemas": {"a": {"required": ["b"]}},
    },
    "dependencies": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "additionalProperties": False, "dependencies": {"a": ["b"]},
    },
    "unevaluatedProperties": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "unevaluatedProperties": False,
    },
    "anyOf": {"anyOf": [{"enum": [1, 5]}, {"const": "ab"}]},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 5}]},
    "oneOf:apart": {"oneOf": [{"type": "integer"}, {"const": "ab"}]},
    "allOf": {"allOf": [{"type": "integer"}, {"enum": [1, 5, "ab"]}]},
    "allOf:object": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "additionalProperties": False,
        "allOf": [{"required": ["b"]}, {"properties": {"a": {"maximum": 3}}}],
    },
    "not": {"type": "integer", "not": {"const": 3}},
    "if": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "additionalProperties": False,
        "if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]},
    },
    "$ref": {"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer", "enum": [1, 5]}}},
    "$ref:name": {"$ref": "#x", "$defs": {"x": {"$anchor": "x", "type": "integer", "enum": [1]}}},
    "$ref:recursive": {
        "$ref": "#/$defs/x",
        "$defs": {"x": {
            "type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/x"}},
            "required": ["a"], "additionalProperties": False,
        }},
    },
    "$dynamicRef": {
        "$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x", "type": "integer"}},
    },
}  # fmt: skip
"""Feature → the schema that probes it; `fragment` builds those of formats."""

_DRAFT_4 = "http://json-schema.org/draft-04/schema#"
_DRAFT_7 = "http://json-schema.org/draft-07/schema#"
_DRAFTS = {
    "exclusiveMinimum:boolean": _DRAFT_4,
    "exclusiveMaximum:boolean": _DRAFT_4,
    "items:list": _DRAFT_7,
    "additionalItems": _DRAFT_7,
    "dependencies": _DRAFT_7,
}
"""Features that exist only in older drafts."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9_]+")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_ -]*")
_SAYS_WHAT = ("type", "enum", "const", "$ref", "$dynamicRef", "anyOf", "oneOf", "allOf")


def fragment(feature: str) -> Schema:
    """The schema that probes a feature."""
    name, _, value = feature.partition(":")
    if name == "format":
        return Schema({"type": "string", "format": value})
    found = FRAGMENTS[feature]
    draft = _DRAFTS.get(feature)
    return Schema({"$schema": draft, **found} if draft else {**found})


@dataclass(frozen=True)
class Use:
    """A subschema that applies to answers, and the features that it uses itself."""

    node: Node
    features: tuple[str, ...]


def used(parts: Subschemas) -> list[Use]:
    """Every subschema that applies to answers, from the root down, each once."""
    return list(_Walk(parts).visit(parts.root, typed=False, closed=False))


class _Walk:
    """Depth-first walk along references, from the root.

    A subschema may be reached on several paths and mean something else on each: without a type of
    its own it accepts any value, unless a schema around it sets the type. It is therefore visited
    once for each combination of what the surrounding schemas set, which also ends recursion.
    """

    def __init__(self, parts: Subschemas) -> None:
        self._parts = parts
        self._seen: set[tuple[Place, bool, bool]] = set()
        self._above: list[Place] = []

    def visit(self, node: Node, *, typed: bool, closed: bool) -> Iterator[Use]:
        """A node and all nodes below it.

        `typed` and `closed` are whether surrounding schemas of the same value set its type, and
        exclude unlisted properties.
        """
        if (node.place, typed, closed) in self._seen:
            return
        self._seen.add((node.place, typed, closed))
        parts, schema = self._parts, node.schema
        found = [
            name
            for name in _features(node, parts)
            if not (name == "any value" and typed) and not (name in _OPEN.values() and closed)
        ]
        target = parts.target(node)
        recursive = target is not None and target.place in [*self._above, node.place]
        yield Use(node, (*found, "$ref:recursive") if recursive else tuple(found))
        self._above.append(node.place)
        if target is not None:
            yield from self.visit(target, typed=False, closed=False)
        if target is None or parts.siblings:
            typed = typed or bool(schema.keys() & set(_SAYS_WHAT))
            closed = closed or schema.get("additionalProperties") is False
            for keyword in _IN_PLACE:
                for part in parts.below(node, keyword):
                    yield from self.visit(part, typed=typed, closed=closed)
            for keyword in _DEEPER:
                for part in parts.below(node, keyword):
                    if not _is_false(schema[keyword], part):
                        yield from self.visit(part, typed=False, closed=False)
        self._above.pop()


_IN_PLACE = ("allOf", "anyOf", "oneOf")
_DEEPER = (
    "properties", "patternProperties", "additionalProperties", "items", "prefixItems",
    "additionalItems",
)  # fmt: skip
# Subschemas of not, if, contains, … are not walked: these keywords are probed as a whole.


def _is_false(held: Any, part: Node) -> bool:
    """Whether a part of a keyword is the schema `false`, which accepts no value."""
    if held is part.schema:
        return False
    key: Any = part.place[-1]
    return (held[key] if isinstance(held, dict | list) else held) is False


def _features(node: Node, parts: Subschemas) -> list[str]:
    schema = node.schema
    if parts.target(node) is not None and not parts.siblings:
        return _reference(schema)
    found = [*_typed(schema), *_values(schema)]
    for keyword, value in schema.items():
        if keyword == "format" and isinstance(value, str):
            found.append(f"format:{value}")
        elif keyword == "pattern":
            found += _pattern(value)
        elif keyword in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
            found.append(f"{keyword}:boolean")
        elif keyword in ("then", "else"):
            found.append("if")
        elif keyword == "allOf":
            objects = any("properties" in part.schema for part in parts.branches(node, keyword))
            found.append("allOf:object" if objects else "allOf")
        elif keyword in FRAGMENTS and keyword not in _OWN:
            found.append(keyword)
    found += [*_object(schema), *_array(schema), *_reference(schema)]
    return list(dict.fromkeys(found))


# Keywords whose features depend on how they are used; the functions below find them.
_OWN = frozenset(
    ("enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems",
     "additionalItems", "$ref", "$dynamicRef")
)  # fmt: skip


def _typed(schema: Schema) -> Iterator[str]:
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        yield f"type:{kind}"
    if not schema.keys() & set(_SAYS_WHAT):
        yield "any value"


def _values(schema: Schema) -> Iterator[str]:
    beside = {key: value for key, value in schema.items() if key not in ("enum", "const")}
    for keyword in ("enum", "const"):
        if keyword not in schema:
            continue
        yield keyword
        values = schema[keyword] if keyword == "enum" else [schema[keyword]]
        if "$ref" in beside or not all(jsonschema_rs.is_valid(beside, value) for value in values):
            yield "clash"
        for value in values:
            if isinstance(value, dict | list):
                yield f"{keyword}:nested"
            elif isinstance(value, float):
                yield f"{keyword}:fraction"
            elif isinstance(value, str) and not _PLAIN_TEXT.fullmatch(value):
                yield f"{keyword}:escaped"


def _pattern(pattern: str) -> Iterator[str]:
    yield "pattern"
    outside = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", pattern)
    if not (pattern.startswith("^") and pattern.endswith("$")) or "|" in outside:
        yield "pattern:unanchored"
    if "." in outside:
        yield "pattern:dot"
    escapes = set(re.findall(r"\\(.)", pattern))
    if escapes & set("sS"):
        yield "pattern:space"
    if escapes & set("wWdD"):
        yield "pattern:class"
    if "[^" in pattern or escapes & set("WDS"):
        yield "pattern:negated"
    if escapes - set("sSwWdD.-+*?()[]{}^$|/") or '"' in pattern or "(?" in pattern:
        yield "pattern:escape"


def _object(schema: Schema) -> Iterator[str]:
    named = schema.get("properties", {})
    required = schema.get("required", [])
    required = required if isinstance(required, list) else []
    if named:
        yield "properties"
        if not all(_SAFE_NAME.fullmatch(name) for name in named):
            yield "properties:escaped"
        if set(named) - set(required):
            yield "optional"
        if any(part is False for part in named.values()):
            yield "nothing"
    if required:
        yield "required"
        if set(required) - set(named):
            yield "required:unknown"
    kinds = schema.get("type", [])
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds) and not named:
        return
    extra = schema.get("additionalProperties", True)
    if extra is False:
        yield "additionalProperties:false"
    else:
        yield "additionalProperties" if isinstance(extra, dict) and extra else _OPEN[bool(named)]


_OPEN = {True: "open object", False: "any object"}


def _array(schema: Schema) -> Iterator[str]:
    items = schema.get("items")
    kinds = schema.get("type", [])
    if isinstance(items, list):
        yield "items:list"
        extra = schema.get("additionalItems", True)
        if extra is not False:
            yield "additionalItems" if isinstance(extra, dict) and extra else "items:any"
        return
    if "prefixItems" in schema:
        yield "prefixItems"
    if items is False:
        yield "items:none"
    elif isinstance(items, dict):
        yield "items"
    elif "array" in ([kinds] if isinstance(kinds, str) else kinds):
        yield "items:any"


def _reference(schema: Schema) -> list[str]:
    if "$dynamicRef" in schema:
        return ["$dynamicRef"]
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return []
    plain = reference == "#" or reference.startswith("#/")
    return ["$ref"] if plain else ["$ref", "$ref:name"]
