"""Lint, narrowing, the fit of answers, stricter and inferred schemas, and their commands."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support import schema_zoo
from support.places import TEMPLATE
from support.schema_zoo import INTEGER, closed

from llm_lora.cli.commands import app
from llm_lora.errors import UserError
from llm_lora.grammar.constraint import decoding, request_fields
from llm_lora.grammar.extent import extent
from llm_lora.grammar.fit import Fit
from llm_lora.grammar.inferring import infer
from llm_lora.grammar.lint import lint
from llm_lora.grammar.matching import Refused, compile_schema, draw, stop
from llm_lora.grammar.probes import Probes
from llm_lora.grammar.sampling import sample
from llm_lora.grammar.stricter import stricter
from llm_lora.schema import json_text as jsontext
from llm_lora.schema.answer import AnswerSchema
from llm_lora.schema.narrowing import narrowed

MEDICAL = TEMPLATE / "answer.schema.json"
LOOSE = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["ok", "bad"]},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        "reason": {"type": "string"},
    },
    "required": ["verdict", "tags"],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(document: Any) -> AnswerSchema:
    return AnswerSchema.from_text(json.dumps(document))


def drawn(document: Any, count: int = 12) -> list[str]:
    """Answers drawn from a schema's grammar; none if the decoder refuses it."""
    try:
        grammar = compile_schema(made(document))
    except Refused:
        return []
    source = random.Random(4)
    return [text for _ in range(count) if (text := draw(grammar, source, 600)) is not None]


# --- lint -----------------------------------------------------------------------------------------


def test_a_bounded_closed_schema_is_enforceable() -> None:
    found = lint(AnswerSchema.load(MEDICAL))
    assert found.enforceable and found.not_enforced() == () and found.remarks == ()


def test_a_loose_schema_is_told_apart_by_place_and_reason() -> None:
    found = lint(made(LOOSE))
    assert found.refused == 'Unimplemented keys: ["uniqueItems"]' and not found.enforceable
    told = {(one.where, one.name, one.state) for one in found.not_enforced()}
    assert told == {("(schema)", "open object", "afterwards"),
                    ("properties.tags", "uniqueItems", "refused")}  # fmt: skip
    remarks = [(one.kind, one.where) for one in found.remarks]
    assert remarks == [("open_object", "(schema)"), ("order", "(schema)"),
                       ("unbounded_array", "properties.tags"),
                       ("unbounded_string", "properties.reason")]  # fmt: skip


@pytest.mark.parametrize(
    ("feature", "state"),
    [("uniqueItems", "refused"), ("contains", "refused"), ("not", "refused"), ("if", "refused"),
     ("dependencies", "refused"), ("dependentRequired", "refused"), ("format:iri", "refused"),
     ("multipleOf", "enforced"), ("anyOf", "enforced"), ("format:date", "enforced"),
     ("pattern", "enforced"), ("pattern:space", "afterwards"), ("open object", "afterwards")],
)  # fmt: skip
def test_known_offenders_of_the_servers_decoder(feature: str, state: str, tmp_path: Path) -> None:
    assert Probes("vllm", tmp_path / "probes.json").feature(feature).state == state


def test_siblings_are_probed_together(tmp_path: Path) -> None:
    probes = Probes("outlines", tmp_path / "probes.json")
    assert probes.feature("pattern").state == probes.feature("maxLength").state == "enforced"
    assert probes.pair("pattern", "maxLength").state == "afterwards"


def test_probes_are_kept_and_a_damaged_file_is_found_out_again(tmp_path: Path) -> None:
    path = tmp_path / "probes.json"
    probes = Probes("vllm", path)
    first = probes.feature("multipleOf")
    probes.save()
    (key,) = json.loads(path.read_text())
    kept = json.loads(path.read_text())
    kept[key]["example"] = "from the file"
    path.write_text(json.dumps(kept))
    assert Probes("vllm", path).feature("multipleOf").example == "from the file"
    path.write_text("{")
    assert Probes("vllm", path).feature("multipleOf") == first


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({}, "any_value"),
        ({"type": "number"}, "unbounded_number"),
        (schema_zoo.BY_HAND["tree"], "recursion"),
        (schema_zoo.BY_HAND["many optional"], "many_optional"),
        ({"anyOf": [closed({"a": INTEGER}), closed({"a": {"type": "number"}})]}, "ambiguous"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "endless"),
    ],
)
def test_remarks(document: Any, kind: str) -> None:
    assert kind in {remark.kind for remark in lint(made(document)).remarks}


def test_enum_values_of_scraps_are_remarked_where_tokens_are_known() -> None:
    schema = made({"enum": ["mild", "xq7#"]})
    found = lint(schema, measure=lambda text: len(text) if "#" in text else 1)
    assert [(r.kind, '"xq7#"' in r.message) for r in found.remarks] == [("scraps", True)]


# --- narrowing and extent -------------------------------------------------------------------------


@pytest.mark.parametrize("name", schema_zoo.BY_HAND)
def test_narrowing_and_stricter_only_take_away(name: str) -> None:
    document = schema_zoo.BY_HAND[name]
    schema = made(document)
    less, _ = stricter(schema)
    for part in (narrowed(schema.document), less):
        narrower = made(part)
        for text in drawn(part):
            value = json.loads(text) if narrower.judge(text).valid else None
            if value is not None:
                assert schema.judge_value(value).valid, (text, part)


@pytest.mark.parametrize("name", schema_zoo.BY_HAND)
def test_answers_lie_within_the_extent(name: str) -> None:
    schema = made(schema_zoo.BY_HAND[name])
    found = extent(schema)
    # A free character may be written as an escape, which counts as one.
    lengths = [len(text) for text in drawn(schema.document)
               if "\\" not in text and schema.judge(text).valid]  # fmt: skip
    assert all(found.shortest is not None and found.shortest <= n for n in lengths), found
    assert all(n <= found.longest for n in lengths), (found, lengths)


def test_strings_arrays_and_numbers_end() -> None:
    schema = made(closed({"s": {"type": "string"}, "a": {"type": "array", "items": INTEGER}}))
    fit = Fit(schema)
    for value in ({"s": "x" * 5000, "a": []}, {"s": "", "a": [1] * 300}):
        refusal = fit.check(schema.canonical(value))
        assert refusal is not None and refusal.loosened is not None
        wider = made(refusal.loosened.apply(schema.document))
        assert Fit(wider).check(schema.canonical(value)) is None
    assert stop(compile_schema(made({"type": "number"})), "1e999") is not None


# --- the fit of answers ---------------------------------------------------------------------------

_PARTS = closed({"n": INTEGER, "s": {"type": "string"}})


@pytest.mark.parametrize(
    ("document", "answer", "at", "side", "mended"),
    [
        (_PARTS, '{"n":1.0,"s":"a"}', 6, "data", '{"n":1,"s":"a"}'),
        (_PARTS, '{"n":1e2,"s":"a"}', 6, "data", '{"n":100,"s":"a"}'),
        (_PARTS, '{"s":"a","n":3}', 2, "data", '{"n":3,"s":"a"}'),
        (_PARTS, '{ "n":3,"s":"a"}', 1, "data", '{"n":3,"s":"a"}'),
        (_PARTS, '{"n":3,"s":"a\\/b"}', 14, "data", '{"n":3,"s":"a/b"}'),
        ({"type": "number"}, "1.5e-7", 3, "data", "0.00000015"),
        ({"type": "string", "format": "ipv6"}, '"::ffff:1.2.3.4"', 9, "schema", None),
        ({"type": "integer", "multipleOf": 5}, "-5", 0, "schema", None),
    ],
)
def test_a_refused_answer_is_told_with_byte_side_and_cure(
    document: Any, answer: str, at: int, side: str, mended: str | None
) -> None:
    schema = made(document)
    assert schema.judge(answer).valid
    refusal = Fit(schema).check(answer)
    assert refusal is not None
    assert (refusal.at, refusal.side, refusal.mended) == (at, side, mended)
    if mended is not None:
        assert Fit(schema).check(mended) is None
        assert jsontext.parse(mended) == jsontext.parse(answer)
    if refusal.loosened is not None:
        assert Fit(made(refusal.loosened.apply(schema.document))).check(answer) is None


def test_the_message_of_a_refusal() -> None:
    assert str(Fit(made(_PARTS)).check('{"s":"a","n":3}')) == (
        'byte 2: after "{\\"" only "n" was possible, got "s"; '
        'correct the data: write "{\\"n\\":3,\\"s\\":\\"a\\"}"'
    )


def test_a_refused_schema_is_told_before_any_answer() -> None:
    with pytest.raises(UserError, match=r"cannot enforce this schema: .*uniqueItems"):
        Fit(made(LOOSE))
    with pytest.raises(UserError, match="uniqueItems"):
        decoding(made(LOOSE))


def test_engine_and_server_get_the_same_constraint() -> None:
    schema = AnswerSchema.load(MEDICAL)
    assert decoding(schema).request == request_fields(schema)
    assert request_fields(schema)["structured_outputs"]["json"] == schema.constraint


# --- made schemas ---------------------------------------------------------------------------------


def test_a_stricter_schema_is_enforceable_and_asks_for_grounds_first() -> None:
    document = {**LOOSE, "properties": {**LOOSE["properties"], "tags": {"type": "boolean"}}}
    less, changes = stricter(made(document), [{"verdict": "ok", "tags": True, "reason": "a" * 30}])
    assert lint(made(less)).enforceable
    assert list(less["properties"]) == ["reason", "verdict", "tags"]
    assert less["properties"]["reason"]["maxLength"] == 60 and changes


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=12)
    | st.floats(allow_nan=False, allow_infinity=False, width=32),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.lists(_JSON, min_size=1, max_size=6))
def test_answers_fit_the_schema_inferred_from_them(answers: list[Any]) -> None:
    schema = made(infer(answers))
    assert [schema.judge_value(answer).valid for answer in answers] == [True] * len(answers)


def test_an_inferred_schema_is_tight() -> None:
    rows = [{"c": "red" if i % 2 else "green", "d": f"2026-11-{i % 28 + 1:02}", "n": i}
            for i in range(60)]  # fmt: skip
    found = infer([*rows, {**rows[0], "note": "x"}])
    assert found["properties"]["c"] == {"enum": ["green", "red"]}
    assert found["properties"]["d"] == {"type": "string", "format": "date"}
    assert found["properties"]["n"]["minimum"] == 0
    assert found["required"] == ["c", "d", "n"] and found["additionalProperties"] is False
    assert not made(found).judge_value({"c": "blue", "d": "2026-11-01", "n": 1}).valid


@pytest.mark.parametrize("document", [LOOSE, schema_zoo.BY_HAND["invoice"]])
def test_samples_are_valid_and_the_same_for_a_seed(document: Any) -> None:
    schema = made(document)
    texts = sample(schema, 5, seed=3)
    assert len(texts) == 5 and all(schema.judge(text).valid for text in texts)
    assert texts == sample(schema, 5, seed=3) != sample(schema, 5, seed=4)


# --- commands -------------------------------------------------------------------------------------


def run(*arguments: str, **more: Any) -> Any:
    return CliRunner().invoke(app, ["schema", *arguments], **more)


def test_lint_writes_a_stricter_schema_and_exits_1_for_what_is_not_enforced(tmp_path: Path) -> None:
    file, out = tmp_path / "loose.json", tmp_path / "strict.json"
    file.write_text(json.dumps(LOOSE))
    done = run("lint", str(file), "--fix", str(out))
    assert done.exit_code == 1 and "refused: uniqueItems in properties.tags" in done.output
    assert json.loads(out.read_text())["additionalProperties"] is False
    assert run("lint", str(MEDICAL)).exit_code == 0
    told = json.loads(run("lint", str(MEDICAL), "--base", "tiny", "--json").output)
    assert told["unit"] == "tokens" and told["cost"]["tokens"] > 50 and told["enforceable"]


def test_fit_mends_data(tmp_path: Path) -> None:
    file, rows, out = tmp_path / "s.json", tmp_path / "rows.jsonl", tmp_path / "mended.jsonl"
    file.write_text(json.dumps(_PARTS))
    row = {"prompt": "p", "response": '{"n":1.0,"s":"a"}'}
    rows.write_text(json.dumps(row) + "\n")
    done = run("fit", str(rows), "--schema", str(file), "--mend", str(out))
    assert done.exit_code == 1 and "0 of 1 answers" in done.output
    done = run("fit", str(out), "--schema", str(file))
    assert done.exit_code == 0 and "1 of 1 answers" in done.output


_WRITTEN, _MENDED = '{"n":1.0,"s":"a"}', '{"n":1,"s":"a"}'
_MORE = {"part": "seen", "id": 7, "weight": 1.5}
_USER = {"role": "user", "content": "p"}


@pytest.mark.parametrize(
    ("row", "mended"),
    [
        ({"prompt": "p", "response": _WRITTEN}, {"prompt": "p", "response": _MENDED}),
        (
            {"question": "p", "answer": {"s": "a", "n": 1.0}},
            {"question": "p", "answer": {"n": 1, "s": "a"}},
        ),
        (
            {"instruction": "p", "input": "q", "output": _WRITTEN},
            {"instruction": "p", "input": "q", "output": _MENDED},
        ),
        (
            {"messages": [_USER, {"role": "assistant", "content": _WRITTEN, "name": "x"}]},
            {"messages": [_USER, {"role": "assistant", "content": _MENDED, "name": "x"}]},
        ),
        (
            {"messages": [_USER, {"role": "assistant", "content": [{"text": _WRITTEN}]}]},
            {"messages": [_USER, {"role": "assistant", "content": _MENDED}]},
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "p"},
                    {"from": "gpt", "value": _WRITTEN},
                ]
            },
            {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": _MENDED}]},
        ),
    ],
)
def test_fit_mends_the_answer_and_keeps_all_else(
    row: dict[str, Any], mended: dict[str, Any], tmp_path: Path
) -> None:
    file, rows, out = tmp_path / "s.json", tmp_path / "rows.jsonl", tmp_path / "mended.jsonl"
    file.write_text(json.dumps(_PARTS))
    rows.write_text(json.dumps(row | _MORE) + "\n")
    assert run("fit", str(rows), "--schema", str(file), "--mend", str(out)).exit_code == 1
    assert json.loads(out.read_text()) == mended | _MORE
    assert run("fit", str(out), "--schema", str(file)).exit_code == 0


def test_fit_copies_what_does_not_fit_the_schema_and_tells_how_much(tmp_path: Path) -> None:
    file, rows, out = tmp_path / "s.json", tmp_path / "rows.jsonl", tmp_path / "mended.jsonl"
    file.write_text(json.dumps(_PARTS))
    unfit = [
        '{"prompt": "p",  "response": "no JSON", "part": "seen"}',
        "{oops",
        '["p"]',
        '"问：头痛"',
    ]
    fits = json.dumps({"prompt": "p", "response": _MENDED}, ensure_ascii=False)
    rows.write_text("\n".join([unfit[0], fits, *unfit[1:]]) + "\n")
    done = run("fit", str(rows), "--schema", str(file), "--mend", str(out))
    assert done.exit_code == 0 and out.read_text() == rows.read_text()
    assert "4 rows do not fit the schema: llm-lora validate shows why" in done.output
    rows.write_text(unfit[0] + "\n")
    done = run("fit", str(rows), "--schema", str(file), "--mend", str(out))
    assert done.exit_code == 1, "nothing was checked"
    assert "0 of 0 answers" in done.output and out.read_text() == rows.read_text()
    # An array over several lines, and text that is not JSON, become JSON Lines.
    array = [{"prompt": "p", "response": "no JSON"}, {"prompt": "p", "response": _MENDED}]
    rows.write_text(json.dumps(array, indent=1))
    assert run("fit", str(rows), "--schema", str(file), "--mend", str(out)).exit_code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == array
    rows.write_text(f"问：p\n问：q\n答：{_WRITTEN}\n")
    assert run("fit", str(rows), "--schema", str(file), "--mend", str(out)).exit_code == 1
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        "问：p", {"question": "q", "answer": _MENDED},
    ]  # fmt: skip


def test_fit_writes_over_nothing_that_it_reads(tmp_path: Path) -> None:
    file, rows = tmp_path / "s.json", tmp_path / "rows.jsonl"
    file.write_text(json.dumps(_PARTS))
    rows.write_text(json.dumps({"prompt": "p", "response": _WRITTEN}) + "\n")
    before = rows.read_text()
    for option, out in (("--mend", rows), ("--mend-schema", file), ("--mend", file)):
        again = tmp_path / "x" / ".." / out.name
        done = run("fit", str(rows), "--schema", str(file), option, str(again))
        assert isinstance(done.exception, UserError) and "another file" in str(done.exception)
    assert rows.read_text() == before


def test_a_module_is_imported_only_with_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from pathlib import Path\nfrom pydantic import BaseModel\n"
    code += "Path('ran').touch()\nclass Order(BaseModel):\n    count: int\n"
    Path("shop_forms.py").write_text(code)
    done = run("from", "pydantic", "shop_forms:Order", input="n\n")
    assert isinstance(done.exception, UserError) and not Path("ran").exists()
    done = run("from", "pydantic", "shop_forms:Order", "--yes", "--out", "order.json")
    assert done.exit_code == 0 and Path("ran").exists()
    assert json.loads(Path("order.json").read_text())["required"] == ["count"]
