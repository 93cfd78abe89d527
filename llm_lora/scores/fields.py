"""The scored fields of an answer, derived from its schema.

A field is a place that holds one thing to get right: `severity`, `patient.age`, `symptoms[]` (a
list of values, scored as a whole), `medications[].dose` (one member of a list of objects).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from llm_lora.schema import AnswerSchema, Node, Place, Subschemas, format_path
from llm_lora.schema import json_text as jsontext

SPAN_LENGTH = 120
"""A string of at most this many characters is a span (copied words), a longer one free text."""

Kind = Literal["closed", "number", "exact", "span", "text", "list"]
# If several schemas apply to a value (allOf, next to $ref), the earliest of their kinds wins.
_NARROWEST: tuple[Kind, ...] = ("closed", "number", "exact", "span", "text", "list")
_HINTS = {
    "properties": "object",
    "items": "array",
    "prefixItems": "array",
    "maxLength": "string",
    "pattern": "string",
    "format": "string",
    "minimum": "number",
    "maximum": "number",
}


@dataclass(frozen=True)
class Leaf:
    """One field.

    closed: enum, const or boolean; number; span: a bounded string; text: a free one;
    list: an array of values; exact: anything else, compared as a whole (formatted strings, tuples,
    open objects, recursion).
    """

    kind: Kind
    values: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Labels of the values that a closed field may take, in the schema's order."""


@dataclass(frozen=True)
class Record:
    """An object with known properties."""

    members: dict[str, Shape]


@dataclass(frozen=True)
class Rows:
    """An array of objects with known properties."""

    item: Record


Shape = Leaf | Record | Rows

FREE_TEXT = Leaf("text")
"""The shape of an answer without a schema."""


@lru_cache(maxsize=16)
def shape(schema: AnswerSchema) -> Shape:
    """The shape of answers of a schema."""
    return _shape(schema.parts, schema.parts.root, frozenset()) or Leaf("exact")


def leaves(found: Shape, path: Place = ()) -> Iterator[tuple[str, Kind]]:
    """Path and kind of every field, in the schema's order; `$` is the answer itself."""
    if isinstance(found, Leaf):
        yield field_name(path, found.kind), found.kind
    elif isinstance(found, Record):
        for key, member in found.members.items():
            yield from leaves(member, (*path, key))
    else:
        yield from leaves(found.item, (*path, 0))


def closed_values(found: Shape, path: Place = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Path of every closed field, with the labels of its values."""
    if isinstance(found, Leaf):
        if found.kind == "closed":
            yield field_name(path, found.kind), found.values
    elif isinstance(found, Record):
        for key, member in found.members.items():
            yield from closed_values(member, (*path, key))
    else:
        yield from closed_values(found.item, (*path, 0))


def label(value: object) -> str:
    """The label of a closed value in tables: as it is, or quoted if it could be read otherwise.

    >>> label("mild"), label(None), label("null"), label(True)
    ('mild', 'null', '"null"', 'true')
    """
    if not isinstance(value, str):
        return jsontext.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        if value.strip() == value and value and value[0] not in '"(':
            return value
    return jsontext.dumps(value)


def closed_spans(schema: AnswerSchema, answer: str) -> list[tuple[int, int]]:
    """The spans of closed values in a canonical answer: first character, one past the last.

    Empty for an answer in another form, whose spans are not known.
    """
    return [(start, end) for _, start, end in closed_places(schema, answer)]


def closed_places(schema: AnswerSchema, answer: str) -> list[tuple[str, int, int]]:
    """The closed values of a canonical answer: field, first character, one past the last.

    Empty for an answer in another form.
    """
    spans: list[tuple[str, int, int]] = []
    text = ""

    def write(value: object, known: Shape | None, path: Place = ()) -> None:
        nonlocal text
        if isinstance(value, dict):
            members = known.members if isinstance(known, Record) else {}
            for number, (key, member) in enumerate(value.items()):
                text += f"{',' if number else '{'}{jsontext.dumps(key)}:"
                write(member, members.get(key), (*path, key))
            text += "}" if value else "{}"
        elif isinstance(value, list):
            item = known.item if isinstance(known, Rows) else None
            for number, one in enumerate(value):
                text += "," if number else "["
                write(one, item, (*path, 0))
            text += "]" if value else "[]"
        else:
            start = len(text)
            text += str(value) if isinstance(value, jsontext.Literal) else jsontext.dumps(value)
            if known == Leaf("closed"):
                spans.append((field_name(path, "closed"), start, len(text)))

    write(jsontext.parse_verbatim(answer), shape(schema))
    return spans if text == answer else []


def field_name(path: Place, kind: Kind) -> str:
    """The name of a field in reports; a 0 in the path stands for every item."""
    whole = (*path, 0) if kind == "list" else path
    return format_path(whole).replace("[0]", "[]") or "$"


def _shape(parts: Subschemas, node: Node, above: frozenset[Place]) -> Shape | None:
    """The shape that a subschema gives a value; None if it says nothing about it.

    A subschema that is met inside itself is recursive and has no finite list of fields, so that
    value is compared as a whole.
    """
    if node.place in above:
        return Leaf("exact")
    above = above | {node.place}
    narrowing: list[Shape | None] = []
    target = parts.target(node)
    if target is not None:
        narrowing.append(_shape(parts, target, above))
        if not parts.siblings:
            return narrowing[0]
    narrowing.insert(0, _own(parts, node, above))
    narrowing += [_shape(parts, branch, above) for branch in parts.branches(node, "allOf")]
    for keyword in ("anyOf", "oneOf"):
        narrowing.append(_any(_shape(parts, branch, above)
                              for branch in parts.branches(node, keyword)))  # fmt: skip
    outcomes = (parts.child(node, keyword) for keyword in ("then", "else"))
    narrowing.append(_any(_shape(parts, branch, above) for branch in outcomes if branch))
    return _all(narrowing)


def _own(parts: Subschemas, node: Node, above: frozenset[Place]) -> Shape | None:
    """The shape from a subschema's own keywords."""
    schema = node.schema
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        known = [value for value in values if value is not None]
        composite = any(isinstance(value, dict | list) for value in known)
        if composite:
            return Leaf("exact")
        return Leaf("closed", tuple(map(label, known))) if known else None
    types = schema.get("type")
    if types is None:
        types = list(dict.fromkeys(kind for key, kind in _HINTS.items() if key in schema))[:1]
    if isinstance(types, str):
        types = [types]
    return _any(_typed(parts, node, name, above) for name in types if name != "null")


def _typed(parts: Subschemas, node: Node, name: str, above: frozenset[Place]) -> Shape:
    schema = node.schema
    if name == "boolean":
        return Leaf("closed", ("true", "false"))
    if name in ("integer", "number"):
        return Leaf("number")
    if name == "string":
        if "format" in schema:
            return Leaf("exact")
        return Leaf("span" if schema.get("maxLength", SPAN_LENGTH + 1) <= SPAN_LENGTH else "text")
    if name == "object":
        members = {}
        for key in schema.get("properties", {}):
            child = parts.child(node, "properties", key)
            members[key] = (child and _shape(parts, child, above)) or Leaf("exact")
        return Record(members) if members else Leaf("exact")
    if "prefixItems" in schema or isinstance(schema.get("items"), list):
        return Leaf("exact")
    item = parts.child(node, "items")
    held = _shape(parts, item, above) if item is not None else None
    return Rows(held) if isinstance(held, Record) else Leaf("list")


def _all(shapes: Iterable[Shape | None]) -> Shape | None:
    """The shape of a value to which several schemas apply at once."""
    found = [shape for shape in shapes if shape is not None]
    records = [shape for shape in found if isinstance(shape, Record)]
    if records:
        return _record(records, _all)
    rows = [shape.item for shape in found if isinstance(shape, Rows)]
    if rows:
        return Rows(_record(rows, _all))
    known = {leaf.kind: leaf for leaf in reversed(found) if isinstance(leaf, Leaf)}
    return next((known[kind] for kind in _NARROWEST if kind in known), None)


def _any(shapes: Iterable[Shape | None]) -> Shape | None:
    """The shape of a value that fits one of several schemas; null has no shape of its own."""
    found = [shape for shape in shapes if shape is not None]
    if not found:
        return None
    records = [shape for shape in found if isinstance(shape, Record)]
    rows = [shape.item for shape in found if isinstance(shape, Rows)]
    if len(records) == len(found):
        return _record(records, _any)
    if len(rows) == len(found):
        return Rows(_record(rows, _any))
    kinds = {shape.kind if isinstance(shape, Leaf) else "exact" for shape in found}
    if len(kinds) == 1:
        values = (value for leaf in found if isinstance(leaf, Leaf) for value in leaf.values)
        return Leaf(kinds.pop(), tuple(dict.fromkeys(values)))
    if kinds <= {"closed", "span"}:
        return Leaf("span")
    return Leaf("text" if kinds <= {"closed", "span", "text"} else "exact")


def _record(records: Sequence[Record], combine: Any) -> Record:
    keys = dict.fromkeys(key for record in records for key in record.members)
    return Record({
        key: combine(record.members[key] for record in records if key in record.members)
        for key in keys
    })  # fmt: skip
