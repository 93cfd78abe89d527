"""Field scores against cases worked out by hand."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lora.schema.answer import AnswerSchema, Verdict
from llm_lora.scores import fields
from llm_lora.scores.pairing import assign
from llm_lora.scores.scoring import (
    FieldScore,
    answer_score,
    exact_match,
    micro_f1,
    same,
    score,
    token_f1,
)


def make(document: dict[str, Any]) -> AnswerSchema:
    return AnswerSchema.from_text(json.dumps(document))


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


SPAN = {"type": "string", "maxLength": 40}
VISIT = make(
    record(
        symptoms={"type": "array", "items": SPAN},
        severity={"enum": ["low", "high"]},
        urgent={"type": "boolean"},
        temperature={"type": ["number", "null"]},
        duration={"anyOf": [SPAN, {"type": "null"}]},
        medications={"type": "array", "items": {"$ref": "#/$defs/medication"}},
        patient=record(age={"type": "integer"}, born={"type": "string", "format": "date"}),
        reply={"type": "string"},
    )
    | {"$defs": {"medication": record(name=SPAN, dose={"type": ["string", "null"]})}}
)
REFERENCE = {
    "symptoms": ["dry cough", "fever"],
    "severity": "high",
    "urgent": True,
    "temperature": 38.5,
    "duration": None,
    "medications": [{"name": "Ibuprofen", "dose": "400 mg"}, {"name": "Aspirin", "dose": None}],
    "patient": {"age": 40, "born": "1986-01-02"},
    "reply": "See a doctor today.",
}


def scored(
    answer: object, reference: object = REFERENCE, schema: AnswerSchema = VISIT
) -> dict[str, float | None]:
    """Field → F1; None where neither side has a value."""
    found = score(schema, reference, schema.judge(json.dumps(answer)))
    return {name: field.f1 for name, field in found.items()}


def changed(**values: Any) -> dict[str, float | None]:
    return scored(REFERENCE | values)


# --- fields ---------------------------------------------------------------------------------------


def test_fields_come_from_the_schema() -> None:
    assert dict(fields.leaves(fields.shape(VISIT))) == {
        "symptoms[]": "list",
        "severity": "closed",
        "urgent": "closed",
        "temperature": "number",
        "duration": "span",
        "medications[].name": "span",
        "medications[].dose": "text",
        "patient.age": "number",
        "patient.born": "exact",
        "reply": "text",
    }


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"type": "string", "maxLength": 120}, {"$": "span"}),
        ({"type": "string", "maxLength": 121}, {"$": "text"}),
        ({"type": "array", "items": {"enum": ["a"]}}, {"[]": "list"}),
        ({"type": "array", "items": record(a=SPAN)}, {"[].a": "span"}),
        (record(a={"const": 1}), {"a": "closed"}),
        (record(a={}), {"a": "exact"}),
        (record(a={"type": "object"}), {"a": "exact"}),
        (record(a={"prefixItems": [SPAN]}), {"a": "exact"}),
        (record(a={"enum": [[1], [2]]}), {"a": "exact"}),
        (record(a={"anyOf": [{"const": "x"}, SPAN]}), {"a": "span"}),
        (record(a={"anyOf": [{"type": "number"}, SPAN]}), {"a": "exact"}),
        (record(a={"allOf": [{"type": "string"}, {"enum": ["x"]}]}), {"a": "closed"}),
        ({"anyOf": [record(a=SPAN), record(b=SPAN, a=SPAN)]}, {"a": "span", "b": "span"}),
        (record(a={"anyOf": [{"type": "null"}, record(b=SPAN)]}), {"a.b": "span"}),
        (record(child={"$ref": "#"}, a=SPAN), {"child": "exact", "a": "span"}),
        (record(**{"a.b": SPAN}), {'["a.b"]': "span"}),
        # The kind is read off other keywords where no type is named.
        (
            {"properties": {"a": {"minimum": 1}, "b": {"maximum": 1}}},
            {"a": "number", "b": "number"},
        ),
        (record(a={"maxLength": 9}, b={"pattern": "x"}), {"a": "span", "b": "text"}),
        (record(a={"format": "date"}, b={"items": {}}), {"a": "exact", "b[]": "list"}),
        # Null is no kind of its own; several others are compared as a whole.
        (record(a={"enum": [None, "x"]}, b={"enum": [None]}), {"a": "closed", "b": "exact"}),
        (record(a={"type": ["string", "null"]}), {"a": "text"}),
        (record(a={"type": ["string", "number"]}), {"a": "exact"}),
        (record(a={"type": "null"}), {"a": "exact"}),
        # Of alternatives the loosest counts, of schemas that apply together the strictest.
        (record(a={"anyOf": [{"type": "string"}, {"const": "x"}]}), {"a": "text"}),
        (record(a={"oneOf": [SPAN, {"type": "string"}]}), {"a": "text"}),
        (record(a={"anyOf": [{"const": "x"}, {"type": "boolean"}]}), {"a": "closed"}),
        (record(a={"anyOf": [record(b=SPAN), SPAN]}), {"a": "exact"}),
        (record(a={"allOf": [{"type": "string"}, SPAN]}), {"a": "span"}),
        (record(a=SPAN | {"allOf": [{"format": "date", "type": "string"}]}), {"a": "exact"}),
        (
            {"allOf": [record(a={"type": "string"}), record(a=SPAN, b=SPAN)]},
            {"a": "span", "b": "span"},
        ),
        (record() | {"then": record(a=SPAN), "else": record(b=SPAN)}, {"a": "span", "b": "span"}),
        # So too within lists.
        (
            {"allOf": [{"items": record(a=SPAN)}, {"items": record(b={"type": "number"})}]},
            {"[].a": "span", "[].b": "number"},
        ),
        (
            {"anyOf": [{"items": record(a=SPAN)}, {"items": record(a={"type": "string"})}]},
            {"[].a": "text"},
        ),
        ({"type": "array", "items": {"type": "array", "items": record(a=SPAN)}}, {"[]": "list"}),
        ({"type": "array"}, {"[]": "list"}),
        # Keywords beside a reference count, except in old drafts.
        (
            {"$ref": "#/$defs/x", "maxLength": 5, "$defs": {"x": {"type": "string"}}},
            {"$": "span"},
        ),
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "properties": {
                    "a": {"$ref": "#/definitions/x", "maxLength": 5},
                    "b": {"items": [{}]},
                },
                "definitions": {"x": {"type": "string"}},
            },
            {"a": "text", "b": "exact"},
        ),
    ],
)
def test_shapes(document: dict[str, Any], expected: dict[str, str]) -> None:
    assert dict(fields.leaves(fields.shape(make(document)))) == expected


def test_the_values_of_closed_fields_are_those_of_the_schema_in_its_order() -> None:
    level = {"enum": ["mild", None, "null", 3, "mild"]}
    document = record(
        level=level,
        on={"type": "boolean"},
        note={"type": "string"},
        deep=record(kind={"anyOf": [{"const": "b"}, {"enum": ["a", "b"]}]}),
        rows={"type": "array", "items": record(unit={"enum": ["mg", "g"]}, n={"type": "number"})},
    )
    assert dict(fields.closed_values(fields.shape(make(document)))) == {
        "level": ("mild", '"null"', "3"),
        "on": ("true", "false"),
        "deep.kind": ("b", "a"),
        "rows[].unit": ("mg", "g"),
    }
    assert list(fields.closed_values(fields.shape(make({"enum": ["x"]})))) == [("$", ("x",))]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("mild", "mild"),
        ("two words", "two words"),
        ("(absent)", '"(absent)"'),
        ('"x', '"\\"x"'),
        (" x", '" x"'),
        ("", '""'),
        ("3", '"3"'),
        (3, "3"),
        (None, "null"),
        (False, "false"),
        ("é(", "é("),
    ],
)
def test_a_label_is_quoted_where_it_could_be_taken_for_something_else(
    value: object, written: str
) -> None:
    assert fields.label(value) == written


def test_closed_values_are_found_in_the_canonical_text_alone() -> None:
    unit = record(unit={"enum": ["mg", "g"]}, n={"type": "number"})
    schema = make(record(ok={"type": "boolean"}, rows={"type": "array", "items": unit}, free={}))
    text = '{"ok":true,"rows":[{"unit":"mg","n":1.50},{"unit":"g","n":2}],"free":{"ok":[true,{}]}}'
    places = fields.closed_places(schema, text)
    assert [(name, text[start:end]) for name, start, end in places] == [
        ("ok", "true"),
        ("rows[].unit", '"mg"'),
        ("rows[].unit", '"g"'),
    ]
    assert fields.closed_spans(schema, text) == [(start, end) for _, start, end in places]
    assert fields.closed_places(schema, text.replace(",", ", ")) == []
    assert fields.closed_places(schema, '{"rows":[],"free":{}}') == []
    assert fields.closed_places(make({"enum": ["x"]}), '"x"') == [("$", 0, 3)]


# --- one answer -----------------------------------------------------------------------------------


def test_the_reference_itself_is_all_right() -> None:
    found = scored(REFERENCE)
    assert found.pop("duration") is None  # null in both: no value
    assert set(found.values()) == {1.0}


def test_closed_fields_are_right_or_wrong() -> None:
    assert changed(severity="low")["severity"] == 0
    assert changed(severity="High")["severity"] == 0  # not in the schema, but scored all the same
    assert changed(urgent=1)["urgent"] == 0  # true is not a number
    assert changed(patient={"age": 40, "born": "1986-01-03"})["patient.born"] == 0


def test_numbers_have_a_tolerance() -> None:
    assert changed(temperature=38.50000001)["temperature"] == 1
    assert changed(temperature=38.51)["temperature"] == 0
    assert changed(patient=REFERENCE["patient"] | {"age": 40.0})["patient.age"] == 1  # type: ignore[operator]
    assert changed(temperature="38.5")["temperature"] == 0
    assert changed(temperature=10**400)["temperature"] == 0


def test_a_number_may_have_a_tolerance_of_its_own() -> None:
    def right(value: object, tolerance: float) -> float | None:
        answer = VISIT.judge(json.dumps(REFERENCE | {"temperature": value}))
        return score(VISIT, REFERENCE, answer, {"temperature": tolerance})["temperature"].f1

    assert [right(value, 0.1) for value in (38.4, 38.6, 38.61, None)] == [1, 1, 0, 0]
    # 38.1 and 38.2 differ by 0.10000000000000142 in binary.
    schema = make(record(t={"type": "number"}))
    assert score(schema, {"t": 38.1}, schema.judge('{"t":38.2}'), {"t": 0.1})["t"].f1 == 1
    assert [right(38.50000001, 0), right(38.51, 0)] == [1, 0]


def test_numbers_are_equal_within_a_millionth() -> None:
    number = make(record(n={"type": "number"}, other={}))

    def right(reference: object, answer: object) -> tuple[float | None, float | None]:
        found = scored(*({"n": one, "other": one} for one in (answer, reference)), number)
        return found["n"], found["other"]

    assert right(1_000_000, 1_000_000.9) == (1, 0), "only what the schema calls a number"
    assert right(1_000_000, 1_000_001.1) == (0, 0)
    assert right(-2.0, -2.0000019) == (1, 0)
    assert right(1, 2 - 1e-9) == right(0, 1e-9) == (0, 0)
    assert right(10**400, 10**400) == (1, 1)
    assert right(10**400, 10**400 + 1) == right(10**400, 1) == (0, 0)
    assert right(True, 1) == right(1, True) == right("1", 1) == right(1, "1") == (0, 0)
    assert right(True, True) == right("1", "1") == (1, 1)


def test_values_that_neither_side_has_score_nothing() -> None:
    assert changed(duration=None)["duration"] is None
    assert changed(duration="two days")["duration"] == 0
    assert changed(temperature=None)["temperature"] == 0
    without = {key: value for key, value in REFERENCE.items() if key != "duration"}
    assert scored(without)["duration"] is None  # nothing is missing where there is nothing
    assert not exact_match(REFERENCE, VISIT.judge(json.dumps(without)))


@pytest.mark.parametrize("nothing", [None, "", " \n", [], {}])
def test_ways_to_say_nothing_are_no_values(nothing: object) -> None:
    anything = make(record(a={}, b={"type": "string"}, c={"type": "array"}, d=record(e=SPAN)))
    for key in "abcd":
        name = {"c": "c[]", "d": "d.e"}.get(key, key)
        value = {"c": ["x"], "d": {"e": "x"}}.get(key, "x")
        assert scored({key: nothing}, {}, anything)[name] is None, key
        assert scored({key: nothing}, {key: nothing}, anything)[name] is None, key
        assert scored({key: nothing}, {key: value}, anything)[name] == 0, key
        assert scored({key: value}, {key: nothing}, anything)[name] == 0, key
    assert scored({}, {}, anything).keys() == {"a", "b", "c[]", "d.e"}


def test_spans_and_texts_score_by_words() -> None:
    # "see a doctor today" against "see the doctor": 2 of 4 and 3 words, F1 = 2*2/7
    assert changed(reply="See the doctor!")["reply"] == pytest.approx(4 / 7)
    assert changed(reply="")["reply"] == 0
    assert changed(reply="SEE a  doctor, today")["reply"] == 1


def test_a_short_text_scores_by_words_too() -> None:
    said = REFERENCE | {"duration": "two days"}
    assert scored(REFERENCE | {"duration": "two"}, said)["duration"] == pytest.approx(2 / 3)
    assert scored(REFERENCE | {"duration": ["two days"]}, said)["duration"] == 0


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("a a b", "a b b", 2 / 3),  # multiset: one a and one b are common
        ("400 mg", "400mg", 1.0),
        ("1.5 mg", "5 mg", 0.5),  # numbers stay whole
        ("", "", 1.0),
        ("", "word", 0.0),
        ("?!", "?!", 1.0),
        ("?!", "!", 0.0),
        ("頭痛", "頭", 2 / 3),  # by character in scripts without spaces
        ("Straße", "STRASSE", 1.0),
    ],
)
def test_token_f1(reference: str, answer: str, expected: float) -> None:
    assert token_f1(reference, answer) == pytest.approx(expected)
    assert token_f1(answer, reference) == pytest.approx(expected)


def test_lists_score_by_items() -> None:
    # one of two found, one spurious: F1 = 2*1/(2+2)
    assert changed(symptoms=["Dry  Cough", "rash"])["symptoms[]"] == 0.5
    assert changed(symptoms=["fever", "dry cough"])["symptoms[]"] == 1  # in any order
    assert changed(symptoms=["fever"])["symptoms[]"] == pytest.approx(2 / 3)
    assert changed(symptoms=["fever"] * 2)["symptoms[]"] == 0.5  # a repetition is spurious
    assert changed(symptoms=[])["symptoms[]"] == 0
    assert changed(symptoms="fever")["symptoms[]"] == 0
    empty = REFERENCE | {"symptoms": []}
    assert scored(empty, empty)["symptoms[]"] is None
    assert scored(REFERENCE, empty)["symptoms[]"] == 0
    mixed = make({"type": "array"})
    assert scored([1, True, {"a": [1]}], [1.0, True, {"a": [1]}], mixed) == {"[]": 1.0}
    assert scored([1], [True], mixed) == {"[]": 0.0}


def test_items_that_are_objects_or_lists_count_by_what_they_hold() -> None:
    mixed = make({"type": "array"})
    assert scored([{"a": 1}], [{"a": 2}], mixed) == scored([[1]], [[2]], mixed) == {"[]": 0.0}
    assert scored([{"a": 1}], [{"b": 1}], mixed) == scored([["a"]], ["a"], mixed) == {"[]": 0.0}
    assert scored([{"a": "X  y"}, [1, "Z"]], [[1, "z"], {"a": "x y"}], mixed) == {"[]": 1.0}


def test_objects_are_paired_for_the_best_sum() -> None:
    names, doses = "medications[].name", "medications[].dose"
    swapped = changed(medications=list(reversed(REFERENCE["medications"])))  # type: ignore[call-overload]
    assert swapped[names] == swapped[doses] == 1
    # One missing: 1 pair of 2 references and 1 answer, F1 = 2*1/3
    missing = changed(medications=[{"name": "Ibuprofen", "dose": "400 mg"}])
    assert (missing[names], missing[doses]) == (pytest.approx(2 / 3), 1)  # aspirin has no dose
    # One spurious and a wrong dose: names 2*2/5; doses 2*(1/2)/(1 + 2), as "400" is in "400 g"
    spurious = changed(
        medications=[
            {"name": "Zinc", "dose": "1 g"},
            {"name": "Aspirin", "dose": None},
            {"name": "Ibuprofen", "dose": "400 g"},
        ]
    )
    assert spurious[names] == pytest.approx(4 / 5)
    assert spurious[doses] == pytest.approx(2 * 0.5 / 3)
    assert changed(medications=[])[names] == 0
    assert changed(medications=[7])[names] == 0
    assert changed(medications=None)[names] == 0
    none = REFERENCE | {"medications": []}
    assert scored(none, none)[doses] is None


def test_a_nested_object_that_is_not_there() -> None:
    assert changed(patient=None)["patient.age"] == 0
    nobody = REFERENCE | {"patient": None}
    assert scored(nobody, nobody)["patient.age"] is None
    assert scored(REFERENCE, nobody)["patient.age"] == 0


def counted(answer: object, reference: object = REFERENCE) -> dict[str, tuple[int, int, int, int]]:
    """Field → expected, given, missing, spurious."""
    found = score(VISIT, reference, VISIT.judge(json.dumps(answer)))
    return {
        name: (field.expected, field.given, field.missing, field.spurious)
        for name, field in found.items()
    }


def test_missing_and_spurious_are_counted_apart() -> None:
    assert set(counted(REFERENCE).values()) == {(1, 1, 0, 0), (2, 2, 0, 0), (0, 0, 0, 0)}
    assert counted(REFERENCE | {"temperature": None})["temperature"] == (1, 0, 1, 0)
    assert counted(REFERENCE | {"temperature": 40})["temperature"] == (1, 1, 0, 0)  # just wrong
    assert counted(REFERENCE | {"duration": "two days"})["duration"] == (0, 1, 0, 1)
    assert counted(REFERENCE | {"symptoms": ["fever", "rash", "ache"]})["symptoms[]"] == (
        2,
        3,
        1,
        2,
    )
    assert counted(REFERENCE | {"symptoms": "fever"})["symptoms[]"] == (2, 1, 2, 1)
    without = {key: value for key, value in REFERENCE.items() if key not in ("patient", "urgent")}
    assert counted(without)["patient.age"] == counted(without)["urgent"] == (1, 0, 1, 0)
    assert counted(REFERENCE, without)["patient.age"] == (0, 1, 0, 1)
    assert counted("no object")["symptoms[]"] == (2, 0, 2, 0)


def test_an_empty_list_is_nothing_to_find_wherever_it_stands() -> None:
    anything = make(record(a={}))
    for nothing in ([], None):
        found = score(anything, {"a": nothing}, anything.judge('{"a":[1]}'))["a"]
        assert (found.expected, found.given, found.missing, found.spurious) == (0, 1, 0, 1)
        assert found.f1 == 0 and not found.right
    found = score(anything, {"a": [1]}, anything.judge('{"a":[]}'))["a"]
    assert (found.expected, found.given, found.missing, found.spurious) == (1, 0, 1, 0)
    assert found.f1 == 0 and not found.right


def test_members_of_objects_are_counted_over_all_objects() -> None:
    names, doses = "medications[].name", "medications[].dose"
    # The reference: two names, one dose (the other is null).
    assert (counted(REFERENCE)[names], counted(REFERENCE)[doses]) == ((2, 2, 0, 0), (1, 1, 0, 0))
    one = counted(REFERENCE | {"medications": [{"name": "Ibuprofen", "dose": None}]})
    assert (one[names], one[doses]) == ((2, 1, 1, 0), (1, 0, 1, 0))
    zinc = {"name": "Zinc", "dose": "1 g"}
    three = counted(REFERENCE | {"medications": [zinc, *REFERENCE["medications"]]})  # type: ignore[misc]
    assert (three[names], three[doses]) == ((2, 3, 0, 1), (1, 2, 0, 1))
    none = counted(REFERENCE, REFERENCE | {"medications": None})
    assert (none[names], none[doses]) == ((0, 2, 0, 2), (0, 1, 0, 1))


def test_an_answer_that_is_no_json_misses_everything() -> None:
    found = score(VISIT, REFERENCE, VISIT.judge("sorry"))
    assert {(field.given, field.spurious) for field in found.values()} == {(0, 0)}
    assert all(field.missing == field.expected for field in found.values())
    assert found["severity"].choices == (("high", "(not JSON)"),)
    assert found["medications[].name"].expected == 2
    assert found["duration"].f1 is None


def test_an_answer_that_is_no_json_scores_nothing() -> None:
    verdict = VISIT.judge("sorry")
    assert {field.f1 for field in score(VISIT, {"duration": None}, verdict).values()} == {None}
    assert answer_score(verdict, score(VISIT, {"duration": None}, verdict)) == 0
    assert micro_f1(score(VISIT, REFERENCE, verdict).values()) == 0
    assert not exact_match({}, VISIT.judge("sorry"))


def test_without_a_schema_the_text_is_scored() -> None:
    found = score(None, "See a doctor today.", Verdict("valid", (), "See the doctor!"))
    assert found == {"$": FieldScore("text", 4 / 7, 1, 1)}


def test_exact_match_compares_values() -> None:
    judge = make({}).judge
    assert exact_match({"a": 1, "b": [2]}, judge('{"b":[2.0],"a":1}'))
    for other in ('{"a":1}', '{"a":true,"b":[2]}', '{"a":1,"b":[2,3]}', '{"a":"1","b":[2]}', "{"):
        assert not exact_match({"a": 1, "b": [2]}, judge(other))
    assert not same({"a": None}, {})


def test_an_answer_that_is_no_json_is_not_null() -> None:
    assert exact_match(None, make({}).judge("null"))
    assert not exact_match(None, make({}).judge("sorry"))


def test_equal_lists_are_equal_in_every_item() -> None:
    assert same([1, [2, {"a": 3}]], [1.0, [2, {"a": 3}]]) and same([], [])
    for other in ([1, [2, {"a": 4}]], [1], [[2, {"a": 3}], 1], {"0": 1}):
        assert not same([1, [2, {"a": 3}]], other) and not same(other, [1, [2, {"a": 3}]])


def test_every_value_of_an_answer_counts_the_same() -> None:
    fields_ = [FieldScore("text", 0.5, 1, 1), FieldScore("list", 3, 4, 5), FieldScore("closed")]
    assert micro_f1(fields_) == 2 * 3.5 / (5 + 6)
    assert micro_f1([]) is micro_f1([FieldScore("closed")]) is None
    right = Verdict("valid", (), {})
    assert answer_score(right, {"a": fields_[0], "b": fields_[1]}) == 7 / 11
    assert answer_score(right, {"a": FieldScore("closed")}) == 1  # rightly nothing


def test_an_open_object_counts_path_by_path() -> None:
    slots = make(record(slots={"type": "object", "additionalProperties": {"type": "string"}}))
    reference = {"slots": {"city": "Rome", "day": "Monday", "note": None}}

    def counts(answer: object) -> tuple[float, int, int, int, int]:
        one = score(slots, reference, slots.judge(json.dumps({"slots": answer})))["slots"]
        return one.hits, one.expected, one.given, one.missing, one.spurious

    assert counts({"day": "Monday", "city": "Rome"}) == (2, 2, 2, 0, 0)
    assert counts({"city": "Oslo"}) == (0, 2, 1, 1, 0)  # city is wrong, day is missing
    assert counts({"city": "Rome", "time": "noon"}) == (1, 2, 2, 1, 1)
    assert counts({}) == counts(None) == (0, 2, 0, 2, 0)
    assert counts("Rome") == (0, 2, 1, 2, 1)


def test_what_the_schema_does_not_name_counts_too() -> None:
    loose = make(record(a=SPAN, rows={"type": "array", "items": record(b=SPAN)}))
    found = scored({"a": "x", "c": 1, "d": {"e": 2}}, {"a": "x", "c": 1}, loose)
    assert found["*"] == pytest.approx(2 / 3)
    assert scored({"rows": [{"b": "x", "c": 1}]}, {"rows": [{"b": "x"}]}, loose)["rows[].*"] == 0
    assert scored("a", {"a": "x"}, loose) == {"a": 0.0, "rows[].b": None, "*": 0.0}
    assert scored({"a": "x", "rows": "y"}, {"a": "x"}, loose)["rows[].*"] == 0
    assert scored({"a": "x", "rows": ["y"]}, {"a": "x"}, loose)["rows[].*"] == 0
    assert "*" not in scored({"a": "x", "c": None}, {"a": "x"}, loose)


# --- assignment -----------------------------------------------------------------------------------

gain = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.integers(0, 5), st.integers(0, 5)).flatmap(
    lambda size: st.lists(st.lists(gain, min_size=size[1], max_size=size[1]),
                          min_size=size[0], max_size=size[0])))  # fmt: skip
def test_assignment_is_optimal(gains: list[list[float]]) -> None:
    pairs = assign(gains)
    rows, columns = len(gains), len(gains[0]) if gains else 0
    assert len(pairs) == min(rows, columns)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    table = gains if rows <= columns else [list(column) for column in zip(*gains, strict=True)]
    choices = itertools.permutations(range(max(rows, columns)), min(rows, columns))
    best = max(
        (sum(row[c] for row, c in zip(table, choice, strict=True)) for choice in choices), default=0
    )
    assert sum(gains[row][column] for row, column in pairs) == pytest.approx(best)
