"""What a decoder may write of a schema: the schema itself, with an end to what has none.

A weak model repeats itself for as long as it may. Where a schema sets no bound, the constraint
does: strings, arrays and numbers end. Where the decoder's notion of a format is wider than the
judge's, the difference is shut out. What is narrowed is never more than the schema allows, so
every answer that the constraint lets through is judged by the schema itself.
"""

from __future__ import annotations

from typing import Any

MOST_CHARACTERS = 4096
"""Of a string without `maxLength`; longer than any answer that adapters of this kind write."""

MOST_ITEMS = 256
"""Of an array without `maxItems`. llguidance's work grows with the square of a bounded array's
length: 25 ms in all for 250 items, over a second for 1,000."""

LARGEST = 10**18
"""Of a number without bounds, either way. A bound also rules out exponents, and with them numbers
such as 1e999, which no reader of JSON can hold."""

# llguidance writes the 29th of any February.
_DATE = (
    "^(?:.{5}(?:0[013-9]|1.)-..|.{5}02-(?:[01].|2[0-8])"
    "|(?:..(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
# It writes the second 60 after any minute; judges take it at 23:59:60 UTC alone.
_PATTERNS = {
    "date": f"{_DATE}$",
    "date-time": f"{_DATE}.{{7}}[0-5]",
    "time": "^.{6}[0-5]",
    # RFC 5321 section 4.5.3.1: 64 characters before the @.
    "email": "^[^@]{1,64}@",
}
# RFC 5321 section 4.5.3.1 (an address in a path of 256), RFC 1035 section 2.3.4.
_LONGEST = {"email": 254, "hostname": 253}

# Keywords whose subschemas only ever widen what is allowed when they are widened themselves.
_MANY = ("$defs", "definitions", "properties", "patternProperties", "allOf", "anyOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties")


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The part of a schema that decoding is held to; keys keep their order.

    A document with `oneOf` stays as it is: narrowing one alternative can let through what another
    one rules out.
    """
    return document if _mentions(document, "oneOf") else _narrow(document)


def _narrow(node: Any) -> Any:
    if isinstance(node, list):
        return [_narrow(part) for part in node]
    if not isinstance(node, dict):
        return node
    held = dict(node)
    for keyword in _SINGLE:
        if keyword in held:
            held[keyword] = _narrow(held[keyword])
    for keyword in _MANY:
        parts = held.get(keyword)
        if isinstance(parts, dict):
            held[keyword] = {name: _narrow(part) for name, part in parts.items()}
        elif isinstance(parts, list):
            held[keyword] = [_narrow(part) for part in parts]
    # Values that are written out have their end; beside a reference, old drafts read nothing.
    return held if held.keys() & {"enum", "const", "$ref"} else held | _bounds(held)


def _bounds(node: dict[str, Any]) -> dict[str, Any]:
    kinds = node.get("type", [])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    bounds: dict[str, Any] = {}
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


def _string_bounds(node: dict[str, Any]) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
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
