"""Telling records that hold an answer from answers, by schemas of every build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_lora.errors import UserError
from llm_lora.schema.answer import AnswerSchema
from llm_lora.validate import intake
from llm_lora.validate import judging as validate
from llm_lora.validate.envelope import Envelope
from llm_lora.validate.judging import Judge, judge_blocks, judge_file

TEXT: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}}
NODE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
            "required": ["text", "children"],
        }
    },
}
STRINGS = {"additionalProperties": {"type": "string"}}
TAGGED = [
    {"properties": {"kind": {"const": kind}, name: {"type": "string"}}, "required": ["kind", name]}
    for kind, name in (("a", "text"), ("b", "url"))
]


def envelope(document: dict[str, Any]) -> Envelope:
    return Envelope(AnswerSchema.from_text(json.dumps(document)))


def kinds(tmp_path: Path, document: dict[str, Any], line: str) -> list[str]:
    path = tmp_path / "answers.jsonl"
    path.write_text(line)
    schema = AnswerSchema.from_text(json.dumps(document))
    return [one.verdict.kind for one in judge_file(path, schema)]


@pytest.mark.parametrize(
    ("document", "line", "kind"),
    [
        (NODE, {"text": "hello", "children": []}, "valid"),
        (NODE, {"text": '{"text":"i","children":[]}', "children": 17}, "invalid"),
        (NODE, {"answer": '{"text":"i","children":[]}'}, "valid"),
        ({"anyOf": TAGGED}, {"kind": "a", "text": "hello"}, "valid"),
        ({"oneOf": TAGGED}, {"kind": "a", "text": '{"kind":"b","url":"u"}', "x": 1}, "valid"),
        ({"allOf": [TEXT]}, {"text": "hello"}, "valid"),
        ({"if": {"required": ["a"]}, "then": TEXT}, {"a": 1, "text": "hello"}, "valid"),
        ({"type": "object", "required": ["text"]}, {"text": "hello"}, "valid"),
        (STRINGS, {"text": "hello"}, "valid"),
        (STRINGS, {"text": 7}, "invalid"),
        (STRINGS, {"text": '{"a":7}'}, "invalid"),
        (STRINGS, {"answer": {"a": "b"}}, "valid"),
        ({"type": "object", "additionalProperties": True}, {"text": "hello"}, "valid"),
        ({"patternProperties": {"^te": {"type": "string"}}}, {"text": "hello"}, "valid"),
        # What is merely not forbidden makes no answer of a record.
        ({"patternProperties": {"^x": {"type": "string"}}}, {"text": "hello"}, "not_json"),
        ({"properties": {"level": {"enum": ["low"]}}}, {"text": "hello"}, "not_json"),
        ({"properties": {"level": {"enum": ["low"]}}}, {"text": {"level": "mid"}}, "invalid"),
        ({"not": {"required": ["text"]}}, {"text": '{"text":1}'}, "invalid"),
    ],
)
def test_a_record_or_the_answer_itself(
    tmp_path: Path, document: dict[str, Any], line: dict[str, Any], kind: str
) -> None:
    assert kinds(tmp_path, document, json.dumps(line)) == [kind]


LIST = {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize(
    "document",
    [
        LIST,
        {"$ref": "#/$defs/L", "$defs": {"L": LIST}},
        {"type": ["array", "null"]},
        {"anyOf": [LIST, {"type": "null"}]},
        {"items": {"type": "integer"}},
    ],
)
def test_answers_that_may_be_arrays(tmp_path: Path, document: dict[str, Any]) -> None:
    assert kinds(tmp_path, document, "[1,2]") == ["valid"]


@pytest.mark.parametrize(
    "document",
    [
        {"type": "object", "allOf": [LIST]},
        {"not": LIST},
        {"anyOf": [{"type": "object"}, {"$ref": "#/$defs/L"}], "$defs": {"L": {"type": "null"}}},
        {"properties": {"a": LIST}},
        {"allOf": [{"type": "object"}, {"type": ["array", "object"]}]},
    ],
)
def test_answers_that_are_no_arrays(document: dict[str, Any]) -> None:
    assert not envelope(document).arrays


def test_keywords_beside_a_reference_count_where_the_draft_says_so() -> None:
    document = {"$ref": "#/definitions/N", "definitions": {"N": {"type": "array"}}, **TEXT}
    assert envelope(document).keys == ["answer", "response"]
    old = envelope({"$schema": "http://json-schema.org/draft-07/schema", **document})
    assert old.keys == ["answer", "response", "text"]
    assert old.arrays


LEVEL = AnswerSchema.from_text('{"properties":{"level":{"enum":["low"]}}}')


def test_a_record_without_the_column_is_told(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"out":{"level":"low"}}\n{"id":1,"answer":"x"}\n"{}"\n{}\n')
    (block,) = judge_blocks(path, Judge(LEVEL, "out", fix=True))
    assert [(one.line, str(one.verdict)) for one in block.bad] == [
        (2, 'no "out" in the record; its keys: "id", "answer"'),
        (4, 'no "out" in the record; its keys: none'),
    ]
    assert block.summary.to_dict()["reasons"][0]["keyword"] == "column"
    assert block.fixed.decode() == path.read_text()


def test_a_column_that_no_record_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id":1,"answer":{"level":"low"}}\n' * 20)
    monkeypatch.setattr(intake, "BLOCK", 100)
    message = 'no record has "anwser"; --column NAME; keys of the records: "id", "answer"$'
    with pytest.raises(UserError, match=message):
        list(judge_blocks(path, Judge(LEVEL, "anwser"), jobs=1))
    monkeypatch.setattr(validate, "_SMALL", 0)
    with pytest.raises(UserError, match=message):
        list(judge_blocks(path, Judge(LEVEL, "anwser"), jobs=2))
    # One record with it, anywhere, is enough.
    path.write_text(path.read_text() + '{"anwser":{"level":"low"}}')
    assert sum(one.summary.valid for one in judge_blocks(path, Judge(LEVEL, "anwser"))) == 1
