"""The schema that constrains decoding: the answer schema, with bounds where it sets none.

A weak model repeats itself as long as it is allowed to. Where a schema sets no bound on strings,
arrays or numbers, the constraint sets one. Where the decoder accepts more texts of a format than
the judge, the difference is excluded. Narrowing only ever takes answers away; every answer is
still judged by the schema itself.
"""

from __future__ import annotations

from typing import Any

from llm_lora.schema.keywords import Schema

MOST_CHARACTERS = 4096
"""Limit for a string without `maxLength`; longer than any string such adapters write."""

MOST_ITEMS = 256
"""Limit for an array without `maxItems`. llguidance's work grows with the square of a bounded
array's length: 25 ms in all for 250 items, over a second for 1,000."""

LARGEST = 10**18
"""Limit for the absolute value of a number without bounds. A bound also rules out exponents, and
with them numbers such as 1e999, which overflow in JSON parsers."""

# llguidance accepts 29 February in every year.
_DATE = (
    "^(?:.{5}(?:0[013-9]|1.)-..|.{5}02-(?:[01].|2[0-8])"
    "|(?:..(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
# It accepts second 60 in every minute; judges accept it only at 23:59:60 UTC.
_PATTERNS = {
    "date": f"{_DATE}$",
    "date-time": f"{_DATE}.{{7}}[0-5]",
    "time": "^.{6}[0-5]",
    # RFC 5321 section 4.5.3.1: 64 characters before the @.
    "email": "^[^@]{1,64}@",
}
# RFC 5321 section 4.5.3.1 (an address in a path of 256), RFC 1035 section 2.3.4.
_LONGEST = {"email": 254, "hostname": 253}

# Monotone keywords: narrowing a subschema in them can only narrow the whole schema. `not`, `if`
# and `oneOf` are not monotone.
_MANY = ("$defs", "definitions", "properties", "patternProperties", "allOf", "anyOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties")


def narrowed(document: Schema) -> Schema:
    """The schema that decoding is constrained to; keys keep their order.

    A document with `oneOf` stays as it is: narrowing one alternative can make a value valid that
    was excluded because it fitted two.
    """
    return document if _mentions(document, "oneOf") else _narrow(document)


def _narrow(node: Any) -> Any:
    if isinstance(node, list):
        return [_narrow(part) for part in node]
    if not isinstance(node, dict):
        return node
    held = Schema(dict(node))
    for keyword in _SINGLE:
        if keyword in held:
            held[keyword] = _narrow(held[keyword])
    for keyword in _MANY:
        parts = held.get(keyword)
        if isinstance(parts, dict):
            held[keyword] = {name: _narrow(part) for name, part in parts.items()}
        elif isinstance(parts, list):
            held[keyword] = [_narrow(part) for part in parts]
    # Listed values are bounded already; old drafts ignore keywords next to a reference.
    return held if held.keys() & {"enum", "const", "$ref"} else held | _bounds(held)


def _bounds(node: Schema) -> Schema:
    kinds = node.get("type", [])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    bounds = Schema({})
    if "string" in kinds:
        bounds |= _string_bounds(node)
    if "array" in kinds and "maxItems" not in node and node.get("minItems", 0) <= MOST_ITEMS:
        bounds["maxItems"] = MOST_ITEMS
    if kinds & {"number", "integer"}:
        low = node.get("minimum", node.get("exclusiveMinimum"))
        high = node.get("maximum", node.get("exclusiveMaximum"))
        if low is None and (high is None or high > -LARGEST):
            bounds["minimum"] = -LARGEST
        if high is None and (low is None or low < LARGEST):
            bounds["maximum"] = LARGEST
    return bounds


def _string_bounds(node: Schema) -> Schema:
    bounds = Schema({})
    named = node.get("format")
    longest = _LONGEST.get(named, MOST_CHARACTERS) if isinstance(named, str) else MOST_CHARACTERS
    if "maxLength" not in node and node.get("minLength", 0) <= longest:
        bounds["maxLength"] = longest
    if named in _PATTERNS:
        pattern = {"pattern": _PATTERNS[named]}
        if "pattern" in node:
            bounds["allOf"] = [*node.get("allOf", []), pattern]
        else:
            bounds |= pattern
    return bounds


def _mentions(node: Any, keyword: str) -> bool:
    if isinstance(node, dict):
        return keyword in node or any(_mentions(part, keyword) for part in node.values())
    return isinstance(node, list) and any(_mentions(part, keyword) for part in node)
