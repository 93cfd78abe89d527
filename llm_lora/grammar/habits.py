"""Remarks on a schema's design: unbounded values, ambiguity, and the order of properties."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jsonschema_rs

from llm_lora.errors import UserError
from llm_lora.grammar.extent import Extent, Measure, pattern_end
from llm_lora.grammar.features import Use
from llm_lora.grammar.matching import Refused, compile_schema, draw
from llm_lora.schema import (
    LARGEST,
    MOST_CHARACTERS,
    MOST_ITEMS,
    AnswerSchema,
    Node,
    dumps,
    excerpt,
    format_path,
    quote,
)

MANY_OPTIONAL = 8
"""With this many, an object has hundreds of shapes, more than the training data covers."""

_ENDED_FORMATS = frozenset(("date", "time", "date-time", "uuid", "ipv4", "ipv6", "duration"))
_WORDY = 3
"""An enum value of at least this many tokens is checked …"""
_SPREAD = 2.0
"""… and remarked on if its tokens average fewer characters than this."""
_DRAWS = 20

CONCLUSIONS = frozenset(
    "answer category class classification conclusion decision diagnosis grade intent label outcome "
    "priority rating recommendation result score sentiment severity specialty status urgency "
    "verdict".split()
)
EVIDENCE = frozenset(
    "analysis because cause citation citations evidence explanation findings justification "
    "observations proof quote quotes rationale reason reasoning reasons source sources steps "
    "symptoms thinking thought thoughts".split()
)
"""Names of evidence; evidence written after a conclusion is made up to fit it."""


@dataclass(frozen=True)
class Remark:
    """Something worth changing; `where` is its place in the schema, `fix` what to do."""

    kind: str
    where: str
    message: str
    fix: str | None = None


def remarks(
    schema: AnswerSchema, uses: Sequence[Use], found: Extent, measure: Measure | None
) -> Iterator[Remark]:
    """All remarks, in the order of the schema."""
    if found.shortest is None:
        yield Remark("endless", "(schema)", "no answer can ever end", "make the recursion optional")
    for use in uses:
        where = format_path(use.node.place) or "(schema)"
        yield from _running_on(use, where)
        yield from _objects(use, where)
        yield from _ambiguous(schema, use.node, where)
        if measure is not None:
            yield from _scraps(use.node, where, measure)


def _running_on(use: Use, where: str) -> Iterator[Remark]:
    schema, names = use.node.schema, use.features
    if "any value" in names or "items:any" in names:
        yield Remark("any_value", where, "any JSON value is accepted here", "set type")
    if "$ref:recursive" in names:
        message = "nests itself to any depth: an answer can run until the token limit"
        yield Remark("recursion", where, message, "nest a fixed number of levels")
    if "enum" in names or "const" in names:
        return
    ended = schema.get("format") in _ENDED_FORMATS or not math.isinf(pattern_end(schema))
    if "type:string" in names and "maxLength" not in schema and not ended:
        message = f"no maxLength: the constraint sets {MOST_CHARACTERS} characters"
        yield Remark("unbounded_string", where, message, "set maxLength")
    if "type:array" in names and "maxItems" not in schema and schema.get("items") is not False:
        message = f"no maxItems: the constraint sets {MOST_ITEMS} items"
        yield Remark("unbounded_array", where, message, "set maxItems")
    low = schema.keys() & {"minimum", "exclusiveMinimum"}
    high = schema.keys() & {"maximum", "exclusiveMaximum"}
    if ("type:number" in names or "type:integer" in names) and not (low and high):
        lacks = " and ".join(name for name, has in (("minimum", low), ("maximum", high)) if not has)
        message = f"no {lacks}: the constraint sets {LARGEST:.0e} and excludes exponents"
        yield Remark("unbounded_number", where, message, f"set {lacks}")


def _objects(use: Use, where: str) -> Iterator[Remark]:
    schema = use.node.schema
    if "open object" in use.features or "any object" in use.features:
        message = "no additionalProperties: false, so unknown and repeated keys are accepted"
        yield Remark("open_object", where, message, "set additionalProperties: false")
    named = schema.get("properties", {})
    optional = [name for name in named if name not in schema.get("required", [])]
    if len(optional) >= MANY_OPTIONAL:
        message = f"{len(optional)} optional properties allow {2 ** len(optional)} shapes"
        yield Remark("many_optional", where, message, "require them and allow null values")
    early = _too_early(list(named))
    if early is not None:
        first, later = early
        message = f"{quote(first)} comes before {quote(later)}, on which it should be based"
        yield Remark("order", where, message, f"move {quote(later)} before {quote(first)}")


def _too_early(names: list[str]) -> tuple[str, str] | None:
    """A conclusion and a later property with the evidence for it, if any."""
    for first, later in combinations(names, 2):
        if words(first) & CONCLUSIONS and words(later) & EVIDENCE:
            return first, later
    return None


def words(name: str) -> set[str]:
    """The words of a property's name: `finalAnswer_v2` → final, answer, v2."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return set(re.split(r"[^a-z0-9]+", spaced.lower()))


def _scraps(node: Node, where: str, measure: Measure) -> Iterator[Remark]:
    for value in node.schema.get("enum", []):
        if not isinstance(value, str):
            continue
        tokens = measure(value)
        if tokens >= _WORDY and len(value) / tokens < _SPREAD:
            message = f"{quote(value)} takes {tokens} tokens for {len(value)} characters"
            yield Remark("scraps", where, message, "choose a common word in lower case")


def _ambiguous(schema: AnswerSchema, node: Node, where: str) -> Iterator[Remark]:
    """Alternatives that overlap, shown by an answer that fits both."""
    branches = schema.parts.branches(node, "anyOf")
    for (i, one), (j, other) in combinations(enumerate(branches), 2):
        if _kinds(one) and _kinds(other) and not _kinds(one) & _kinds(other):
            continue
        for held, judge in ((one, other), (other, one)):
            example = _in_both(schema, held, judge)
            if example is not None:
                message = f"{quote(excerpt(example))} fits alternatives {i + 1} and {j + 1}"
                fix = "give each a required property with a different const"
                yield Remark("ambiguous", where, message, fix)
                return


def _kinds(node: Node) -> set[str]:
    kinds: Any = node.schema.get("type", [])
    return {kinds} if isinstance(kinds, str) else set(kinds)


def _in_both(schema: AnswerSchema, held: Node, judge: Node) -> str | None:
    """An answer drawn from one subschema that fits another; None if none was found."""
    shared = {key: schema.document[key] for key in ("$schema", "$defs", "definitions")
              if key in schema.document}  # fmt: skip
    with suppress(Refused, UserError, jsonschema_rs.ValidationError, ValueError):
        grammar = compile_schema(AnswerSchema.from_text(dumps(shared | held.schema)))
        validator = jsonschema_rs.validator_for(shared | judge.schema, validate_formats=True)
        own = AnswerSchema.from_text(dumps(shared | held.schema))
        source = random.Random(0)
        for _ in range(_DRAWS):
            text = draw(grammar, source)
            verdict = own.judge(text) if text is not None else None
            if verdict is not None and verdict.valid and validator.is_valid(verdict.value):
                return text
    return None
