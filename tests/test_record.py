"""Records: what is written is read back, and anything else is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from llm_lora.errors import UserError
from llm_lora.record import INLINE, OMITTED, Key, Record


@dataclass(frozen=True)
class Part(Record):
    score: float | None
    ends: tuple[float, float]
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Whole(Record):
    name: str
    others: Annotated[Mapping[str, Part], INLINE]
    base: Annotated[Part, Key("of")]
    facts: tuple[tuple[str, int | str], ...]
    reason: Annotated[str, OMITTED] = ""

    ORDER: ClassVar[tuple[str, ...]] = ("base", "name", "facts", "reason", "others")


PART = Part(0.5, (0.25, 1.0), "b")
WHOLE = Whole("n", {"x": PART}, Part(None, (0, 1)), (("many", 3), ("which", "y")))
DOCUMENT: dict[str, Any] = {
    "of": {"score": None, "ends": [0, 1], "kind": "a"},
    "name": "n",
    "facts": [["many", 3], ["which", "y"]],
    "x": {"score": 0.5, "ends": [0.25, 1.0], "kind": "b"},
}


def test_a_record_is_written_in_its_order_and_read_back() -> None:
    assert WHOLE.to_json() == DOCUMENT
    assert list(WHOLE.to_json()) == list(DOCUMENT)
    assert Whole.from_json(json.loads(json.dumps(DOCUMENT)), "file", "") == WHOLE
    told = Whole.from_json(DOCUMENT | {"reason": "why"}, "file", "")
    assert told.reason == "why" and list(told.to_json())[3] == "reason"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"name": None}, "name"),
        ({"of": {"score": 1}}, "of.ends"),
        ({"of": {"score": "1", "ends": [0, 1], "kind": "a"}}, "of.score"),
        ({"of": {"score": True, "ends": [0, 1], "kind": "a"}}, "of.score"),
        ({"of": {"score": 1, "ends": [0], "kind": "a"}}, "of.ends"),
        ({"of": {"score": 1, "ends": [0, 1], "kind": "c"}}, "of.kind"),
        ({"x": []}, "x"),
        ({"facts": [["a", 1], ["b", 0.5]]}, "facts[1][1]"),
        ({"facts": {}}, "facts"),
    ],
)
def test_another_version_is_refused_with_the_place(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(UserError) as caught:
        Whole.from_json(DOCUMENT | changes, "report.json", "write it anew")
    (problem,) = caught.value.problems
    assert problem.what == "written by another version of llm-lora"
    assert (problem.where, problem.fix) == (f"report.json: {place}", "write it anew")


def test_a_missing_key_is_named_and_so_is_the_file_alone() -> None:
    with pytest.raises(UserError, match=r"report\.json: name"):
        Whole.from_json({"of": DOCUMENT["of"]}, "report.json", "")
    with pytest.raises(UserError, match=r"report\.json"):
        Whole.from_json([], "report.json", "")
