"""Schemas that refer to neighbouring files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_lora.errors import UserError
from llm_lora.schema.answer import AnswerSchema
from llm_lora.schema.subschemas import Subschemas


def write(folder: Path, **documents: Any) -> Path:
    """Write files `name.json` and return the path of the first."""
    for name, document in documents.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    return folder / f"{next(iter(documents))}.json"


PERSON = {
    "$id": "https://example.org/person.json",
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/name"}, "home": {"$ref": "parts/place.json"}},
    "required": ["name"],
    "$defs": {"name": {"$anchor": "name", "type": "string", "minLength": 2}},
}
PLACE = {
    "properties": {"owner": {"$ref": "../person.json"}, "city": {"$ref": "../person.json#name"}}
}


def test_files_beside_a_schema_become_definitions(tmp_path: Path) -> None:
    root = {
        "properties": {
            "who": {"$ref": "person.json"},
            "nick": {"$ref": "person.json#/$defs/name"},
            "again": {"$ref": "#/properties/nick"},
        }
    }
    path = write(tmp_path, root=root, person=PERSON, parts__place=PLACE)
    schema = AnswerSchema.load(path)
    for answer, valid in {
        '{"who":{"name":"Al"}}': True,
        '{"who":{"name":"A"}}': False,
        '{"nick":"A"}': False,
        '{"again":"A"}': False,
        '{"who":{"name":"Al","home":{"city":"B"}}}': False,
        '{"who":{"name":"Al","home":{"owner":{"name":"Bo","home":{"owner":{}}}}}}': False,
        '{"who":{"name":"Al","home":{"owner":{"name":"Bo"},"city":"Rome"}}}': True,
    }.items():
        assert schema.judge(answer).valid == valid, answer
    assert sorted(schema.document["$defs"]) == ["person", "place"]
    # The text alone is now the whole schema.
    alone = AnswerSchema.from_text(schema.text)
    assert alone.document == schema.document
    assert alone.canonical({"who": {"home": {}, "name": "Al"}}) == '{"who":{"name":"Al","home":{}}}'


def test_a_schema_without_such_references_stays_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{ "type":"object",\n "$defs": {} }')
    assert AnswerSchema.load(path).text == path.read_text()


def test_draft_7_and_names_that_are_taken(tmp_path: Path) -> None:
    draft = "http://json-schema.org/draft-07/schema#"
    root = {
        "$schema": draft,
        "definitions": {"b": {"type": "integer"}},
        "items": [{"$ref": "b.json#/definitions/x"}, {"$ref": "#/definitions/b"}],
    }
    other = {"$schema": draft, "definitions": {"x": {"type": "string"}}}
    schema = AnswerSchema.load(write(tmp_path, root=root, b=other))
    assert schema.judge('["a",1]').valid
    assert not schema.judge("[1,1]").valid
    assert not schema.judge('["a","a"]').valid
    assert list(schema.document["definitions"]) == ["b", "b_2"]


@pytest.mark.parametrize(
    "reference",
    ["../outside.json", "/etc/hostname", "missing.json", "https://example.org/inside.json",
     "file:///etc/hostname", "//host/inside.json", "inside.json?x",
     "inside.json#/nowhere", "link.json"],
)  # fmt: skip
def test_nothing_else_is_opened(tmp_path: Path, reference: str) -> None:
    write(tmp_path, outside={"type": "string"})
    path = write(tmp_path / "in", root={"properties": {"a": {"$ref": reference}}}, inside={})
    (tmp_path / "in" / "link.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(UserError, match=r"is another document|does not exist"):
        AnswerSchema.load(path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must be a JSON object"),
        ({"type": "strin"}, r"b\.json:1:\d+: not a valid schema: type"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "\\$schema differs"),
        ({"items": {"$dynamicRef": "#x"}}, "dynamicRef"),
        ({"$ref": "c.json"}, r"c\.json: not JSON"),
        ({"$ref": "root.json"}, "refers to itself endlessly"),
    ],
)
def test_files_beside_it_are_checked_too(tmp_path: Path, document: Any, message: str) -> None:
    path = write(tmp_path, root={"$ref": "b.json"}, b=document)
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match=message):
        AnswerSchema.load(path)


def test_nested_items_are_walked_once() -> None:
    document: dict[str, Any] = {"const": {"$ref": "x.json"}}
    for _ in range(100):
        document = {"items": document}
    assert len(list(Subschemas(document, siblings=True).nodes())) == 101
    assert list(Subschemas(document, siblings=True).unresolved()) == []
    tuple_ = {"items": [{"type": "string"}, {"items": {"type": "null"}}]}
    assert len(list(Subschemas(tuple_, siblings=False).nodes())) == 4
