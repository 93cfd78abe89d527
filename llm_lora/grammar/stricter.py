"""A stricter version of a schema that a decoder can enforce and training can teach.

Every change only takes answers away. Bounds that the schema leaves open are learned from examples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_lora.grammar.extent import pattern_end
from llm_lora.grammar.features import Use, used
from llm_lora.grammar.habits import CONCLUSIONS, EVIDENCE, words
from llm_lora.grammar.matching import Refused, compile_schema
from llm_lora.schema import (
    LARGEST,
    MOST_CHARACTERS,
    MOST_ITEMS,
    AnswerSchema,
    Place,
    Schema,
    dumps,
    format_path,
)

_ROOM = 2
"""A bound learned from answers is this many times their largest value."""


@dataclass(frozen=True)
class Change:
    """One change: its place in the schema, and a description."""

    where: str
    what: str


@dataclass
class _Stricter:
    document: Schema
    changes: list[Change] = field(default_factory=list)

    def node(self, place: Place) -> Schema:
        found: Any = self.document
        for key in place:
            found = found[key]
        assert isinstance(found, dict)
        return Schema(found)

    def note(self, place: Place, what: str) -> None:
        self.changes.append(Change(format_path(place) or "(schema)", what))


def stricter(
    schema: AnswerSchema, answers: Sequence[Any] = ()
) -> tuple[Schema, tuple[Change, ...]]:
    """A stricter schema and the changes that lead to it; no changes if there is nothing to do.

    Args:
        schema: the schema to make stricter; it is not modified.
        answers: parsed answers that fit it, from which bounds are learned.
    """
    work = _Stricter(copy.deepcopy(schema.document))
    if _one_of(work, schema):
        schema = AnswerSchema.from_text(dumps(work.document), schema.where)
    seen = _values(schema, answers)
    done: set[Place] = set()
    for use in used(schema.parts):
        if use.node.place in done:
            continue
        done.add(use.node.place)
        _without_refused(work, use)
        # Narrowing one `oneOf` alternative can make a value valid that was excluded because it
        # fitted two.
        if "oneOf" not in use.node.place:
            _closed(work, use)
            _bounded(work, use, seen.get(use.node.place, []))
        _ordered(work, use)
    return work.document, tuple(work.changes)


def _without_refused(work: _Stricter, use: Use) -> None:
    """Replace keywords that decoders refuse by ones that they support."""
    node, place = work.node(use.node.place), use.node.place
    for keyword in ("dependentRequired", "dependencies"):
        needs = node.get(keyword)
        if isinstance(needs, dict) and all(isinstance(names, list) for names in needs.values()):
            names = list(dict.fromkeys(name for listed in needs.values() for name in listed))
            del node[keyword]
            node["required"] = list(dict.fromkeys([*node.get("required", []), *names]))
            work.note(place, f"{keyword} → always required: {', '.join(names)}")
    ruled_out = node.get("not")
    if isinstance(ruled_out, dict) and isinstance(node.get("enum"), list):
        values = ruled_out.get("enum", [ruled_out["const"]] if "const" in ruled_out else None)
        if isinstance(values, list) and len(ruled_out) == 1:
            # As text, since True equals 1 in Python and not in JSON.
            gone = set(map(dumps, values))
            node["enum"] = [value for value in node["enum"] if dumps(value) not in gone]
            del node["not"]
            work.note(place, "not → removed from enum")
    alone = not node.keys() & {"$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if"}
    if node.get("unevaluatedProperties") is False and alone:
        del node["unevaluatedProperties"]
        node["additionalProperties"] = False
        work.note(place, "unevaluatedProperties: false → additionalProperties: false")
    names_ruled = node.get("propertyNames")
    if isinstance(names_ruled, dict) and node.get("additionalProperties") is False:
        rule = AnswerSchema.from_text(dumps(names_ruled))
        if all(rule.judge_value(name).valid for name in node.get("properties", {})):
            del node["propertyNames"]
            work.note(place, "propertyNames removed: every listed property fits it")


def _closed(work: _Stricter, use: Use) -> None:
    node = work.node(use.node.place)
    if "open object" not in use.features or "additionalProperties" in node:
        return
    composed = {"allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "patternProperties"}
    known = set(node.get("properties", {})) >= set(node.get("required", []))
    # A schema in allOf, or in an alternative of an object, lists only some of its properties.
    around = use.node.place[-2:-1]
    partial = around == ("allOf",) or (
        around in (("anyOf",), ("oneOf",)) and "properties" in work.node(use.node.place[:-2])
    )
    if known and not partial and not node.keys() & composed:
        node["additionalProperties"] = False
        work.note(use.node.place, "additionalProperties: false")


def _bounded(work: _Stricter, use: Use, values: list[Any]) -> None:
    node, place, names = work.node(use.node.place), use.node.place, use.features
    if "enum" in names or "const" in names or ("$ref" in names and "type" not in node):
        return
    ended = node.get("format") in ("date", "time", "date-time", "uuid", "ipv4", "ipv6", "duration")
    texts = [len(value) for value in values if isinstance(value, str)]
    ended = ended or "maxLength" in node or not math.isinf(pattern_end(node))
    if "type:string" in names and not ended:
        most = _round_up(_ROOM * max(texts)) if texts else MOST_CHARACTERS
        _set(work, place, "maxLength", max(most, node.get("minLength", 0)))
    if "type:array" in names and "maxItems" not in node and node.get("items") is not False:
        counts = [len(value) for value in values if isinstance(value, list)]
        most = _ROOM * max(counts, default=0) or MOST_ITEMS
        _set(work, place, "maxItems", max(most, node.get("minItems", 0)))
    if "type:integer" in names or "type:number" in names:
        low = node.keys() & {"minimum", "exclusiveMinimum"}
        high = node.keys() & {"maximum", "exclusiveMaximum"}
        if not low and node.get("maximum", 0) >= -LARGEST:
            _set(work, place, "minimum", -LARGEST)
        if not high and node.get("minimum", 0) <= LARGEST:
            _set(work, place, "maximum", LARGEST)


def _set(work: _Stricter, place: Place, keyword: str, value: Any) -> None:
    work.node(place)[keyword] = value
    work.note(place, f"{keyword}: {dumps(value)}")


def _round_up(number: int) -> int:
    """Rounded up to two leading digits, so that bounds look deliberate."""
    step: int = max(10 ** (len(str(number)) - 2), 1)
    return max(-(-number // step) * step, 1)


def _ordered(work: _Stricter, use: Use) -> None:
    """Move evidence before the conclusion; the other properties keep their order."""
    node = work.node(use.node.place)
    names = list(node.get("properties", {}))
    first = next((i for i, name in enumerate(names) if words(name) & CONCLUSIONS), None)
    if first is None:
        return
    late = [name for name in names[first + 1 :] if words(name) & EVIDENCE]
    if late:
        ordered = [*names[:first], *late, *(n for n in names[first:] if n not in late)]
        node["properties"] = {name: node["properties"][name] for name in ordered}
        work.note(use.node.place, f"{', '.join(late)} moved before {names[first]}")


def _one_of(work: _Stricter, schema: AnswerSchema) -> bool:
    """Replace `oneOf` by `anyOf` if no value fits two alternatives.

    The decoder proves that: it refuses a `oneOf` whose alternatives may overlap.
    """
    try:
        compile_schema(schema)
    except Refused:
        return False
    uses = [use for use in used(schema.parts) if "oneOf" in use.node.schema]
    # Innermost first: renaming an outer keyword changes the places of those inside it.
    for use in sorted(uses, key=lambda use: -len(use.node.place)):
        node = work.node(use.node.place)
        if "oneOf" in node and "anyOf" not in node:
            changed = {("anyOf" if key == "oneOf" else key): value for key, value in node.items()}
            node.clear()
            node.update(changed)
            work.note(use.node.place, "oneOf → anyOf: its alternatives never overlap")
    return bool(uses)


def _values(schema: AnswerSchema, answers: Sequence[Any]) -> dict[Place, list[Any]]:
    """The values in answers, by the place of the subschemas that apply to them."""
    found: dict[Place, list[Any]] = {}

    def visit(place: Place, value: Any, depth: int) -> None:
        node = schema.parts.child(schema.parts.root, *place) if place else schema.parts.root
        if node is None or depth > _DEEPEST:
            return
        found.setdefault(place, []).append(value)
        for below, part in _below(schema, place, value):
            visit(below, part, depth + 1)

    for answer in answers:
        visit((), answer, 0)
    return found


_DEEPEST = 60


def _below(schema: AnswerSchema, place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    """The subschemas that apply next to a value or to its parts."""
    parts = schema.parts
    node = parts.child(parts.root, *place) if place else parts.root
    if node is None:
        return
    target = parts.target(node)
    if target is not None:
        yield target.place, value
    for keyword in ("allOf", "anyOf", "oneOf"):
        for branch in parts.branches(node, keyword):
            yield branch.place, value
    if isinstance(value, dict):
        for name, part in value.items():
            if parts.child(node, "properties", name) is not None:
                yield (*place, "properties", name), part
    elif isinstance(value, list):
        fixed = len(parts.branches(node, "prefixItems"))
        for index, part in enumerate(value):
            if index < fixed:
                yield (*place, "prefixItems", index), part
            elif parts.child(node, "items") is not None:
                yield (*place, "items"), part
