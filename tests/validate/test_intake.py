"""Judging files of every form, in blocks, on several cores, with repairs."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pytest
from pyarrow import parquet

from llm_lora.errors import UserError
from llm_lora.schema.answer import AnswerSchema
from llm_lora.validate import intake
from llm_lora.validate import judging as validate
from llm_lora.validate.judging import Judge, LineVerdict, Summary, judge_blocks, judge_file

TEXT = (
    '{"type":"object","properties":{"level":{"enum":["low","high"]},"n":{"type":"integer"}},'
    '"required":["level"],"additionalProperties":false}'
)
SCHEMA = AnswerSchema.from_text(TEXT)
ANSWERS = ['{"level":"low","n":1}', '{"level":"mid"}', "Sure! {}", '{"level":"high"', "{}"]
KINDS = ["valid", "invalid", "not_json", "not_json", "invalid"]


def kinds(path: Path, **settings: Any) -> list[tuple[int, str]]:
    """Line and kind of every answer, from the rows that --out writes."""
    found: list[tuple[int, str]] = []
    for block in judge_blocks(path, Judge(SCHEMA, rows=True, **settings)):
        found += [(line, json.loads("{" + row)["kind"]) for line, row in block.rows]
    return found


LINES = "\n".join(json.dumps({"id": i, "answer": text}) for i, text in enumerate(ANSWERS)).encode()
NUMBERED = list(enumerate(KINDS, 1))


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, "zstd", asbytes=True))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plain.jsonl", LINES),
        ("marked.jsonl", b"\xef\xbb\xbf" + LINES + b"\n"),
        ("windows.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("gzip.gz", gzip.compress(LINES)),
        ("two members.gz", gzip.compress(LINES[:50]) + gzip.compress(LINES[50:])),
        ("zstd.zst", zstd(LINES)),
        ("two frames.zst", zstd(LINES[:50]) + zstd(LINES[50:])),
        ("array.json", b"[\n" + LINES.replace(b"\n", b",\n").replace(b"{", b"{", 1) + b"\n]"),
        ("array.json.gz", gzip.compress(b"[" + LINES.replace(b"\n", b",\n") + b"]\n\n")),
    ],
)
def test_every_form_of_file(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    shift = 1 if name == "array.json" else 0
    assert kinds(path) == [(line + shift, kind) for line, kind in NUMBERED]
    assert [one.line for one in judge_file(path, SCHEMA)] == [line + shift for line, _ in NUMBERED]


@pytest.mark.parametrize("data", [LINES, gzip.compress(LINES), zstd(LINES), b" \n" + LINES])
def test_standard_input_in_every_form(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    shift = data.count(b"\n", 0, 2)
    assert kinds(Path("-")) == [(line + shift, kind) for line, kind in NUMBERED]


def test_a_young_stream_is_judged_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.BytesIO):
        """Gives a line a time, as a person or a running model does."""

        given = 0

        def read1(self, size: int | None = -1) -> bytes:
            self.given += 1
            return self.readline(size)

    slow = Slow(LINES)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(slow))
    blocks = judge_blocks(Path("-"), Judge(SCHEMA))
    next(blocks)
    assert slow.given <= 3


def test_arrays_of_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    items = [{"level": "low"}, '{"level":"low"}', 7, None, [], {"answer": {"level": "low"}}]
    path.write_text("\n" + json.dumps(items, indent=2))
    found = [kind for _, kind in kinds(path)]
    assert found == ["valid", "valid", "invalid", "invalid", "invalid", "valid"]
    lines = path.read_text().splitlines()
    assert [lines[line - 1].strip(" ,")[:1] for line, _ in kinds(path)] == list('{"7n[{')
    path.write_text("[]")
    assert kinds(path) == []
    # Two lines with an array each are two answers; so is one, where answers are arrays.
    path.write_text('["a"]\n["b"]\n')
    assert kinds(path) == [(1, "invalid"), (2, "invalid")]
    arrays = AnswerSchema.from_text('{"type":"array"}')
    path.write_text('["a", "b"]')
    assert [one.verdict.kind for one in judge_file(path, arrays)] == ["valid"]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n\n"])
def test_blocks_may_end_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: bytes
) -> None:
    path = tmp_path / "a.jsonl"
    data = b"\n" + LINES.replace(b"\n", b"\n\n", 1) + ending
    wanted = [(line + (1 if line == 1 else 2), kind) for line, kind in NUMBERED]
    for size in range(1, len(data) + 2):
        monkeypatch.setattr(intake, "BLOCK", size)
        for packed in (data, gzip.compress(data)) if size % 10 == 1 else (data,):
            path.write_bytes(packed)
            assert kinds(path) == wanted, size


def test_numbers_at_the_edge_of_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    numbers = [str(7**power) for power in range(60)]
    path.write_text(f"[{','.join(numbers)}]")
    for window in (1, 2, 5, 64):
        monkeypatch.setattr(intake, "BLOCK", window)
        (block,) = intake.blocks(path, column=None, arrays=False)
        assert isinstance(block, intake.Items)
        assert block.texts == [number.encode() for number in numbers]


def test_an_array_larger_than_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(3)
    items = [{"level": "low", "n": dice.randrange(10 ** dice.randrange(1, 30))} for _ in range(300)]
    items[7]["level"] = "x" * 500
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps(items, indent=indent))
        for window in (7, 64, 1 << 20):
            monkeypatch.setattr(intake, "BLOCK", window)
            found = kinds(path)
            assert [kind for _, kind in found].count("valid") == 299
            assert [line for line, _ in found] == [
                1 if indent is None else 2 + 4 * index for index in range(300)
            ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a":1},\n{"a" 2}]', r":3: not JSON: expected :"),
        ('[\n{"a":1}\n{"a":2}]', r":3: expected , or \] after an item, got"),
        ('[\n{"a":1},\n', r"is cut off|got nothing"),
        ("[1] 2\n]", "text after the array"),
        ("[\n1,\n2", "is cut off"),
    ],
)
def test_a_broken_array_is_a_user_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        kinds(path)


def test_one_document_over_several_lines_is_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n{\n  "level": "low"\n}\n')
    assert kinds(path) == [(2, "valid")]
    path.write_text('{\n  "level": "low",\n}')
    (one,) = judge_file(path, SCHEMA)
    assert str(one.verdict).startswith("a comma before the closing } at line")


@pytest.mark.parametrize("column", ["answer", "said"])
def test_a_parquet_column(tmp_path: Path, column: str) -> None:
    path = tmp_path / "a.parquet"
    texts = [*ANSWERS, None, '"{}"']
    table = pyarrow.table({"id": range(7), column: texts, "prompt": ["p"] * 7})
    parquet.write_table(table, path, row_group_size=3)
    wanted = [*NUMBERED, (6, "not_json"), (7, "invalid")]
    assert kinds(path, column=column) == wanted
    if column == "answer":
        assert kinds(path) == wanted
    else:
        with pytest.raises(UserError, match="text columns: said, prompt"):
            kinds(path)
    with pytest.raises(UserError, match="no text column named id"):
        kinds(path, column="id")


def test_a_key_of_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"said":"{}","answer":{"level":"low"}}\n{"said":{"level":"low"}}\n')
    assert [kind for _, kind in kinds(path, column="said")] == ["invalid", "valid"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.gz", gzip.compress(LINES)[:-12], "damaged"),
        ("a.zst", zstd(LINES)[:-5], "Truncated"),
        ("a.parquet", b"PAR1" + b"x" * 50, "damaged|cannot read"),
        ("a.json", b'["\xff",\n1]', "not UTF-8"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        kinds(path)


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BLOCK", 100)
    monkeypatch.setattr(intake, "LARGEST", 1000)
    path = tmp_path / "a.jsonl"
    for data in (b"{}\n" + b"x" * 3000, gzip.compress(b"{}\n" + b"x" * 3000)):
        path.write_bytes(data)
        with pytest.raises(UserError, match="a line is larger than"):
            kinds(path)


# --- several cores --------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lines of very different length, cut into small blocks; every 50th byte or so is a cut."""
    dice = random.Random(5)
    lines = []
    for number in range(1500):
        text = dice.choice(ANSWERS)
        lines.append(dice.choice((text, json.dumps(text), "", json.dumps({"text": text}))))
        if number % 300 == 0:
            lines[-1] = json.dumps({"text": text, "more": "x" * 5000})
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(intake, "BLOCK", 2000)
    monkeypatch.setattr(validate, "_SMALL", 4000)
    return path


def without_repairs(path: Path) -> dict[str, Any]:
    whole = Summary()
    for block in judge_blocks(path, Judge(SCHEMA), jobs=2):
        whole.merge(block.summary, shift=block.before)
    return whole.to_dict()


@pytest.mark.parametrize("packed", [False, True])
def test_several_processes_find_the_same_in_the_same_order(many: Path, packed: bool) -> None:
    text = many.read_text().replace(" ", "")
    if packed:
        many.write_bytes(gzip.compress(many.read_bytes()))
    alone, together = (
        list(judge_blocks(many, Judge(SCHEMA, rows=True, fix=True), jobs=jobs)) for jobs in (1, 3)
    )
    summaries = []
    for blocks in (alone, together):
        whole = Summary()
        for block in blocks:
            whole.merge(block.summary, shift=block.before)
        summaries.append(whole.to_dict())
    assert summaries[0] == summaries[1]
    assert summaries[0]["answers"] > 1000
    for name in ("rows", "bad"):
        one, other = (
            [row for b in blocks for row in getattr(b, name)] for blocks in (alone, together)
        )
        assert one == other
    assert b"".join(b.fixed for b in alone) == b"".join(b.fixed for b in together)
    assert summaries[0]["answers"] == len(text.split())
    judged = list(judge_file(many, SCHEMA))
    assert [one.line for one in judged] == [line for b in alone for line, _ in b.rows]
    assert validate.summarise(judged).to_dict()["reasons"] == without_repairs(many)["reasons"]


def test_small_input_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Iterator[Any]:
        raise AssertionError("a process for this little")

    monkeypatch.setattr(validate, "_in_processes", refuse)
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    assert kinds(path) == NUMBERED


def test_a_killed_process_is_told(many: Path) -> None:
    before = set(psutil.Process().children())
    blocks = judge_blocks(many, Judge(SCHEMA), jobs=2)
    with pytest.raises(UserError, match="a worker process was killed"):
        for number, _ in enumerate(blocks):
            if number == 4:
                for worker in set(psutil.Process().children()) - before:
                    worker.kill()


def test_leaving_early_leaves_no_process(many: Path) -> None:
    before = set(psutil.Process().children())
    blocks = judge_blocks(many, Judge(SCHEMA), jobs=2)
    for _ in range(5):
        next(blocks)
    workers = set(psutil.Process().children()) - before
    assert workers
    blocks.close()  # type: ignore[attr-defined]
    assert not workers & set(psutil.Process().children())


# --- repairs --------------------------------------------------------------------------------------


def test_repairs_keep_lines_and_everything_else(tmp_path: Path) -> None:
    fenced = '```json\n{"level":"low",}\n```'
    lines = [
        '{"level": "low"}',
        json.dumps(fenced),
        f'{{"id": 1.50, "answer": {json.dumps(fenced)}, "z":[1, 2]}}',
        'Yes: {"level":"low"}',
        '{"level":"lo',
        "",
        '{"level":"mid",}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    (block,) = judge_blocks(path, Judge(SCHEMA, rows=True, fix=True))
    mended = '"{\\"level\\":\\"low\\"}"'
    assert block.fixed.decode().splitlines() == [
        '{"level": "low"}',
        mended,
        f'{{"id": 1.50, "answer": {mended}, "z":[1, 2]}}',
        '{"level":"low"}',
        '{"level":"lo',
        '{"level":"mid"}',
    ]
    assert [one.line for one in block.bad] == [2, 3, 4, 5, 7]
    assert block.bad[0] == LineVerdict(2, validate.VALID, ("code_fence", "trailing_comma"))
    document = block.summary.to_dict()
    assert (document["valid"], document["repaired"]) == (4, 4)
    assert document["repairs"] == {"trailing_comma": 3, "code_fence": 2, "prose": 1}
    assert '"repairs": ["prose"]' in block.rows[3][1]
    # What was repaired needs no repair, and nothing but the truncated answer is unreadable.
    again = tmp_path / "b.jsonl"
    again.write_bytes(block.fixed)
    (second,) = judge_blocks(again, Judge(SCHEMA, fix=True))
    assert second.fixed == block.fixed
    assert (second.summary.repaired, second.summary.kinds["not_json"]) == (0, 1)


def test_repaired_parquet_answers_become_json_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ['{"level":"low",}', "é?", '{"level":"low"}']
    parquet.write_table(pyarrow.table({"text": texts}), path)
    (block,) = judge_blocks(path, Judge(SCHEMA, fix=True))
    answers = [json.loads(line) for line in block.fixed.splitlines()]
    assert answers == ['{"level":"low"}', "é?", '{"level":"low"}']
