"""Figures of sets of answers, and comparisons of two sets, against values worked out by hand."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from test_scores import make, record

from llm_lora.report.text.answers import Judged
from llm_lora.scores import fields
from llm_lora.scores.figures import compare, summarise
from llm_lora.scores.scoring import exact_match, score

# --- many answers ---------------------------------------------------------------------------------


def judged(reference: object, answer: str) -> Judged:
    verdict = SMALL.judge(answer)
    return Judged("id", None, "", json.dumps(reference), answer, "stop", 1, verdict,
                  exact_match(reference, verdict), score(SMALL, reference, verdict))  # fmt: skip


SMALL = make(
    record(level={"enum": ["low", "high"]}, items={"type": "array", "items": {"type": "string"}})
)


def test_summary_is_the_mean_over_fields_of_the_mean_over_examples() -> None:
    rows = [
        judged({"level": "low", "items": []}, '{"level":"low","items":[]}'),
        judged({"level": "low", "items": ["a"]}, '{"level":"high","items":["a"]}'),
        judged({"level": "low", "items": ["a", "b"]}, '{"level":"mid","items":["a"]}'),
        judged({"level": "low", "items": []}, "oh"),
    ]
    found = summarise(rows, SMALL).to_json()
    assert found == {
        "n": 4,
        "parsed": 0.75,
        "schema_valid": 0.5,
        "exact_match": 0.25,
        # level: 1, 0, 0, 0 → 1/4; items: 1, 1, 2/3, 0 → 2/3
        "field_f1": pytest.approx((1 / 4 + 2 / 3) / 2, abs=1e-6),
        "intervals": mock.ANY,
        "fields": {
            "level": {"score": 0.25, "interval": mock.ANY, "kind": "closed", "n": 4,
                      "score_present": 0.25, "n_present": 4,
                      "expected": 4, "given": 3, "missing": 1, "spurious": 0,
                      "confusion": {"labels": ["low", "high", "mid", "(not JSON)"],
                                    "counts": [[1, 1, 1, 1], [0] * 4, [0] * 4, [0] * 4]}},
            "items[]": {"score": pytest.approx(2 / 3, abs=1e-6), "interval": mock.ANY,
                        "kind": "list", "n": 4,
                        "score_present": pytest.approx(5 / 6, abs=1e-6), "n_present": 2,
                        "expected": 3, "given": 2, "missing": 1, "spurious": 0},
        },
        "cut_off": 0,
    }  # fmt: skip


def test_a_summary_of_nothing_claims_nothing() -> None:
    empty = summarise([])
    assert empty.n == 0
    assert set(empty.intervals.values()) == {None}
    assert empty.schema_valid is empty.field_f1 is None


def test_intervals_hold_their_figures() -> None:
    rows = [
        judged({"level": "low", "items": ["a"]}, answer)
        for answer in ['{"level":"low","items":["a"]}'] * 9 + ['{"level":"high","items":[]}', "oh"]
    ]
    found = summarise(rows, SMALL)
    for name, interval in found.intervals.items():
        value = found.metric(name)
        assert interval is not None and value is not None
        assert 0 <= interval[0] <= value <= interval[1] <= 1, name
    for field in found.fields.values():
        assert field.score is not None
        assert field.interval[0] < field.score < field.interval[1]


def test_closed_values_keep_the_order_of_the_schema() -> None:
    schema = make(record(a={"enum": ["low", None, "null", 3, "high"]}, b={"type": "boolean"}))
    found = dict(fields.closed_values(fields.shape(schema)))
    assert found == {"a": ("low", '"null"', "3", "high"), "b": ("true", "false")}
    merged = make(record(a={"anyOf": [{"enum": ["x", "y"]}, {"const": "z"}, {"enum": ["y"]}]}))
    assert dict(fields.closed_values(fields.shape(merged))) == {"a": ("x", "y", "z")}
    inner = make({"type": "array", "items": record(unit={"enum": ["mg", "g"]})})
    assert dict(fields.closed_values(fields.shape(inner))) == {"[].unit": ("mg", "g")}


def test_closed_members_of_paired_objects_have_a_confusion_table() -> None:
    schema = make(
        {"type": "array", "items": record(n={"type": "integer"}, u={"enum": ["mg", "g"]})}
    )
    reference = [{"n": 1, "u": "mg"}, {"n": 2, "u": "mg"}, {"n": 3, "u": "g"}]
    answer = '[{"n":2,"u":"g"},{"n":1,"u":"mg"}]'
    found = score(schema, reference, schema.judge(answer))["[].u"]
    assert sorted(found.choices) == [("g", "(absent)"), ("mg", "g"), ("mg", "mg")]


def test_labels_tell_values_apart() -> None:
    values = ["mild", "true", True, "3", 3, "", " a", "null", None, '"x"', "x", "(absent)"]
    labels = [fields.label(value) for value in values]
    assert len(set(labels)) == len(values)
    assert labels[:5] == ["mild", '"true"', "true", '"3"', "3"]


# --- two sets of answers --------------------------------------------------------------------------


def test_two_adapters_are_compared_example_by_example() -> None:
    right, wrong, broken = '{"level":"low","items":[]}', '{"level":"high","items":[]}', "oh"
    reference = {"level": "low", "items": []}

    def answers(*texts: str) -> list[Judged]:
        return [judged(reference, text) for text in texts]

    found = compare(answers(*[right] * 8), answers(*[wrong] * 4, *[right] * 2, *[broken] * 2))
    assert found.n == 8
    # 4 of 8 lose one of two fields, 2 of 8 lose both: (4 / 2 + 2) / 8
    assert found.figures["field_f1"].difference == 0.5
    assert found.figures["field_f1"].p == 2 / 2**6
    assert found.figures["schema_valid"].difference == 0.25
    assert found.figures["schema_valid"].p == 2 / 2**2
    assert found.fields["level"].difference == 0.75
    # Two fields are tested (Holm): 2 / 2**6 is doubled, 2 / 2**2 is not.
    assert found.fields["level"].p == 4 / 2**6
    assert found.fields["items[]"].p == 0.5
    turned = compare(answers(*[wrong] * 4, *[right] * 2, *[broken] * 2), answers(*[right] * 8))
    assert turned.figures["field_f1"].difference == -0.5
    assert compare([], []).to_json() == {"n": 0, "fields": {}}
