"""Refusal of documents that are not schemas, by which every answer would be valid."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_lora.errors import UserError
from llm_lora.grammar.features import FRAGMENTS
from llm_lora.schema.answer import AnswerSchema
from llm_lora.schema.keywords import NOTES, RULES

INNER = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"name": "n", "description": "d", "strict": True, "schema": INNER}


def make(document: Any) -> AnswerSchema:
    return AnswerSchema.from_text(json.dumps(document), "s.json")


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (NAMED, "schema"),
        ({"schema": INNER}, "schema"),
        ({"type": "json_schema", "json_schema": NAMED}, "json_schema.schema"),
        ({"json_schema": INNER}, "json_schema"),
        ({"name": "n", "parameters": INNER}, "parameters"),
        ({"name": "n", "description": "d", "input_schema": INNER}, "input_schema"),
    ],
)
def test_what_wraps_a_schema(document: Any, place: str) -> None:
    with pytest.raises(UserError) as told:
        make(document)
    assert str(told.value) == (
        f"s.json: this is not a schema, but contains one under {place}; "
        f"use only the object under {place}"
    )


def test_an_answer_is_no_schema() -> None:
    with pytest.raises(UserError, match='no JSON Schema keyword, only "level", "n"; begin with'):
        make({"level": "low", "n": 1})


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"title": "anything"},
        {"$defs": {"a": INNER}},
        {"definitions": {}, "more": 1},
        {"$comment": "?"},
        {"x-order": 1},
        {"type": ["object", "null"], "schema": {}},
        {"type": "object", "schema": {}, "parameters": {}},
        {"properties": {"schema": INNER}, "schema": {}},
        {"$ref": "#/schema", "schema": INNER},
    ],
)
def test_what_is_a_schema(document: Any) -> None:
    assert make(document).document == document


def test_no_keyword_is_forgotten() -> None:
    known = {keyword for fragment in FRAGMENTS.values() for keyword in fragment}
    assert {name for name in known if not name.startswith(("$", "x-"))} <= RULES | NOTES
