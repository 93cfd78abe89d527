"""The shortest and longest answers that a schema allows.

Text that the schema fixes is measured as it is; each free character of a string counts as one, in
tokens as in characters. Both lengths are estimates where keywords interact (`allOf`, siblings of
`anyOf`): they are computed from the schema alone, and nothing is decoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llm_lora.schema import AnswerSchema, Node, Place, Schema, Subschemas, dumps, narrowed

Measure = Callable[[str], int]

DIGITS = 25
"""The length assumed for a number: sign, digits before and after the point. Its fraction is not
bounded."""

# A shortest text of each format, and the greatest length in characters; uri has no limit.
_FORMATS = {
    "date": ("2026-11-21", 10), "time": ("10:00:00Z", 25),
    "date-time": ("2026-11-21T10:00:00Z", 36),
    "uuid": ("2eb8aa08-aa98-11ea-b4aa-73b441d16380", 36),
    "ipv4": ("1.1.1.1", 15), "ipv6": ("::", 45),
    "email": ("a@b", 254), "hostname": ("a", 253), "duration": ("P1D", 40), "uri": ("a:", math.inf),
}  # fmt: skip


@dataclass(frozen=True)
class Extent:
    """Lengths in tokens or characters.

    `longest` is infinite if answers are unbounded; `shortest` is None if no answer can end.
    """

    shortest: int | None
    longest: float


def extent(schema: AnswerSchema, measure: Measure = len) -> Extent:
    """The extent of answers under the constraint, which bounds strings, arrays and numbers."""
    document = narrowed(schema.document)
    reader = _Reader(Subschemas(document, siblings=schema.parts.siblings), measure)
    shortest = reader.shortest(reader.parts.root)
    return Extent(
        None if shortest is None else measure(shortest), reader.longest(reader.parts.root)
    )


class _Reader:
    """Recursive descent over the schema; a subschema that is met inside itself is recursive.

    A shortest answer never takes such a step, since it would contain a shorter one; a longest
    answer can repeat it forever.
    """

    def __init__(self, parts: Subschemas, measure: Measure) -> None:
        self.parts = parts
        self._measure = measure
        self._open: set[Place] = set()
        self._longest: dict[Place, float] = {}

    def shortest(self, node: Node) -> str | None:
        """The text of a shortest answer; None if every answer would recurse forever."""
        if node.place in self._open:
            return None
        self._open.add(node.place)
        texts = [text for text in self._short_texts(_joined(node, self.parts)) if text is not None]
        self._open.discard(node.place)
        return min(texts, key=lambda text: (self._measure(text), len(text)), default=None)

    def longest(self, node: Node) -> float:
        """The length of a longest answer."""
        if node.place in self._open:
            return math.inf
        if node.place not in self._longest:
            self._open.add(node.place)
            self._longest[node.place] = max(self._long(_joined(node, self.parts)), default=0)
            self._open.discard(node.place)
        return self._longest[node.place]

    def _short_texts(self, node: Node) -> Iterator[str | None]:
        schema = node.schema
        if (values := _written(schema)) is not None:
            yield from map(dumps, values)
        elif targets := _elsewhere(node, self.parts):
            yield from map(self.shortest, targets)
        else:
            for kind in _kinds(schema):
                yield self._short(kind, node)

    def _short(self, kind: str, node: Node) -> str | None:
        schema = node.schema
        if kind in ("null", "boolean"):
            return "null" if kind == "null" else "true"
        if kind in ("integer", "number", "any"):
            return _short_number(schema)
        if kind == "string":
            example = _FORMATS.get(schema.get("format", ""), ("", 0))[0]
            return dumps(example or "x" * schema.get("minLength", 0))
        if kind == "array":
            items = [self.shortest(item) for item in _items(node, schema.get("minItems", 0), self)]
            return None if None in items else f"[{','.join(filter(None, items))}]"
        members = []
        for name in schema.get("required", []):
            part = self.parts.child(node, "properties", name)
            text = self.shortest(part) if part is not None else "0"
            if text is None:
                return None
            members.append(f"{dumps(name)}:{text}")
        return f"{{{','.join(members)}}}"

    def _long(self, node: Node) -> Iterator[float]:
        schema = node.schema
        if (values := _written(schema)) is not None:
            yield from (self._measure(dumps(value)) for value in values)
        elif targets := _elsewhere(node, self.parts):
            yield from map(self.longest, targets)
        else:
            for kind in _kinds(schema):
                yield self._long_kind(kind, node)

    def _long_kind(self, kind: str, node: Node) -> float:
        schema = node.schema
        if kind == "any":
            return math.inf
        if kind in ("null", "boolean"):
            return self._measure("null" if kind == "null" else "false")
        if kind in ("integer", "number"):
            return _long_number(schema, kind)
        if kind == "string":
            free = _FORMATS.get(schema.get("format", ""), ("", math.inf))[1]
            return 2 + min(free, float(schema.get("maxLength", math.inf)), pattern_end(schema))
        if kind == "array":
            most = schema.get("maxItems", math.inf)
            tuple_ = self.parts.branches(node, "prefixItems")
            if schema.get("items") is False:
                most = min(most, len(tuple_))
            one = max(
                (self.longest(item) for item in _items(node, len(tuple_) + 1, self)), default=0
            )
            return 2 + most * (one + 1) if most else 2
        if schema.get("additionalProperties", True) is not False:
            return math.inf
        return 2 + sum(
            self._measure(f"{dumps(name)}:,") + self.longest(part)
            for name in schema.get("properties", {})
            if (part := self.parts.child(node, "properties", name)) is not None
        )


def pattern_end(schema: Schema) -> float:
    """The most characters that a pattern accepts, infinite if that is not obvious.

    Only anchored sequences of single characters and classes with counts are understood.
    """
    pattern = schema.get("pattern", "")
    if not (pattern.startswith("^") and pattern.endswith("$")) or "|" in pattern:
        return math.inf
    most = 0
    for _, repeat in re.findall(_ATOM, pattern[1:-1]):
        if repeat in ("*", "+") or repeat.endswith(",}"):
            return math.inf
        most += int(re.findall(r"\d+", repeat)[-1]) if repeat.startswith("{") else 1
    return most if not re.sub(_ATOM, "", pattern[1:-1]) else math.inf


_ATOM = r"(\\[^pPux0-9]|\[(?:\\.|[^\]\\])*\]|[^\\\[\](){}*+?|^$])(\{\d+(?:,\d*)?\}|[*+?]|)"


def _joined(node: Node, parts: Subschemas) -> Node:
    """A node merged with the schemas of its `allOf`."""
    branches = [_joined(branch, parts) for branch in parts.branches(node, "allOf")]
    schema = Schema(dict(node.schema))
    for branch in branches:
        branch = parts.target(branch) or branch
        for keyword, value in branch.schema.items():
            if keyword == "properties":
                schema[keyword] = {**value, **schema.get(keyword, {})}
            elif keyword == "required":
                schema[keyword] = [*schema.get(keyword, []), *value]
            else:
                schema.setdefault(keyword, value)
    return Node(node.place, schema)


def _written(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _elsewhere(node: Node, parts: Subschemas) -> list[Node]:
    """The schemas that define a value if the node itself does not."""
    target = parts.target(node)
    if target is not None:
        return [target]
    if "type" in node.schema:
        return []
    return [*parts.branches(node, "anyOf"), *parts.branches(node, "oneOf")]


def _kinds(schema: Schema) -> tuple[str, ...]:
    kinds = schema.get("type")
    if kinds is None:
        return ("any",)
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def _items(node: Node, count: int, reader: _Reader) -> list[Node]:
    parts = reader.parts
    first = parts.branches(node, "prefixItems")
    rest = parts.child(node, "items")
    if node.schema.get("items") is False:
        return first[:count]
    rest = rest if rest is not None else Node((*node.place, "items"), Schema({}))
    return [*first, *[rest] * (count - len(first))][:count]


def _bounds(schema: Schema) -> tuple[float, float]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    return low, high


def _short_number(schema: Schema) -> str:
    low, high = _bounds(schema)
    if low <= 0 <= high:
        return "0"
    return str(math.ceil(low) if low > 0 else math.floor(high))


def _long_number(schema: Schema, kind: str) -> float:
    low, high = _bounds(schema)
    if math.isinf(low) or math.isinf(high):
        return math.inf
    if kind == "number":
        return DIGITS
    return max(len(str(math.ceil(low))), len(str(math.floor(high))))
