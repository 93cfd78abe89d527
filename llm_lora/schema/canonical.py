"""The canonical form of an answer: the schema's property order, compact, values as written.

The order is the one in which llguidance 1.7 writes, so that training targets and constrained
answers agree: properties that a schema includes by `$ref`, `allOf`, … come where that keyword
stands, and properties that are required but not described come last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property

import jsonschema_rs

from llm_lora.schema.json_text import Literal, dumps
from llm_lora.schema.keywords import Schema
from llm_lora.schema.subschemas import Node, Subschemas


class Canonical:
    """Writes answers in the order in which a schema names their properties."""

    def __init__(self, document: Schema, parts: Subschemas) -> None:
        self._document = document
        self._parts = parts

    def write(self, value: object, verbatim: object) -> str:
        """The canonical text of `value`; `verbatim` is the same value with numbers as `Literal`."""
        return self._write(value, verbatim, [self._parts.root])

    @cached_property
    def _validators(self) -> jsonschema_rs.ValidatorMap:
        # Formats count here as in judging: two alternatives may differ only by their format.
        return jsonschema_rs.validator_map_for(self._document, validate_formats=True, offline=True)

    def _fits(self, node: Node, value: object) -> bool:
        validator = self._validators.get(node.pointer)
        return validator is not None and validator.is_valid(value)

    def _write(self, value: object, verbatim: object, nodes: list[Node]) -> str:
        if isinstance(value, dict) and isinstance(verbatim, dict):
            applied = self._all_applied(nodes, value)
            order = [key for key in _listed(applied) if key in value]
            order += [key for key in value if key not in set(order)]
            members = (
                f"{dumps(key)}:{self._write(value[key], verbatim[key], self._member(applied, key))}"
                for key in order
            )
            return f"{{{','.join(members)}}}"
        if isinstance(value, list) and isinstance(verbatim, list):
            applied = self._all_applied(nodes, value)
            items = (
                self._write(item, verbatim[index], self._item(applied, index))
                for index, item in enumerate(value)
            )
            return f"[{','.join(items)}]"
        return str(verbatim) if isinstance(verbatim, Literal) else dumps(verbatim)

    def _all_applied(self, nodes: list[Node], value: object) -> list[Node]:
        return [part for node in nodes for part in self._applied(node, value)]

    def _applied(self, node: Node, value: object) -> Iterator[Node]:
        """The subschemas that apply to a value: a node, and those it includes for this value."""
        parts = self._parts
        target = parts.target(node) or parts.target(node, "$dynamicRef")
        if target is not None and not parts.siblings:
            yield from self._applied(target, value)
            return
        own = next((key for key in ("properties", "required") if key in node.schema), None)
        if own is None:
            yield node
        for keyword in node.schema:
            if keyword == own:
                yield node
            elif keyword in ("$ref", "$dynamicRef") and target is not None:
                yield from self._applied(target, value)
            elif keyword == "allOf":
                for branch in parts.branches(node, keyword):
                    yield from self._applied(branch, value)
            elif keyword in ("anyOf", "oneOf"):
                yield from self._applied(self._nearest(parts.branches(node, keyword), value), value)
            elif keyword == "if" and (condition := parts.child(node, "if")):
                outcome = "then" if self._fits(condition, value) else "else"
                if chosen := parts.child(node, outcome):
                    yield from self._applied(chosen, value)

    def _nearest(self, branches: list[Node], value: object) -> Node:
        """The first alternative that a value fits, else the one that lists most of its keys."""
        for branch in branches:
            if self._fits(branch, value):
                return branch
        keys = set(value) if isinstance(value, dict) else set()
        return max(
            branches,
            key=lambda branch: len(keys.intersection(_listed(self._applied(branch, value)))),
        )

    def _member(self, nodes: list[Node], key: str) -> list[Node]:
        """The subschemas for one property of an object."""
        found: list[Node | None] = []
        for node in nodes:
            named = [self._parts.child(node, "properties", key)]
            for pattern in node.schema.get("patternProperties", {}):
                # Python's regular expressions differ slightly from the schema's. A mismatch can
                # only change the order of properties.
                with suppress(re.error):
                    if re.search(pattern, key):
                        named.append(self._parts.child(node, "patternProperties", pattern))
            if not any(named):
                named = [self._parts.child(node, "additionalProperties")]
            found += named
        return [node for node in found if node is not None]

    def _item(self, nodes: list[Node], index: int) -> list[Node]:
        """The subschemas for one item of an array (draft 7 has tuples in `items`)."""
        places: tuple[tuple[str | int, ...], ...] = (
            ("prefixItems", index),
            ("items", index),
            ("items",),
        )
        found = []
        for node in nodes:
            named = (self._parts.child(node, *place) for place in places)
            found.append(next((item for item in named if item is not None), None))
        return [node for node in found if node is not None]


def _listed(nodes: Iterable[Node]) -> dict[str, None]:
    """The property names that schemas describe, in order, then those that they only require."""
    described: dict[str, None] = {}
    required: dict[str, None] = {}
    for node in nodes:
        described |= dict.fromkeys(node.schema.get("properties", {}))
        required |= dict.fromkeys(node.schema.get("required", []))
    return described | required
