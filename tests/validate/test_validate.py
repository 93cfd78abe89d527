"""Judging files of answers line by line."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from llm_lora.errors import UserError
from llm_lora.schema.answer import AnswerSchema
from llm_lora.validate.judging import (
    Judge,
    LineVerdict,
    Summary,
    judge_blocks,
    judge_file,
    summarise,
)

SCHEMA = AnswerSchema.from_text(
    '{"type":"object","properties":{"level":{"enum":["low","high"]},'
    '"items":{"type":"array","items":{"type":"integer"}}},"required":["level"]}'
)


def judge(tmp_path: Path, *lines: str | bytes, schema: AnswerSchema = SCHEMA) -> list[LineVerdict]:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return list(judge_file(path, schema))


@pytest.mark.parametrize(
    "line",
    [
        '{"level":"low"}',
        json.dumps('{"level":"low"}'),
        '{"answer":{"level":"low"}}',
        json.dumps({"id": 1, "response": '{"level":"low"}', "prompt": "p"}),
        json.dumps({"text": ' {"level" : "low"}\n'}),
        '\ufeff{"level":"low"}\r',
    ],
)
def test_an_answer_may_stand_in_several_ways(tmp_path: Path, line: str) -> None:
    (judged,) = judge(tmp_path, line)
    assert judged.verdict.valid
    (wrong,) = judge(tmp_path, line.replace("low", "mid"))
    assert [reason.path for reason in wrong.verdict.reasons] == ["level"]


def test_the_text_of_a_record_is_judged_as_text(tmp_path: Path) -> None:
    lines = [json.dumps({"answer": "Sure! {}"}), json.dumps("oh"), "Sure! {}", '{"level":"low"']
    keywords = [one.verdict.reasons[0].keyword for one in judge(tmp_path, *lines)]
    assert keywords == ["prose", "prose", "prose", "truncated"]


def test_a_property_that_the_schema_knows_is_no_envelope(tmp_path: Path) -> None:
    schema = AnswerSchema.from_text('{"properties":{"text":{"type":"string"}},"required":["text"]}')
    (one,) = judge(tmp_path, '{"text":"hello"}', schema=schema)
    assert one.verdict.valid
    (enveloped,) = judge(tmp_path, '{"answer":"{\\"text\\":\\"hello\\"}"}', schema=schema)
    assert enveloped.verdict.valid


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"answer": '\ufeff{"level":"low"}'}),
        json.dumps('\ufeff{"level":"low"}'),
        '\ufeff{"level":"low"}',
    ],
)
def test_a_byte_order_mark_is_a_flaw_but_at_the_start_of_the_file(
    tmp_path: Path, line: str
) -> None:
    *_, first, second = judge(tmp_path, '\ufeff{"level":"low"}', line)
    assert first.verdict.valid
    assert [reason.keyword for reason in second.verdict.reasons] == ["byte_order_mark"]
    # A large file is read by a different parser.
    assert {one.verdict.kind for one in judge(tmp_path, *["{}", line] * 100)[1::2]} == {"not_json"}
    (block,) = judge_blocks(tmp_path / "answers.jsonl", Judge(SCHEMA, fix=True))
    assert block.summary.repairs == {"byte_order_mark": 100}
    assert b"\xef\xbb\xbf" not in block.fixed
    assert b"ufeff" not in block.fixed


def test_the_mark_of_a_file_is_not_in_the_repaired_one(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    for text in ('\ufeff{"level":"low"}\n', '\ufeff{\n"level":"low"}', '\ufeff[\n{"level":"low"}]'):
        path.write_text(text)
        (block,) = judge_blocks(path, Judge(SCHEMA, fix=True))
        assert json.loads(block.fixed.decode()) == {"level": "low"}
        assert block.summary.valid == 1


def test_lines_are_counted_and_blank_ones_skipped(tmp_path: Path) -> None:
    judged = judge(tmp_path, '{"level":"low"}', "", "  ", "[]", b'{"level":"\xff"}', "7")
    assert [(one.line, one.verdict.kind) for one in judged] == [
        (1, "valid"),
        (4, "invalid"),
        (5, "not_json"),
        (6, "invalid"),
    ]
    assert judged[2].verdict.reasons[0].message == "not UTF-8: byte 0xff at byte 11 of the line"
    assert judged[1].to_dict()["line"] == 4
    assert judged[1].to_dict()["reasons"][0]["keyword"] == "type"


def test_a_summary_counts_by_place_and_rule(tmp_path: Path) -> None:
    summary = summarise(
        judge(
            tmp_path,
            '{"level":"low"}',
            '{"level":"mid","items":["a","b",1]}',
            '{"level":"low","items":["a"]}',
            "oh",
        )
    )
    assert summary.to_dict() == {
        "answers": 4,
        "valid": 1,
        "invalid": 2,
        "not_json": 1,
        "repaired": 0,
        "reasons": [
            {"path": "items[]", "keyword": "type", "answers": 2, "first_line": 2},
            {"path": "", "keyword": "prose", "answers": 1, "first_line": 4},
            {"path": "level", "keyword": "enum", "answers": 1, "first_line": 2},
        ],
        "repairs": {},
    }


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    source = io.TextIOWrapper(io.BytesIO(b'{"level":"low"}\n{"level":1}\n'))
    monkeypatch.setattr(sys, "stdin", source)
    assert [one.verdict.valid for one in judge_file(Path("-"), SCHEMA)] == [True, False]


def test_files_that_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(judge_file(tmp_path / "none.jsonl", SCHEMA))
    with pytest.raises(UserError, match="cannot read"):
        list(judge_file(tmp_path, SCHEMA))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"

    def peak(answers: int) -> int:
        with path.open("w") as file:
            for number in range(answers):
                # Every name is new, as from a model that writes nonsense.
                file.write(f'{{"level":"low","items":[{number},"x"],"n{number}":{{}}}}\n')
        gc.collect()
        tracemalloc.start()
        summary = summarise(judge_file(path, SCHEMA))
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert summary.answers == summary.kinds["invalid"] == answers
        return high

    peak(100)
    assert peak(5000) < peak(500) * 1.5 + 50_000


def test_names_without_number_are_counted_together() -> None:
    maps = AnswerSchema.from_text('{"additionalProperties":{"type":"integer"}}')
    summary = Summary()
    for number in range(1500):
        verdict = maps.judge(f'{{"name{number}":"x"}}')
        summary.add(LineVerdict(number + 1, verdict))
    assert summary.reasons.total() == 1500
    assert len(summary.reasons) == 1001


def test_importing_is_quick_and_light(surroundings: dict[str, str]) -> None:
    code = (
        "import time, sys; started = time.process_time(); import llm_lora.validate.judging; "
        "print(time.process_time() - started, 'jsonschema' in sys.modules, 'jinja2' in sys.modules)"
    )
    # The first call compiles. Processor time is used, so that a busy machine cannot fail the test.
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=surroundings,
        )
        for _ in range(5)
    ]
    told = [run.stdout.split() for run in runs]
    seconds, *heavy = min(told, key=lambda one: float(one[0]))
    print(f"importing took {float(seconds):.3f} s")
    assert float(seconds) < 0.15
    assert heavy == ["False", "False"]
