"""Answer schemas of many kinds: written by hand, and made at random from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]


def closed(properties: dict[str, Any], *optional: str, **more: Any) -> Schema:
    """An object of these properties and no others, all required but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object", "properties": properties, "required": required,
        "additionalProperties": False, **more,
    }  # fmt: skip


INTEGER: Schema = {"type": "integer"}
TEXT: Schema = {"type": "string", "maxLength": 12}
_PAIR = {"a": INTEGER, "b": INTEGER}

BY_HAND: dict[str, Schema] = {
    "invoice": closed({
        "number": {"type": "string", "pattern": "^INV-[0-9]{4}$"},
        "date": {"type": "string", "format": "date"},
        "total": {"type": "number", "minimum": 0, "multipleOf": 0.01},
        "currency": {"enum": ["EUR", "USD", "CHF"]},
        "lines": {"type": "array", "maxItems": 3, "items": closed({
            "text": TEXT, "count": {"type": "integer", "minimum": 1, "maximum": 99},
        })},
    }),
    "ticket": closed({"urgent": {"type": "boolean"}, "topic": {"enum": ["bug", "bill", "other"]},
                      "note": {"type": ["string", "null"], "maxLength": 20}}, "note"),
    "person": closed({"name": TEXT, "born": {"type": "string", "format": "date"},
                      "mail": {"type": "string", "format": "email"}}, "mail"),
    "event": closed({"at": {"type": "string", "format": "date-time"},
                     "for": {"type": "string", "format": "duration"}}),
    "host": closed({"name": {"type": "string", "format": "hostname"},
                    "address": {"anyOf": [{"type": "string", "format": "ipv4"},
                                          {"type": "string", "format": "ipv6"}]}}),
    "identity": closed({"id": {"type": "string", "format": "uuid"}}),
    "clock": closed({"t": {"type": "string", "format": "time"}}),
    "link": closed({"u": {"type": "string", "format": "uri", "maxLength": 40}}),
    "tree": {"$ref": "#/$defs/node", "$defs": {"node": closed(
        {"v": INTEGER, "left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}},
        "left", "right")}},
    "list of itself": {"type": "object", "properties": {"v": TEXT, "next": {"$ref": "#"}},
                       "required": ["v"], "additionalProperties": False},
    "anchor": closed({"a": {"$ref": "#x"}}) | {"$defs": {"x": {"$anchor": "x", **INTEGER}}},
    "names": closed({"ä b": INTEGER, 'quo"te': TEXT, "back\\slash": TEXT, "a.*b": INTEGER}),
    "written": closed({"v": {"enum": ['a"b', "c\\d", "é", 1.5, None, True, [1, "x"], {"k": 2}]},
                       "w": {"const": {"b": 1, "a": [2]}}}),
    "tuple": {"type": "array", "prefixItems": [INTEGER, TEXT], "items": False, "minItems": 2},
    "tuple and more": {"type": "array", "prefixItems": [TEXT], "items": INTEGER, "maxItems": 4},
    "tuple of draft 7": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
                         "items": [INTEGER, TEXT], "additionalItems": False},
    "draft 4 bounds": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer",
                       "minimum": 3, "exclusiveMinimum": True, "maximum": 9},
    "root enum": {"enum": ["yes", "no"]}, "root const": {"const": 7},
    "root string": {"type": "string", "minLength": 3, "maxLength": 5},
    "root number": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "root boolean": {"type": "boolean"}, "root null": {"type": "null"},
    "root integer": INTEGER, "root plain number": {"type": "number"},
    "root plain string": {"type": "string"},
    "union by type": {"anyOf": [INTEGER, TEXT, {"type": "null"}]},
    "union by name": {"anyOf": [closed({"kind": {"const": "a"}, "x": INTEGER}),
                                closed({"kind": {"const": "b"}, "y": TEXT})]},
    "one of apart": {"oneOf": [closed({"kind": {"const": "a"}, "x": INTEGER}),
                               closed({"kind": {"const": "b"}, "y": {"type": "boolean"}})]},
    "one of numbers": closed({"v": {"oneOf": [{"type": "number"}, {"type": "null"}]}}),
    "one of overlapping": {"oneOf": [INTEGER, {"type": "number", "maximum": 5}]},
    "union beside a type": {"type": "integer", "anyOf": [{"minimum": 10}, {"maximum": 3}]},
    "either is required": closed(_PAIR, "a", "b", anyOf=[{"required": ["a"]}, {"required": ["b"]}]),
    "all of": {"type": "object", "properties": _PAIR, "additionalProperties": False,
               "allOf": [{"required": ["b"]}, {"properties": {"a": {"maximum": 3}}}]},
    "all of open": {"allOf": [{"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
                              {"type": "object", "properties": {"b": TEXT}, "required": ["b"]}]},
    "beside a reference": closed({"a": {"$ref": "#/$defs/x", "minimum": 5, "maximum": 8}})
    | {"$defs": {"x": INTEGER}},
    "beside a reference in draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"x": INTEGER},
        **closed({"a": {"$ref": "#/definitions/x", "minimum": 5}})},
    "enum against type": {"type": "string", "enum": ["a", 1]},
    "enum against length": {"type": "string", "enum": ["abc", "b"], "maxLength": 2},
    "open": {"type": "object", "properties": _PAIR}, "any": {}, "any list": {"type": "array"},
    "any object": {"type": "object"}, "required unknown": {"type": "object", "required": ["x"]},
    "extra integers": {"type": "object", "properties": _PAIR, "additionalProperties": INTEGER},
    "by pattern": {"type": "object", "patternProperties": {"^x": INTEGER},
                   "additionalProperties": False},
    "names limited": {"type": "object", "propertyNames": {"maxLength": 2}},
    "some": closed(_PAIR, "a", "b", minProperties=1),
    "few": closed(_PAIR, "a", "b", maxProperties=1),
    "dependent": closed(_PAIR, "a", "b", dependentRequired={"a": ["b"]}),
    "dependent schema": closed(_PAIR, "a", "b", dependentSchemas={"a": {"required": ["b"]}}),
    "dependencies": {"$schema": "http://json-schema.org/draft-07/schema#",
                     **closed(_PAIR, "a", "b", dependencies={"a": ["b"]})},
    "unique": {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 5},
    "contains": {"type": "array", "items": INTEGER, "contains": {"const": 5}, "maxItems": 5},
    "not": {"type": "integer", "not": {"const": 3}}, "not a string": {"not": {"type": "string"}},
    "if": closed(_PAIR, "b", **{"if": {"properties": {"a": {"const": 1}}},
                                "then": {"required": ["b"]}}),
    "unevaluated": {"type": "object", "properties": _PAIR, "unevaluatedProperties": False},
    "dynamic": {"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x", **INTEGER}}},
    "nothing fits": {"type": "integer", "minimum": 5, "maximum": 3},
    "nothing fits a": closed({"a": False}), "never a": closed({"a": False, "b": INTEGER}, "a"),
    "unknown format": {"type": "string", "format": "colour"},
    "format without a type": {"format": "date"}, "bound without a type": {"minimum": 5},
    "date by hand": {"type": "string", "pattern": "^\\d{4}-\\d{2}-\\d{2}$"},
    "pattern and length": {"type": "string", "pattern": "^[ab]*$", "minLength": 2, "maxLength": 4},
    "pattern not anchored": {"type": "string", "pattern": "b+", "maxLength": 9},
    "pattern with a dot": {"type": "string", "pattern": "^a.c$"},
    "pattern with space": {"type": "string", "pattern": "^a\\sc$"},
    "pattern with alternatives": {"type": "string", "pattern": "^(?:yes|no|[0-9]{1,3}%)$"},
    "pattern that looks ahead": {"type": "string", "pattern": "^(?!a)[a-c]$"},
    "pattern of letters": {"type": "string", "pattern": "^\\p{L}{1,4}$"},
    "large": {"type": "integer", "minimum": 10**15}, "huge": {"type": "number", "minimum": 1e300},
    "many optional": closed({f"k{i}": INTEGER for i in range(12)}, *(f"k{i}" for i in range(12))),
    "deep": closed({"a": closed({"b": closed({"c": closed({"d": TEXT})})})}),
    "table": {"type": "array", "maxItems": 3, "items": {"type": "array", "maxItems": 3,
                                                        "items": {"type": ["integer", "null"]}}},
}  # fmt: skip

# Parts that are combined at random; those that decoders fail on are rarer.
_TROUBLE = 0.12


def made(seed: int) -> Schema:
    """A random schema; the same for the same seed."""
    source = random.Random(seed)
    return _any(source, 3)


def _any(source: random.Random, depth: int) -> Schema:
    makers: list[Callable[[random.Random, int], Schema]] = [_text, _number, _values, _plain]
    if depth:
        makers += [_object, _object, _object, _list, _list, _union]
    made = source.choice(makers)(source, depth)
    return _troubled(made, source) if source.random() < _TROUBLE / 2 else made


def _text(source: random.Random, _: int) -> Schema:
    found: Schema = {"type": "string"}
    kind = source.random()
    if kind < 0.25:
        found["format"] = source.choice(
            "date time date-time duration email hostname ipv4 ipv6 uri uuid iri".split()
        )
    elif kind < 0.55:
        found["pattern"] = source.choice(
            ["^[a-z]{2,6}$", "^[A-Z][a-z]+$", "^\\d{3}$", "x", "^.{2,4}$", "^(?:a|bb)+$",
             "^\\w+\\s?$", "^[^a-f]{1,5}$", "^#[0-9a-f]{6}$", "^-?\\d+(?:\\.\\d+)?$", "^a|b$",
             "\\.txt$"]
        )  # fmt: skip
    if source.random() < 0.4:
        found["minLength"] = source.randrange(4)
    if source.random() < 0.7:
        found["maxLength"] = source.randrange(6, 30)
    return found


def _number(source: random.Random, _: int) -> Schema:
    found: Schema = {"type": source.choice(["integer", "integer", "number"])}
    step = 0.5 if found["type"] == "number" else 1
    if source.random() < 0.5:
        keyword = source.choice(["minimum", "exclusiveMinimum"])
        found[keyword] = source.randrange(-50, 50) * step
    if source.random() < 0.5:
        found[source.choice(["maximum", "exclusiveMaximum"])] = source.randrange(60, 5000) * step
    if source.random() < 0.25:
        found["multipleOf"] = source.choice([2, 3, 5, 10])
    return found


def _values(source: random.Random, _: int) -> Schema:
    pool = [
        "red",
        "green",
        "a b",
        "x-y",
        "Ü",
        'q"',
        "c\\",
        1,
        2,
        -3,
        1.5,
        None,
        True,
        "",
        "1",
        "re",
    ]
    if source.random() < 0.3:
        return {"const": source.choice(pool)}
    if source.random() < 0.5:
        return {"type": "string", "enum": source.sample(["on", "off", "auto", "n/a", "Ü", ""], 3)}
    return {"enum": source.sample(pool, source.randrange(1, 6))}


def _plain(source: random.Random, _: int) -> Schema:
    return {"type": source.choice(["boolean", "null", "integer", ["integer", "null"],
                                   ["string", "boolean"], ["number", "string"]])}  # fmt: skip


def _object(source: random.Random, depth: int) -> Schema:
    names = source.sample("id name kind value size note when where tags x-1 größe a.b".split(), 4)
    names = names[: source.randrange(1, 5)]
    optional = [name for name in names if source.random() < 0.3]
    found = closed({name: _any(source, depth - 1) for name in names}, *optional)
    if source.random() < _TROUBLE:
        del found["additionalProperties"]
    if source.random() < 0.1 and optional:
        found["minProperties"] = 1
    return found


def _list(source: random.Random, depth: int) -> Schema:
    found: Schema = {"type": "array", "items": _any(source, depth - 1)}
    if source.random() < 0.2:
        found["prefixItems"] = [_any(source, 0)]
        found["items"] = False if source.random() < 0.7 else found["items"]
    if source.random() < 0.4:
        found["minItems"] = source.randrange(1, 3) if found["items"] is not False else 1
    if source.random() < 0.8:
        found["maxItems"] = source.randrange(2, 5)
    return found


def _union(source: random.Random, depth: int) -> Schema:
    keyword = "oneOf" if source.random() < _TROUBLE else "anyOf"
    branches = [_any(source, depth - 1) for _ in range(source.randrange(2, 4))]
    return {keyword: branches}


def _troubled(schema: Schema, source: random.Random) -> Schema:
    """With a keyword that some decoder ignores or reads differently."""
    return schema | source.choice([
        {"not": {"const": "red"}}, {"uniqueItems": True}, {"contains": {"type": "integer"}},
        {"dependentRequired": {"name": ["kind"]}}, {"propertyNames": {"maxLength": 3}},
        {"if": {"type": "object"}, "then": {"minProperties": 2}}, {"anyOf": [{}, {"minimum": 3}]},
        {"allOf": [{"maxLength": 8}, {"maximum": 100}]}, {"format": "date"}, {"minimum": 7},
        {"title": "A title", "description": "of something", "default": 3, "examples": [1]},
        {"unevaluatedProperties": False}, {"maxProperties": 2}, {"enum": ["red", 4, "green"]},
    ])  # fmt: skip
