"""The answer schema: loading, judging, the canonical form; golden files hold the messages."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.places import GOLDEN, TEMPLATES
from support.random_schemas import DRAFT7, DRAFT2020, Maker

from llm_lora.errors import UserError
from llm_lora.schema import json_text as jsontext
from llm_lora.schema.answer import AnswerSchema
from llm_lora.schema.json_text import NotJson, format_path, locate, parse


def make(document: dict[str, Any]) -> AnswerSchema:
    return AnswerSchema.from_text(json.dumps(document))


def golden(name: str) -> list[Any]:
    """Cases of a golden file: `### title`, the input, a line `--- ` with the expected output."""
    text = (GOLDEN / name).read_text(encoding="utf-8")
    cases = re.findall(
        r"^### (.*?)\n(.*?)\n--- (.*?)\n(?=\n### |\Z)", text, re.DOTALL | re.MULTILINE
    )
    assert len(cases) == text.count("### ")
    return [pytest.param(given_, expected, id=title) for title, given_, expected in cases]


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "expected"), golden("verdicts.txt"))
def test_verdicts_say_what_was_expected_and_what_came(answer: str, expected: str) -> None:
    verdict = AnswerSchema.load(GOLDEN / "visit.schema.json").judge(answer)
    lines = [verdict.kind, *(f"[{reason.keyword}] {reason}" for reason in verdict.reasons)]
    assert "\n".join(lines) == expected
    assert verdict.valid == (not verdict.reasons)


@pytest.mark.parametrize(("text", "expected"), golden("schema_errors.txt"))
def test_every_mistake_of_a_schema_is_named_with_its_place(text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        AnswerSchema.from_text(text, "answer.schema.json")
    assert f"UserError\n{caught.value}" == expected


def test_a_missing_schema_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        AnswerSchema.load(tmp_path / "none.json")


def test_templates_load() -> None:
    for path in TEMPLATES.glob("*/answer.schema.json"):
        assert AnswerSchema.load(path).text == path.read_text(encoding="utf-8")


# --- judging --------------------------------------------------------------------------------------


def test_drafts() -> None:
    tuples: dict[str, Any] = {"items": [{"type": "string"}], "additionalItems": False}
    draft7 = make({"$schema": "http://json-schema.org/draft-07/schema#", **tuples})
    assert draft7.judge('["a"]').valid
    assert [reason.keyword for reason in draft7.judge('["a",1]').reasons] == ["additionalItems"]
    # 2020-12 is the default, in which keywords next to `$ref` take effect.
    beside = {"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a", "maxLength": 1}
    assert not make(beside).judge('"ab"').valid
    assert make({"$schema": "http://json-schema.org/draft-07/schema", **beside}).judge('"ab"').valid


def test_formats_are_asserted() -> None:
    schema = make({"type": "string", "format": "date"})
    assert schema.judge('"2026-02-28"').valid
    assert not schema.judge('"2026-02-30"').valid


@pytest.mark.parametrize(
    "reference", ["#/$defs/a", "#a", "urn:example:root#/$defs/a", "nested", "nested#b"]
)
def test_references_within_the_document(reference: str) -> None:
    schema = make(
        {
            "$id": "urn:example:root" if reference.startswith("urn") else "https://example.org/r",
            "$defs": {
                "a": {"type": "integer", "$anchor": "a"},
                "c": {"$id": "nested", "type": "integer", "$anchor": "b"},
            }
            if not reference.startswith("urn")
            else {"a": {"type": "integer"}},
            "properties": {"x": {"$ref": reference}},
        }
    )
    assert schema.judge('{"x":1}').valid
    assert not schema.judge('{"x":"1"}').valid


def test_recursive_schemas_judge_deep_answers() -> None:
    schema = make({"type": "object", "properties": {"child": {"$ref": "#"}}})
    assert schema.judge('{"child":{"child":{}}}').valid
    assert str(schema.judge('{"child":{"child":1}}')).startswith("child.child: expected an object")


def test_hostile_answers_are_verdicts_not_crashes() -> None:
    schema = make({})
    for answer, keyword in {
        "[" * 100_000: "depth",
        "[" * 200 + "]" * 200: "depth",
        '{"a":' * 2000 + "1" + "}" * 2000: "depth",
        "9" * 10_000: "number_range",
        f'{{"a":{"9" * 10_000}}}': "number_range",
        "9" * 400 + ".0": "number_range",
        '"\\ud800"': "surrogate",
        '"\ud800"': "surrogate",
        "\ufeff{}": "byte_order_mark",
        "\0": "prose",
    }.items():
        verdict = schema.judge(answer)
        assert (verdict.kind, verdict.reasons[-1].keyword) == ("not_json", keyword), answer[:20]
    brackets = json.dumps("[" * 1000)
    assert schema.judge(brackets).valid
    assert schema.judge('"\\ud83d\\ude00"').value == "\U0001f600"


VISIT = {"medications": [{"name": "a\\b", "dose": None}], "age": 12.5, "on": True, "note": "é\n"}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_beginning_of_an_answer_is_truncated(indent: int | None, ascii_only: bool) -> None:
    whole = json.dumps(VISIT, indent=indent, ensure_ascii=ascii_only)
    for end in range(1, len(whole)):
        with pytest.raises(NotJson) as caught:
            parse(whole[:end])
        assert [flaw.keyword for flaw in caught.value.flaws] == ["truncated"], whole[:end]


DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}


@pytest.mark.parametrize(
    ("document", "answer", "message"),
    [
        ({"exclusiveMinimum": 2}, "2", "expected more than 2, got 2"),
        ({"exclusiveMaximum": 2}, "2", "expected less than 2, got 2"),
        ({"minLength": 1}, '""', 'expected at least 1 character, got 0: ""'),
        ({"minLength": 2}, '"a"', 'expected at least 2 characters, got 1: "a"'),
        ({"const": {"a": 1}}, '"x"', 'expected {"a":1}, got "x"'),
        ({"contains": {"type": "string"}}, "[1]", "too few or too many items that match contains"),
        ({"minProperties": 1}, "{}", "expected at least 1 property, got 0"),
        ({"maxProperties": 2}, '{"a":1,"b":2,"c":3}', "expected at most 2 properties, got 3"),
        ({"propertyNames": {"maxLength": 1}}, '{"ab":1}', 'a property name does not fit: "ab" is'),
        ({"not": {"type": "string"}}, '"x"', 'the schema rules out this value: the string "x"'),
        ({"properties": {"a": False}}, '{"a":[]}', "a: the schema allows nothing here, got an ar"),
        ({"prefixItems": [{}], "unevaluatedItems": False}, "[1,2]", "more items than the schema d"),
        (
            DRAFT_7 | {"items": [{}], "additionalItems": False},
            "[1,2]",
            "expected at most 1 item, g",
        ),
        ({"uniqueItems": True}, '[1,{"a":1,"b":2},{"b":2,"a":1}]', 'but {"a":1,"b":2} occurs more'),
        ({"format": "ipv4"}, '"x"', 'expected the format ipv4, got "x"'),
        (
            {"type": ["null", "integer"]},
            "true",
            "expected an integer or null, got the boolean true",
        ),
        ({"type": "string"}, "null", "expected a string, got null"),
        ({"dependentRequired": {"a": ["b"]}}, '{"a":1}', "b: missing, but required"),
        ({"oneOf": [{}, {"type": "number"}]}, "1", "fits several alternatives, not exactly one: t"),
        ({"anyOf": [{"const": 1}, {"const": "a"}]}, "2", 'expected 1 or "a", got the number 2'),
        (
            {"anyOf": [{"type": "null"}, {"type": "string"}]},
            "2",
            "expected null or a string, got t",
        ),
    ],
)
def test_every_keyword_says_what_it_wants(
    document: dict[str, Any], answer: str, message: str
) -> None:
    verdict = make(document).judge(answer)
    assert (verdict.kind, len(verdict.reasons)) == ("invalid", 1)
    assert message in str(verdict)
    (reason,) = verdict.reasons
    if message.startswith("expected "):
        assert reason.message == f"expected {reason.expected}, got {reason.got}"
    elif not message.startswith("b: missing"):
        assert (reason.expected, reason.got) == ("", "")


def test_a_long_list_of_values_is_cut() -> None:
    def said(count: int) -> str:
        return make({"enum": list(range(count))}).judge("99").reasons[0].expected

    assert said(2) == "0 or 1"
    assert said(12) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 or 11"
    assert said(13) == said(40) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ('"Mild "', '; did you mean "Mild"?'),
        ('"severly"', '; did you mean "severe"?'),
        ('"unlike any"', ""),
        ("8", ""),
        ('"7"', ""),
    ],
)
def test_a_value_that_is_nearly_one_of_those_allowed_is_named(answer: str, hint: str) -> None:
    (reason,) = make({"enum": ["Mild", "severe", 7]}).judge(answer).reasons
    assert reason.message == f'expected "Mild", "severe" or 7, got {answer}{hint}'


def test_of_alternatives_the_one_with_the_fewest_faults_is_explained() -> None:
    def shaped(**kinds: str) -> dict[str, Any]:
        return {"type": "object", "properties": {key: {"type": t} for key, t in kinds.items()}}

    far, near = shaped(a="string", b="string"), shaped(a="integer", b="string")
    for order in ([far, near], [near, far]):
        (reason,) = make({"anyOf": order}).judge('{"a":1,"b":2}').reasons
        assert str(reason) == "b: expected a string, got the number 2"
    # Of equals it is the first; one that refuses the value itself is none of them.
    for order, kind in (([far, near], "a string"), ([near, far], "an integer")):
        (reason,) = make({"anyOf": [{"type": "array"}, *order]}).judge('{"a":[],"b":""}').reasons
        assert str(reason) == f"a: expected {kind}, got an array"


def test_a_verdict_as_data() -> None:
    def data(document: dict[str, Any], answer: str) -> dict[str, Any]:
        return make(document).judge(answer).to_dict()

    assert data({}, "1") == {"kind": "valid", "reasons": []}
    assert data({"properties": {"a": {"type": "null"}, "b": {"not": {}}}}, '{"a":1,"b":2}') == {
        "kind": "invalid",
        "reasons": [
            {
                "path": "a",
                "keyword": "type",
                "message": "expected null, got the number 1",
                "expected": "null",
                "got": "the number 1",
            },
            {
                "path": "b",
                "keyword": "not",
                "message": "the schema rules out this value: the number 2",
            },
        ],
    }
    (reason,) = data({}, '{"a":1,}')["reasons"]
    assert (reason["keyword"], reason["position"]) == ("trailing_comma", 7), "at the }"
    assert str(make({}).judge("1")) == "valid"
    both = make({"required": ["a", "b"]}).judge("{}")
    assert str(both) == "a: missing, but required; b: missing, but required"
    assert both.parsed and not both.valid and not make({}).judge("{").parsed


def test_reasons_are_counted_by_field() -> None:
    schema = AnswerSchema.load(GOLDEN / "visit.schema.json")
    answer = '{"severity":"low","age":1,"medications":[{"name":"a"},{"name":1,"dose":"b","x y":1}]}'
    assert {(reason.field, reason.keyword) for reason in schema.judge(answer).reasons} == {
        ("medications[].dose", "required"),
        ("medications[].name", "type"),
        ("medications[]", "additionalProperties"),  # not by a name that the model made up
    }


# --- agreement with the reference implementation --------------------------------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0, -2.5]),
    st.text("ab", max_size=4), st.sampled_from(["2026-11-21", "2026-13-01", "é"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)
types = st.sampled_from(
    ["null", "boolean", "integer", "number", "string", "array", "object", ["string", "null"]]
)


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    small = st.integers(0, 3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": types,
            "enum": st.lists(scalars, min_size=1, max_size=3),
            "const": scalars,
            "minimum": st.integers(-3, 3),
            "exclusiveMaximum": st.integers(-3, 3),
            "multipleOf": st.sampled_from([1, 2, 0.5]),
            "minLength": small,
            "maxLength": small,
            "pattern": st.sampled_from(["^a", "b$", "^[ab]+$"]),
            "format": st.just("date"),
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": small,
            "uniqueItems": st.booleans(),
            "contains": inner,
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "additionalProperties": st.one_of(st.booleans(), inner),
            "maxProperties": small,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
        },
    )


schemas = st.recursive(keywords(st.booleans()), keywords, max_leaves=6)


@settings(max_examples=250, deadline=None)
@given(schemas, values)
def test_verdicts_agree_with_the_reference_implementation(
    document: dict[str, Any], value: object
) -> None:
    reference = Draft202012Validator(document, format_checker=Draft202012Validator.FORMAT_CHECKER)
    verdict = make(document).judge(json.dumps(value))
    assert verdict.valid == reference.is_valid(value)
    assert verdict.parsed
    assert bool(verdict.reasons) == (not verdict.valid)
    assert all(str(reason).strip() for reason in verdict.reasons)


# --- canonical form -------------------------------------------------------------------------------


def test_canonical_takes_the_schemas_order_at_every_level() -> None:
    schema = AnswerSchema.load(GOLDEN / "visit.schema.json")
    written = '{ "note" : null, "extra": [1,  2], "medications":[{"dose":"é", "name":"b"}],\n' \
        ' "result": {"value": 1.50, "kind":"test"}, "age":3, "severity":"low"}'  # fmt: skip
    assert schema.canonical_text(written) == (
        '{"severity":"low","age":3,"medications":[{"name":"b","dose":"é"}],"note":null,'
        '"result":{"kind":"test","value":1.50},"extra":[1,2]}'
    )


def test_canonical_order_comes_through_every_way_of_composing() -> None:
    ab: dict[str, Any] = {"properties": {"b": {}, "a": {}}}
    ways: list[dict[str, Any]] = [
        ab,
        {"$ref": "#/$defs/ab", "$defs": {"ab": ab}},
        {"allOf": [{"properties": {"b": {}}}, {"properties": {"a": {}}}]},
        {"anyOf": [{"type": "null"}, ab]},
        {"oneOf": [{"type": "array"}, {"required": ["z"], **ab}]},  # fits none: the nearest is used
        {"if": {"required": ["a"]}, "then": ab, "else": {"properties": {"a": {}}}},
    ]
    for way in ways:
        assert make(way).canonical({"a": 1, "b": 2}) == '{"b":2,"a":1}', way
        if "$ref" not in way:
            inner = {"type": "array", "items": {"anyOf": [way]}}
            nested = make({"patternProperties": {"^x": inner}})
            assert nested.canonical({"x1": [{"a": 1, "b": 2}]}) == '{"x1":[{"b":2,"a":1}]}', way
    tuples = {"prefixItems": [{}, ab], "items": False}
    assert make(tuples).canonical([{"a": 1, "b": 2}] * 2) == '[{"a":1,"b":2},{"b":2,"a":1}]'
    additional = {"properties": {"x": {}}, "additionalProperties": ab}
    assert make(additional).canonical({"y": {"a": 1, "b": 2}}) == '{"y":{"b":2,"a":1}}'


def test_canonical_order_is_the_one_that_constrained_decoding_writes() -> None:
    """The same as the decoder's own grammar, which accepts only the canonical order."""
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer("byte")

    def accepts(document: dict[str, Any], text: str) -> bool:
        compact = document | {"x-guidance": {"whitespace_flexible": False}}
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(compact))
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        tokens = tokenizer.tokenize_str(text)
        assert not matcher.is_error(), matcher.get_error()
        return bool(matcher.consume_tokens(tokens) and matcher.is_accepting())

    def listed(*names: str) -> dict[str, Any]:
        return {"properties": {name: {"type": "integer"} for name in names}}

    defs = {"$defs": {"x": listed("b", "a")}}
    for document in (
        listed("c", "b", "a"),
        {"$ref": "#/$defs/x", **listed("c"), **defs},
        {**listed("c"), "$ref": "#/$defs/x", **defs},
        {"allOf": [listed("b"), listed("a")], **listed("c")},
        {**listed("c"), "anyOf": [listed("b")], "allOf": [listed("a")]},
        {**listed("c", "a"), "allOf": [listed("a", "b", "c")]},
        {**listed("b"), "required": ["c", "a"]},
        {"required": ["c"], "allOf": [{"required": ["b"]}, listed("a")]},
    ):
        document = {"type": "object", **document}
        canonical = make(document).canonical({"a": 1, "b": 1, "c": 1})
        members = (",".join(f'"{key}":1' for key in keys) for keys in permutations("abc"))
        orders = (f"{{{text}}}" for text in members)
        assert [order for order in orders if accepts(document, order)] == [canonical], document


def test_canonical_chooses_the_alternative_that_fits() -> None:
    one = {"properties": {"kind": {"const": 1}, "b": {}, "a": {}}}
    two = {"properties": {"kind": {"const": 2}, "a": {}, "b": {}}}
    schema = make({"anyOf": [one, two]})
    assert schema.canonical({"b": 0, "a": 0, "kind": 1}) == '{"kind":1,"b":0,"a":0}'
    assert schema.canonical({"b": 0, "a": 0, "kind": 2}) == '{"kind":2,"a":0,"b":0}'


def test_canonical_takes_the_branch_of_a_condition_that_the_value_meets() -> None:
    condition = {"properties": {"kind": {"const": 1}}}
    then = {"properties": {"kind": {}, "b": {}, "a": {}}}
    otherwise = {"properties": {"a": {}, "kind": {}, "b": {}}}
    both = make({"if": condition, "then": then, "else": otherwise})
    assert both.canonical({"a": 0, "b": 0, "kind": 1}) == '{"kind":1,"b":0,"a":0}'
    assert both.canonical({"kind": 2, "b": 0, "a": 0}) == '{"a":0,"kind":2,"b":0}'
    # A branch that is missing says nothing of the order, and nor does the condition itself.
    assert make({"if": condition, "then": then}).canonical({"b": 0, "kind": 2}) == (
        '{"b":0,"kind":2}'
    )
    assert make({"if": condition, "else": otherwise}).canonical({"b": 0, "kind": 1}) == (
        '{"b":0,"kind":1}'
    )
    # Without a condition its branches apply to nothing (JSON Schema 2020-12, 10.2.2).
    assert make({"then": then, "else": otherwise}).canonical({"b": 0, "a": 0, "kind": 1}) == (
        '{"b":0,"a":0,"kind":1}'
    )


def test_canonical_orders_each_member_by_the_schemas_that_are_for_it() -> None:
    ba, ab = ({"properties": {key: {} for key in order}} for order in ("ba", "ab"))
    value, turned = '{"a":1,"b":1}', '{"b":1,"a":1}'

    def order(document: dict[str, Any], key: str) -> str:
        text = make(document).canonical_text(f'{{"{key}":{value}}}')
        return text.removeprefix(f'{{"{key}":').removesuffix("}")

    # A pattern counts where it matches; a property that is named goes before.
    patterns = {"patternProperties": {"^x": ba}}
    assert order(patterns, "x1") == turned and order(patterns, "y") == value
    assert order({"properties": {"x1": ab}} | patterns, "x1") == value
    assert order({"properties": {"x1": {}}} | patterns, "x1") == turned
    # What is for all others is for no property that was described.
    rest = {"additionalProperties": ba}
    assert order(rest, "x") == turned
    assert order({"properties": {"x": {}}} | rest, "x") == value
    assert order({"patternProperties": {"^x": {}}} | rest, "x") == value
    assert order({"patternProperties": {"^x": {}}} | rest, "y") == turned
    # Some patterns are none in Python; the answer is written all the same.
    assert order({"patternProperties": {r"^\p{L}": {}}, "properties": {"x": ba}}, "x") == turned


def test_canonical_orders_each_item_by_the_schema_of_its_place() -> None:
    ba = {"properties": {"b": {}, "a": {}}}
    value, turned = '{"a":1,"b":1}', '{"b":1,"a":1}'

    def items(**document: Any) -> list[bool]:
        text = make(document).canonical_text(f"[{value},{value},{value}]")
        found = [one + "}" for one in text.strip("[]").removesuffix("}").split("},")]
        assert set(found) <= {value, turned}
        return [one == turned for one in found]

    assert items(items=ba) == [True, True, True]
    assert items(prefixItems=[{}, ba]) == [False, True, False]
    assert items(prefixItems=[{}], items=ba) == [False, True, True]
    assert items(allOf=[{"prefixItems": [{}, ba]}, {"items": {}}]) == [False, True, False]
    assert items(**DRAFT_7, items=[ba, {}]) == [True, False, False]


def test_canonical_takes_the_alternative_that_knows_most_where_none_fits() -> None:
    one = {"type": "array", "properties": {"b": {}, "a": {}}}
    more = {"type": "array", "properties": {"c": {}, "b": {}, "a": {}}}
    answer = {"a": 1, "b": 1, "c": 1}
    for alternatives in ([one, more], [more, one]):
        assert make({"anyOf": alternatives}).canonical(answer) == '{"c":1,"b":1,"a":1}'
    # Of equals the first, and names that the answer does not have are no knowledge of it.
    other = {"type": "array", "properties": {"a": {}, "b": {}, "x": {}, "y": {}, "z": {}}}
    assert make({"anyOf": [one, other]}).canonical(answer) == '{"b":1,"a":1,"c":1}'
    assert make({"anyOf": [other, one]}).canonical(answer) == '{"a":1,"b":1,"c":1}'


def test_canonical_follows_a_reference_as_its_draft_does() -> None:
    listed = {"$ref": "#/$defs/x", "properties": {"c": {}, "a": {}}}
    document = {**listed, "$defs": {"x": {"properties": {"b": {}}}}}
    assert make(document).canonical({"a": 1, "b": 1, "c": 1}) == '{"b":1,"c":1,"a":1}'
    # Beside a reference nothing counts in draft 7: the rest stays as it was written.
    assert make(DRAFT_7 | document).canonical({"a": 1, "b": 1, "c": 1}) == '{"b":1,"a":1,"c":1}'
    dynamic = {
        "$dynamicRef": "#x",
        "$defs": {"x": {"$dynamicAnchor": "x", "properties": {"b": {}}}},
    }
    assert make(dynamic).canonical({"a": 1, "b": 1}) == '{"b":1,"a":1}'


def test_canonical_puts_a_branch_where_its_condition_stands() -> None:
    condition, own, then = {"required": ["a"]}, {"a": {}}, {"properties": {"b": {}}}
    answer = {"a": 1, "b": 1}
    first = {"if": condition, "properties": own, "then": then}
    assert make(first).canonical(answer) == '{"b":1,"a":1}'
    last = {"then": then, "properties": own, "if": condition}
    assert make(last).canonical(answer) == '{"a":1,"b":1}'


def test_canonical_tells_alternatives_apart_by_their_formats() -> None:
    dated = {"properties": {"day": {"format": "date"}, "b": {}, "a": {}}}
    free = {"properties": {"a": {}, "b": {}, "day": {}}}
    schema = make({"anyOf": [dated, free]})
    date, word = "2026-11-21", "soon"
    assert schema.canonical({"a": 0, "b": 0, "day": date}) == f'{{"day":"{date}","b":0,"a":0}}'
    assert schema.canonical({"b": 0, "day": word, "a": 0}) == f'{{"a":0,"b":0,"day":"{word}"}}'


NUMBERS = ["38.50", "1e3", "1E+2", "-0", "-0.0", "123456789012345678901234567890", "0.1e-7"]


@pytest.mark.parametrize("number", NUMBERS)
def test_canonical_leaves_numbers_as_written(number: str) -> None:
    schema = make({"properties": {"b": {"anyOf": [{"type": "integer"}, {"type": "number"}]}}})
    assert schema.canonical_text(f'{{"a": {number}, "b": [{number}]}}') == (
        f'{{"b":[{number}],"a":{number}}}'
    )


numbers = st.from_regex(
    r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,5})?([eE][+-]?[0-9]{1,2})?", fullmatch=True
)
texts = st.recursive(
    st.one_of(numbers, st.text(max_size=6).map(json.dumps), st.sampled_from(["null", "true"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{' , '.join(items)}]"),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(
            lambda found: "{" + " ,".join(f'"{key}" :{text}' for key, text in found.items()) + "}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(schemas, texts)
def test_canonical_changes_order_and_space_only(document: dict[str, Any], text: str) -> None:
    schema = make(document)
    canonical = schema.canonical_text(text)
    assert jsontext.parse_verbatim(canonical) == jsontext.parse_verbatim(text)
    assert schema.canonical_text(canonical) == canonical
    assert schema.judge(canonical).kind == schema.judge(text).kind
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', canonical)
    assert not re.search(r"\s", outside)


def backwards(value: Any) -> Any:
    """The same value with its keys in reverse order."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("draft", [DRAFT7, DRAFT2020])
def test_canonical_round_trip_under_schemas_of_every_keyword(draft: str) -> None:
    changed = 0
    for seed in range(300):
        maker = Maker(seed, draft)
        document = maker.document()
        try:
            schema = make(document)
        except UserError:
            continue  # refers to itself endlessly
        for ascii_only in (True, False):
            value = backwards(maker.near(document))
            text = json.dumps(value, indent=1, ensure_ascii=ascii_only)
            canonical = schema.canonical_text(text)
            assert jsontext.parse(canonical) == value, (document, text)
            assert schema.canonical_text(canonical) == canonical
            assert schema.judge(canonical).kind == schema.judge(text).kind
            assert len(canonical) <= len(jsontext.dumps(value))
            changed += canonical != jsontext.dumps(value)
    assert changed > 50


def test_canonical_refuses_what_is_not_json() -> None:
    schema = make({})
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(UserError, match="not"):
            schema.canonical(value)
    with pytest.raises(UserError, match="is cut off"):
        schema.canonical_text('{"a":')


# --- places ---------------------------------------------------------------------------------------


def test_paths_read_well() -> None:
    assert format_path(["medications", 0, "dose"]) == "medications[0].dose"
    assert format_path([]) == ""
    assert format_path(["a b", "c.d", 1]) == '["a b"]["c.d"][1]'


@given(values)
def test_locate_finds_every_value(value: object) -> None:
    assume(isinstance(value, dict | list))
    text = json.dumps(value, indent=1)

    def check(inner: Any, path: list[str | int]) -> None:
        at = locate(text, path)
        assert json.JSONDecoder().raw_decode(text, at)[0] == inner
        members: dict[Any, Any] = {}
        if isinstance(inner, dict | list):
            members = inner if isinstance(inner, dict) else dict(enumerate(inner))
        for key, member in members.items():
            check(member, [*path, key])

    check(value, [])
    assert locate(text, ["missing", 7]) == locate(text, [])
