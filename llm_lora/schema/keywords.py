"""The keywords of JSON Schema, and the type of a schema made of them."""

from __future__ import annotations

from typing import Any, NewType

Schema = NewType("Schema", dict[str, Any])
"""A JSON Schema or a part of one. Answers are dicts too, and mypy keeps the two apart."""

RULES = frozenset(
    ("$dynamicRef", "$recursiveRef", "$ref", "additionalItems", "additionalProperties", "allOf",
     "anyOf", "const", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else",
     "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "if", "items", "maxContains",
     "maxItems", "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength",
     "minProperties", "minimum", "multipleOf", "not", "oneOf", "pattern", "patternProperties",
     "prefixItems", "properties", "propertyNames", "required", "then", "type", "unevaluatedItems",
     "unevaluatedProperties", "uniqueItems")
)  # fmt: skip
"""Keywords that constrain a value."""

NOTES = frozenset(
    ("contentEncoding", "contentMediaType", "contentSchema", "default", "definitions", "deprecated",
     "description", "discriminator", "example", "examples", "id", "nullable", "readOnly", "title",
     "writeOnly")
)  # fmt: skip
"""Keywords that annotate a schema; those that begin with $ are annotations too, unless listed
above."""

# Keywords that hold subschemas (JSON Schema 2020-12 core section 10, draft-07 sections 6-9).
SINGLE = (
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
MANY = (
    "$defs", "allOf", "anyOf", "definitions", "dependencies", "dependentSchemas", "items", "oneOf",
    "patternProperties", "prefixItems", "properties",
)  # fmt: skip
REFERENCES = ("$ref", "$dynamicRef")
# Keywords whose subschemas apply to the same value as the schema that holds them.
IN_PLACE = (
    "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies",
)  # fmt: skip
