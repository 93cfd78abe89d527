"""Verdicts against the official suite and against jsonschema, the reference implementation.

Where jsonschema and llm-lora differ, the difference stands here by name, with its reason.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from referencing.jsonschema import DRAFT7 as SPEC7
from referencing.jsonschema import DRAFT202012 as SPEC2020
from support import official_suite
from support.random_schemas import DRAFT7, DRAFT2020, FORMATS, Maker

from llm_lora.errors import UserError
from llm_lora.schema.answer import AnswerSchema

DRAFTS = {
    "draft7": (DRAFT7, Draft7Validator, SPEC7),
    "draft2020-12": (DRAFT2020, Draft202012Validator, SPEC2020),
}
# Number of cases, and of those whose schema is refused.
CASES = {"draft7": (1465, 25), "draft2020-12": (1906, 54)}

# The reasons why schemas of the suite are refused when loaded, by a part of the message.
REFUSED = {
    "is another document": "it is at a URL; nothing is ever fetched",
    "unknown $schema": "it has its own meta-schema, which would have to be fetched",
}

# Intended differences from the suite: 2020-12 lets formats be asserted or not; here they are.
NOT_BY_DEFAULT = ("format.json", "is only an annotation by default")

# Files of the suite in which jsonschema disagrees with the suite.
REFERENCE_ERRS = {
    "optional/content.json": "jsonschema does not look into contentMediaType and contentEncoding",
    "optional/dependencies-compatibility.json": "jsonschema drops `dependencies` after draft 7",
    "optional/ecmascript-regex.json": "jsonschema takes Python's regular expressions",
    "optional/format/date-time.json": "not checked by jsonschema without rfc3339-validator",
    "optional/format/duration.json": "not checked by jsonschema without isoduration",
    "optional/format/ecmascript-regex.json": "jsonschema takes Python's regular expressions",
    "optional/format/email.json": "jsonschema only looks for an @",
    "optional/format/hostname.json": "not checked by jsonschema without fqdn",
    "optional/format/iri-reference.json": "not checked by jsonschema without rfc3987",
    "optional/format/iri.json": "not checked by jsonschema without rfc3987",
    "optional/format/json-pointer.json": "not checked by jsonschema without jsonpointer",
    "optional/format/relative-json-pointer.json": "not checked by jsonschema without jsonpointer",
    "optional/format/time.json": "not checked by jsonschema without rfc3339-validator",
    "optional/format/uri-reference.json": "not checked by jsonschema without rfc3987",
    "optional/format/uri-template.json": "not checked by jsonschema without uri-template",
    "optional/format/uri.json": "not checked by jsonschema without rfc3987",
}


@pytest.mark.parametrize("draft", DRAFTS)
def test_every_case_of_the_official_suite(draft: str) -> None:
    uri, reference, specification = DRAFTS[draft]
    registry = official_suite.remotes(draft, specification)
    seen: Counter[str] = Counter()
    wrong, differing = [], []
    for group in official_suite.groups(draft):
        # A bare true or false is not an answer schema, but may be a part of one.
        plain = {"allOf": [group.schema]} if isinstance(group.schema, bool) else group.schema
        document = {"$schema": uri, **plain}
        seen["cases"] += len(group.cases)
        try:
            schema = AnswerSchema.from_text(json.dumps(document))
        except UserError as error:
            assert any(reason in str(error) for reason in REFUSED), (group, error)
            seen["refused"] += len(group.cases)
            continue
        checker = reference.FORMAT_CHECKER
        judge = reference(document, format_checker=checker, registry=registry)
        for case in group.cases:
            name = f"{group.file}: {group.title}: {case['description']}"
            verdict = schema.judge(json.dumps(case["data"]))
            assert verdict.parsed, name
            by_default = NOT_BY_DEFAULT[0] == group.file and NOT_BY_DEFAULT[1] in name
            if verdict.valid != (case["valid"] and not by_default):
                wrong.append(name)
            try:
                other = judge.is_valid(case["data"])
            except Exception:  # a crash counts as a wrong answer
                other = not case["valid"]
            errs = other != case["valid"] and group.file in REFERENCE_ERRS
            unchecked = by_default and other
            if verdict.valid != other and not errs and not unchecked:
                differing.append(name)
    assert (wrong, differing) == ([], [])
    assert (seen["cases"], seen["refused"]) == CASES[draft]


SCHEMAS = 1500
VALUES = 10


@pytest.mark.parametrize("draft", [DRAFT7, DRAFT2020])
def test_random_schemas_and_values(draft: str) -> None:
    reference = Draft7Validator if draft == DRAFT7 else Draft202012Validator
    seen: Counter[str] = Counter()
    used: set[str] = set()
    for seed in range(SCHEMAS):
        maker = Maker(seed, draft)
        document = maker.document()
        text = json.dumps(document)
        try:
            schema = AnswerSchema.from_text(text)
        except UserError as error:
            assert "refers to itself endlessly" in str(error), (document, error)
            seen["refused"] += 1
            continue
        used |= {node_key for node in schema.parts.nodes() for node_key in node.schema}
        judge = reference(document, format_checker=reference.FORMAT_CHECKER)
        for number in range(VALUES):
            value = maker.near(document) if number % 3 else maker.value()
            verdict = schema.judge(json.dumps(value))
            assert verdict.valid == judge.is_valid(value), (document, value, str(verdict))
            assert bool(verdict.reasons) == (not verdict.valid)
            seen[verdict.kind] += 1
    assert seen["valid"] + seen["invalid"] >= 14_000
    assert min(seen["valid"], seen["invalid"]) >= 4_000
    assert seen["refused"] < SCHEMAS / 20
    assert used >= {
        "additionalProperties", "allOf", "anyOf", "const", "contains", "else", "enum",
        "exclusiveMaximum", "exclusiveMinimum", "format", "if", "items", "maxItems", "maxLength",
        "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum",
        "multipleOf", "not", "oneOf", "pattern", "patternProperties", "properties",
        "propertyNames", "required", "then", "type", "uniqueItems", "$ref",
        *(("additionalItems", "dependencies", "definitions") if draft == DRAFT7 else (
            "$defs", "dependentRequired", "dependentSchemas", "maxContains", "minContains",
            "prefixItems", "unevaluatedItems", "unevaluatedProperties")),
    }  # fmt: skip


# Cases left out of the random pairs because jsonschema is wrong: schema, value, our verdict.
KNOWN: dict[str, tuple[dict[str, Any], Any, bool]] = {
    "\\w is ASCII in JSON Schema's expressions, not in Python's": (
        {"pattern": "^\\w$"}, "é", False),
    "\\d is ASCII in JSON Schema's expressions, not in Python's": (
        {"pattern": "^\\d$"}, "٣", False),
    "jsonschema divides doubles, which drop digits beyond 2^53": (
        {"multipleOf": 1.5}, 2**53, False),
    "jsonschema divides doubles, which have no 0.1": ({"multipleOf": 0.1}, 0.3, True),
    "jsonschema takes anything with an @ for an address": ({"format": "email"}, "a@", False),
    "RFC 3339 has a year 0, Python has none": ({"format": "date"}, "0000-01-01", True),
    "jsonschema checks some formats only with further packages": (
        {"format": "date-time"}, "yesterday", False),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_left_out_of_the_random_pairs(name: str) -> None:
    schema, value, valid = KNOWN[name]
    text = json.dumps({"$schema": DRAFT2020, **schema})
    judge = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    assert AnswerSchema.from_text(text).judge(json.dumps(value)).valid == valid
    assert judge.is_valid(value) != valid, "jsonschema mended this: take it into the random pairs"


def test_formats_of_the_random_pairs_are_really_asserted() -> None:
    for name, texts in FORMATS.items():
        schema = AnswerSchema.from_text(json.dumps({"format": name}))
        verdicts = {schema.judge(json.dumps(text)).valid for text in texts}
        assert verdicts == {True, False}, name
