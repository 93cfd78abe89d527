"""Detection of records: whether a line is an answer itself, or a record that holds one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path

import jsonschema_rs

from llm_lora.errors import UserError
from llm_lora.schema import AnswerSchema, Node, Place, Reason, Verdict, quote
from llm_lora.validate.intake import RECORD_KEYS

# Keywords whose subschemas say what the value itself may hold; `not` says what it may not.
_ALL = ("allOf",)
_ANY = ("anyOf", "oneOf", "then", "else")
_IN_PLACE = (*_ALL, *_ANY, "if", "dependentSchemas", "dependencies")
_REFERENCES = ("$ref", "$dynamicRef")
_SHOWN = 10
_OPEN = ("additionalProperties", "unevaluatedProperties")


class Envelope:
    """Distinguishes records that hold an answer from answers.

    A record holds its answer under `column`, by default `answer`, `response` or `text`. A default
    key does not count if the schema has a property of that name, even behind a `$ref` or in a
    branch of `anyOf`.
    """

    def __init__(self, schema: AnswerSchema, column: str | None = None) -> None:
        self._schema, self._parts, self.column = schema, schema.parts, column

    @cached_property
    def arrays(self) -> bool:
        """Whether answers may be arrays."""
        return self._array(self._parts.root) is True

    @cached_property
    def keys(self) -> list[str]:
        """The keys that may hold the answer of a record, the likeliest first."""
        if self.column is not None:
            return [self.column]
        return [key for key in RECORD_KEYS if key not in self._names]

    def lacking(self, record: Mapping[str, object]) -> Verdict | None:
        """The verdict on a record that lacks the requested column."""
        if self.column is None or self.column in record:
            return None
        what = f"no {quote(self.column)} in the record; its keys: {_some(record)}"
        return Verdict("invalid", (Reason("", "column", what),))

    def key(self, record: Mapping[str, object]) -> str | None:
        """The key that holds the answer of a record; None if the record is the answer itself."""
        for key in self.keys:
            if key in record:
                itself = key in self._claimed and self._is_answer(record, record[key])
                return None if itself else key
        return None

    def _is_answer(self, record: Mapping[str, object], held: object) -> bool:
        """Whether a record is an answer, if the schema allows the key without naming it."""
        if not isinstance(held, str | dict | list):
            return True
        text = isinstance(held, str) and held.lstrip().startswith(("{", "["))
        return not text and self._schema.judge_value(record).valid

    @cached_property
    def _nodes(self) -> list[Node]:
        """The schema, and every subschema that applies to the whole answer."""
        found: dict[Place, Node] = {}
        waiting = [self._parts.root]
        while waiting:
            node = waiting.pop()
            if node.place not in found:
                found[node.place] = node
                waiting += self._beside(node, _IN_PLACE)
        return list(found.values())

    @cached_property
    def _names(self) -> set[str]:
        return {
            name
            for node in self._nodes
            if self._counts(node)
            for keyword in ("properties", "required")
            for name in _listed(node.schema.get(keyword))
        }

    @cached_property
    def _claimed(self) -> set[str]:
        """Keys of records that an answer may have as well, though the schema does not name them."""
        if self.column is not None:
            return set()
        nodes = [node.schema for node in self._nodes if self._counts(node)]
        # Keys that are merely not forbidden prove nothing, or any record could be an answer.
        told = [schema[keyword] for schema in nodes for keyword in _OPEN if keyword in schema]
        if any(held not in (True, False, {}) or (held is not False and not self._names)
               for held in told):  # fmt: skip
            return set(self.keys)
        patterns = [name for schema in nodes for name in _listed(schema.get("patternProperties"))]
        # The validator decides, because its regular expressions differ from Python's.
        closed = {"patternProperties": dict.fromkeys(patterns, False)}
        return {key for key in self.keys if not jsonschema_rs.is_valid(closed, {key: 0})}

    def _array(self, node: Node) -> bool | None:
        """Whether a subschema requires an array; None if it does not say."""
        schema = node.schema
        if self._counts(node):
            if "type" in schema:
                return "array" in _listed(schema["type"])
            if "items" in schema or "prefixItems" in schema:
                return "properties" not in schema
        whole = [self._array(part) for part in self._beside(node, _ALL)]
        some = [self._array(part) for keyword in _ANY for part in self._in(node, keyword)]
        if False in whole:
            return False
        if True in whole or True in some:
            return True
        return False if some and None not in some else None

    def _counts(self, node: Node) -> bool:
        """Whether keywords of this node count; older drafts ignore those beside a `$ref`."""
        return self._parts.siblings or "$ref" not in node.schema

    def _in(self, node: Node, keyword: str) -> list[Node]:
        return self._parts.below(node, keyword) if self._counts(node) else []

    def _beside(self, node: Node, keywords: tuple[str, ...]) -> Iterator[Node]:
        """The targets of a node's references, and its subschemas under some keywords."""
        targets = (self._parts.target(node, keyword) for keyword in _REFERENCES)
        yield from (target for target in targets if target is not None)
        for keyword in keywords:
            yield from self._in(node, keyword)


def no_column(where: Path, column: str, found: Iterable[str]) -> UserError:
    """The error for a file in which no record has the requested column."""
    fix = f"--column NAME; keys of the records: {_some(found)}"
    return UserError(f"no record has {quote(column)}", where=str(where), fix=fix)


def _some(keys: Iterable[str]) -> str:
    """The first few of the keys."""
    return ", ".join([quote(key) for key in islice(keys, _SHOWN)]) or "none"


def _listed(held: object) -> list[str]:
    """Names in a list or map, or one name; draft 4 has a boolean where others have a list."""
    if isinstance(held, str):
        return [held]
    return [str(name) for name in held] if isinstance(held, list | dict) else []
