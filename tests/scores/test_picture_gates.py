"""Gates of image adapters: their measurements are judged by a schema, as answers are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.places import ROOT

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.schema.answer import AnswerSchema
from llm_lora.scores.image import gates as picture_gates
from llm_lora.scores.image.gates import DIMENSIONS, Dimension, Measurements, Response
from llm_lora.validate.judging import judge_file

SHIPPED = ROOT / "data_templates" / "style_lora" / "style.schema.json"


def measured(
    styles: Mapping[float, float | None] | None = None, **changes: float | None
) -> Measurements:
    """The measurements of a good adapter; `styles` is the presence of the style by strength."""
    found = {0.0: 0.05, 0.8: 0.9} | dict(styles or {})
    return Measurements(
        scores={**dict.fromkeys(DIMENSIONS, 0.9), **changes},
        reasons={name: f"no {name}" for name, value in changes.items() if value is None},
        dimensions=(
            Dimension("fidelity", 0.9, "", "", None, "", (("held-out pictures", 16),), ()),
        ),
        strengths=(
            Response(0.0, change=0.0, style=found[0.0], alignment=1.0),
            Response(0.8, change=40.0, style=found[0.8], alignment=0.8),
        ),
        embedder=None,
        prompts=(),
    )


def bounds(**document: Any) -> AnswerSchema:
    return AnswerSchema.from_text(json.dumps({"type": "object", **document}), "style.schema.json")


def test_the_shipped_bounds_are_for_every_dimension() -> None:
    schema = AnswerSchema.load(SHIPPED)
    picture_gates.require_known(schema)
    outcomes = picture_gates.judge({}, measured(), schema)
    assert [one.name for one in outcomes] == [
        *(f"{name}.schema" for name in DIMENSIONS),
        "schema_valid",
    ]
    assert all(one.passed and 0 < one.threshold <= 1 for one in outcomes)


@pytest.mark.parametrize(("strength", "style"), [(0.0, 0.9), (0.8, 0.1), (0.8, None)])
def test_the_shipped_bounds_want_the_style_at_its_place(
    strength: float, style: float | None
) -> None:
    told = measured({strength: style})
    *dimensions, whole = picture_gates.judge({}, told, AnswerSchema.load(SHIPPED))
    assert all(one.passed for one in dimensions)
    assert not whole.passed and "strengths" in whole.reason


def test_gates_of_the_recipe_and_of_the_schema() -> None:
    schema = bounds(properties={"alignment": {"type": "number", "minimum": 0.7}})
    outcomes = picture_gates.judge(
        {"fidelity": 0.95, "strength": 0.5}, measured(alignment=0.4), schema
    )
    assert [(one.name, one.passed) for one in outcomes] == [
        ("fidelity", False),
        ("strength", True),
        ("alignment.schema", False),
        ("schema_valid", False),
    ]
    assert outcomes[2].threshold == 0.7 and outcomes[2].value == 0.4
    assert outcomes[3].reason == "alignment: expected at least 0.7, got 0.4"


def test_what_was_not_measured_does_not_pass() -> None:
    schema = bounds(properties={"learning": {"type": "number"}})
    outcomes = picture_gates.judge({"learning": 0.1}, measured(learning=None), schema)
    assert [(one.name, one.passed) for one in outcomes] == [
        ("learning", False),
        ("schema_valid", False),
    ]
    assert outcomes[0].reason == "no learning"
    assert outcomes[1].reason == "learning: expected a number, got null"


def test_a_dimension_passes_at_its_bound() -> None:
    found = measured(fidelity=0.75)
    for wanted, passed in ((0.75, True), (0.76, False)):
        schema = bounds(properties={"fidelity": {"type": "number", "minimum": wanted}})
        plain, of_schema, whole = picture_gates.judge({"fidelity": wanted}, found, schema)
        outcome = {"threshold": wanted, "value": 0.75, "passed": passed}
        assert plain.to_json() == {"name": "fidelity"} | outcome
        assert of_schema.to_json() == {"name": "fidelity.schema"} | outcome
        assert (whole.threshold, whole.value, whole.passed) == (1.0, passed, passed)


def test_only_dimensions_with_a_minimum_have_a_gate_of_their_own() -> None:
    schema = bounds(
        properties={
            "consistency": {"minimum": 0.1},
            "fidelity": {"maximum": 1},
            "alignment": True,
            "strengths": {"minimum": 2},
        }
    )
    names = [one.name for one in picture_gates.judge({}, measured(), schema)]
    assert names == ["consistency.schema", "schema_valid"]


def test_what_nobody_gave_a_reason_for_was_not_measured() -> None:
    unsaid = replace(measured(learning=None), reasons={})
    (outcome,) = picture_gates.judge({"learning": 0.1}, unsaid, None)
    assert (outcome.passed, outcome.reason) == (False, "not measured")


def test_the_record_has_every_dimension_and_what_it_rests_on() -> None:
    bare = replace(measured(), scores={"fidelity": 0.5, "other": 1}, dimensions=(), strengths=())
    assert picture_gates.record(bare) == {
        **dict.fromkeys(DIMENSIONS, None),
        "fidelity": 0.5,
        "strengths": [],
        "facts": {},
    }
    found = picture_gates.record(measured())
    assert found["facts"] == {"fidelity": {"held-out pictures": 16}}
    strengths: Any = found["strengths"]
    assert [row["strength"] for row in strengths] == [0.0, 0.8]
    picture_gates.require_known(
        bounds(properties={name: {} for name in found}, required=list(found))
    )


def test_without_bounds_everything_passes() -> None:
    assert picture_gates.judge({}, measured(), None) == ()


def test_what_a_dimension_rests_on_can_be_bounded() -> None:
    facts = {"properties": {"fidelity": {"properties": {"held-out pictures": {"minimum": 20}}}}}
    (outcome,) = picture_gates.judge({}, measured(), bounds(properties={"facts": facts}))
    assert not outcome.passed and "held-out pictures" in outcome.reason


def test_bounds_on_what_nobody_measures_are_a_mistake() -> None:
    with pytest.raises(UserError) as caught:
        picture_gates.require_known(
            bounds(properties={"consistancy": {}, "strengths": {}}, required=["sharpness"])
        )
    first, second = caught.value.problems
    assert first.what == "nothing called consistancy is measured"
    assert first.fix == "did you mean consistency?"
    assert "sharpness" in second.what and "alignment" in str(second.fix)


@pytest.mark.parametrize(("alignment", "valid"), [(0.9, True), (0.1, False)])
def test_validate_judges_the_written_record(tmp_path: Path, alignment: float, valid: bool) -> None:
    path = tmp_path / "measurements.json"
    files.write_json(path, picture_gates.record(measured(alignment=alignment)))
    (line,) = judge_file(path, AnswerSchema.load(SHIPPED))
    assert line.verdict.valid == valid
