"""The names of JSON Schema's keywords, drafts 4 to 2020-12."""

from __future__ import annotations

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
