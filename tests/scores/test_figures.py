"""Figures of sets of answers, and comparisons of two sets, against values worked out by hand."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from test_scores import make, record

from llm_lora.report.text.answers import Judged
from llm_lora.scores import fields
from llm_lora.scores.figures import Comparison, Tally, summarise
from llm_lora.scores.figures import compare as compare_tallies
from llm_lora.scores.scoring import exact_match, score

# --- many answers ---------------------------------------------------------------------------------


def judged(reference: object, answer: str) -> Judged:
    verdict = SMALL.judge(answer)
    return Judged("id", None, "", json.dumps(reference), answer, "stop", 1, verdict,
                  exact_match(reference, verdict), score(SMALL, reference, verdict))  # fmt: skip


SMALL = make(
    record(level={"enum": ["low", "high"]}, items={"type": "array", "items": {"type": "string"}})
)


def compare(ours: list[Judged], theirs: list[Judged]) -> Comparison:
    return compare_tallies(*([Tally.of(row) for row in rows] for rows in (ours, theirs)))


def test_a_summary_is_over_the_values_that_are_there() -> None:
    rows = [
        judged({"level": "low", "items": []}, '{"level":"low","items":[]}'),
        judged({"level": "low", "items": ["a"]}, '{"level":"high","items":["a"]}'),
        judged({"level": "low", "items": ["a", "b"]}, '{"level":"mid","items":["a"]}'),
        judged({"level": "low", "items": []}, "oh"),
    ]
    found = summarise(rows, SMALL).to_json()

    def near(value: float) -> object:
        return pytest.approx(value, abs=1e-6)

    assert found == {
        "n": 4,
        "parsed": 0.75,
        "schema_valid": 0.5,
        "exact_match": 0.25,
        # level: 1 hit of 4 expected and 3 given; items: 2 hits of 3 expected and 2 given.
        "precision": near(3 / 5),
        "recall": near(3 / 7),
        "macro_f1": near((2 / 7 + 4 / 5) / 2),
        "field_f1": near(6 / 12),
        "intervals": mock.ANY,
        "fields": {
            "level": {"kind": "closed", "n": 4, "support": 4, "given": 3,
                      "precision": near(1 / 3), "recall": 0.25, "f1": near(2 / 7),
                      "interval": mock.ANY, "missing": 1, "spurious": 0, "absent": 0,
                      "confusion": {"labels": ["low", "high", "mid", "(not JSON)"],
                                    "counts": [[1, 1, 1, 1], [0] * 4, [0] * 4, [0] * 4]}},
            # One example rightly has no items; that of the last answer is not known.
            "items[]": {"kind": "list", "n": 4, "support": 3, "given": 2,
                        "precision": 1.0, "recall": near(2 / 3), "f1": near(4 / 5),
                        "interval": mock.ANY, "missing": 1, "spurious": 0, "absent": 1},
        },
        "cut_off": 0,
    }  # fmt: skip


def test_a_field_without_values_has_no_score_and_no_part_in_the_mean() -> None:
    rows = [judged({"level": "low", "items": []}, '{"level":"low","items":[]}')] * 3
    found = summarise(rows, SMALL)
    items = found.fields["items[]"]
    assert (items.f1, items.interval, items.precision, items.recall) == (None, None, None, None)
    assert (items.support, items.absent) == (0, 3)
    assert found.macro_f1 == found.field_f1 == 1
    spurious = [judged({"level": "low", "items": []}, '{"level":"low","items":["a"]}')] * 3
    found = summarise(spurious, SMALL)
    assert found.fields["items[]"].f1 == 0 and found.fields["items[]"].recall is None
    assert found.macro_f1 == 1 and found.field_f1 == pytest.approx(2 / 3, abs=1e-6)


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
        assert field.f1 is not None and field.interval is not None
        assert field.interval[0] < field.f1 < field.interval[1]


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
    # Of the 8 levels theirs has 2, and gives 6: 1 - 2 * 2 / (8 + 6)
    assert found.figures["field_f1"].difference == pytest.approx(1 - 4 / 14, abs=1e-6)
    assert found.figures["field_f1"].p == 2 / 2**6
    assert found.figures["schema_valid"].difference == 0.25
    assert found.figures["schema_valid"].p == 2 / 2**2
    # Items are in no reference and in no answer, so only one field is compared.
    assert found.fields.keys() == {"level"}
    assert found.fields["level"].p == 2 / 2**6
    turned = compare(answers(*[wrong] * 4, *[right] * 2, *[broken] * 2), answers(*[right] * 8))
    assert turned.figures["field_f1"].difference == pytest.approx(4 / 14 - 1, abs=1e-6)
    assert compare([], []).to_json() == {"n": 0, "fields": {}}
