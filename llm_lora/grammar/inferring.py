"""Schema inference from answers: GenSON finds the shape, then bounds are fitted to the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jsonschema_rs
from genson import SchemaBuilder

from llm_lora.errors import UserError
from llm_lora.schema import LARGEST, Schema

MOST_VALUES = 16
"""A string with at most this many distinct values becomes an enum …"""
_REPEATED = 5
"""… if each was seen this often on average, and none is longer than `_LONGEST_VALUE`."""
_LONGEST_VALUE = 40
_ENOUGH = 20
"""With fewer answers no enum is inferred: other values may simply not have occurred yet."""

# The narrowest first; a format is proposed if every string seen has it.
_FORMATS = ("uuid", "date-time", "date", "time", "ipv4", "ipv6", "email", "uri", "duration")
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def infer(answers: Sequence[Any]) -> Schema:
    """A schema that every given answer fits, and little else.

    Properties are required if every answer has them, and in the order of their first appearance.
    Strings get an enum, a format or a length limit; numbers get bounds with some room.

    Raises:
        UserError: there are no answers.
    """
    if not answers:
        raise UserError("no answers to infer a schema from", fix="give a file with at least one")
    builder = SchemaBuilder(schema_uri=None)
    for answer in answers:
        builder.add_object(answer)
    tight = _tight(builder.to_schema(), list(answers), len(answers))
    return Schema({"$schema": _DRAFT, **tight})


def _tight(schema: Schema, values: list[Any], answers: int) -> Schema:
    kinds = schema.get("type")
    if "anyOf" in schema:
        branches = [_tight(part, _of(part, values), answers) for part in schema["anyOf"]]
        return Schema({"anyOf": branches})
    if isinstance(kinds, list):
        # Bounds apply to one type only, so several types become alternatives. Null needs none.
        rest = [kind for kind in kinds if kind != "null"]
        if len(rest) == 1 and "null" in kinds:
            one = Schema({**schema, "type": rest[0]})
            return _or_null(_tight(one, _of(one, values), answers))
        each = [Schema({"type": kind}) for kind in kinds]
        return Schema({"anyOf": [_tight(one, _of(one, values), answers) for one in each]})
    makers = {"object": _object, "array": _array, "string": _text, "integer": _number,
              "number": _number}  # fmt: skip
    maker = makers.get(str(kinds))
    return Schema({"type": kinds}) if maker is None else maker(schema, values, answers)


def _or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        return Schema({"enum": [*schema["enum"], None]})
    if isinstance(schema.get("type"), str):
        return Schema({**schema, "type": [schema["type"], "null"]})
    return Schema({"anyOf": [schema, {"type": "null"}]})


def _of(schema: Schema, values: list[Any]) -> list[Any]:
    """The values of a schema's type."""
    validator = jsonschema_rs.validator_for({"type": schema["type"]} if "type" in schema else {})
    return [value for value in values if validator.is_valid(value)]


def _object(schema: Schema, values: list[Any], answers: int) -> Schema:
    names = list(dict.fromkeys(name for value in values for name in value))
    parts = schema.get("properties", {})
    properties = {
        name: _tight(parts[name], [value[name] for value in values if name in value], answers)
        for name in names
    }
    required = [name for name in names if all(name in value for value in values)]
    return Schema({
        "type": "object", "properties": properties, "required": required,
        "additionalProperties": False,
    })  # fmt: skip


def _array(schema: Schema, values: list[Any], answers: int) -> Schema:
    most = max((len(value) for value in values), default=0)
    found = Schema({"type": "array"})
    if "items" in schema:
        found["items"] = _tight(schema["items"], [part for value in values for part in value],
                                answers)  # fmt: skip
    else:
        found["items"] = False
    least = min((len(value) for value in values), default=0)
    if least:
        found["minItems"] = 1
    # Twice as many as seen; an array that was always empty must stay empty.
    return Schema({**found, "maxItems": 2 * most})


def _text(_: Schema, values: list[Any], answers: int) -> Schema:
    distinct = list(dict.fromkeys(values))
    often = len(values) >= _REPEATED * len(distinct)
    few = answers >= _ENOUGH and often and len(distinct) <= MOST_VALUES
    if few and max(map(len, distinct)) <= _LONGEST_VALUE:
        return Schema({"enum": sorted(distinct)})
    for name in _FORMATS:
        validator = jsonschema_rs.validator_for(
            {"format": name, "type": "string"}, validate_formats=True
        )
        if all(map(validator.is_valid, distinct)):
            return Schema({"type": "string", "format": name})
    longest = max(map(len, distinct), default=0)
    found = Schema({"type": "string", "maxLength": _roomy(longest)})
    return Schema({**found, "minLength": 1}) if all(distinct) else found


def _number(schema: Schema, values: list[Any], _: int) -> Schema:
    low, high = min(values), max(values)
    found = Schema({"type": schema["type"]})
    # At least 0 if no value was negative, otherwise symmetric bounds.
    edge = _roomy(max(abs(low), abs(high)))
    if edge > LARGEST:
        return found
    least = 0 if low >= 0 else -edge
    return Schema({**found, "minimum": least, "maximum": max(edge, 1)})


def _roomy(number: float) -> int:
    """At least twice a number, with one leading digit."""
    doubled = int(2 * number) + 1
    step = 10 ** (len(str(doubled)) - 1)
    return int(-(-doubled // step) * step)
