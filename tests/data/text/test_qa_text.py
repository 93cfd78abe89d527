"""Questions and answers in plain text become rows like any other."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_lora.data import qa_text, rows
from llm_lora.data.text import formats
from llm_lora.example import Example, Rejected


def read(path: Path, text: str) -> list[Example | Rejected]:
    path.write_text(text, encoding="utf-8")
    return list(formats.read(path))


@pytest.mark.parametrize(
    "text",
    [
        "问：头痛三天\n答：多休息，多喝水\n\n问：咳嗽\n答：看医生\n",
        "问题: 头痛\n三天\n回答: 多休息\n多喝水\n问题: 咳嗽\n回答: 看医生",
        '"问:头痛三天\\n答:多休息"\n"问:咳嗽\\n答:看医生"\n',
        '["问：头痛三天\\n答：多休息", "问：咳嗽\\n答：看医生"]',
    ],
)
def test_every_pair_is_an_example(tmp_path: Path, text: str) -> None:
    examples = read(tmp_path / "a.txt", text)
    assert len(examples) == 2
    assert all(isinstance(one, Example) for one in examples)


def test_pairs_keep_their_lines_and_their_texts(tmp_path: Path) -> None:
    text = "\n问：头痛\n三天\n答：多休息\n多喝水\n\n问：咳嗽\n问：发烧\n答：看医生\n"
    first, aside, last = read(tmp_path / "a.txt", text)
    assert isinstance(first, Example) and isinstance(aside, Rejected) and isinstance(last, Example)
    assert (first.prompt[-1].content, first.answer) == ("头痛\n三天", "多休息\n多喝水")
    assert first.where.endswith("a.txt:2")
    assert aside.where.endswith("a.txt:7")
    assert "a question without an answer" in aside.reason
    assert last.where.endswith("a.txt:8")


def test_several_pairs_in_one_json_row_are_set_aside(tmp_path: Path) -> None:
    good = json.dumps("问:a\n答:b", ensure_ascii=False)
    bad = json.dumps("问:a\n答:b\n问:c\n答:d", ensure_ascii=False)
    _, aside = read(tmp_path / "a.jsonl", f"{good}\n{bad}\n")
    assert isinstance(aside, Rejected) and "several questions in one row" in aside.reason


def test_examples_in_docstrings_hold() -> None:
    outcome = doctest.testmod(qa_text)
    assert outcome.attempted and not outcome.failed


plain = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).map(
    lambda text: f"x{text}x"
)


@given(st.lists(st.tuples(plain, plain), min_size=1, max_size=5))
def test_what_was_written_is_read(pairs: list[tuple[str, str]]) -> None:
    text = "\n".join(f"问：{question}\n答：{answer}" for question, answer in pairs)
    assert [(one.question, one.answer) for one in qa_text.pairs(text)] == pairs


@given(st.text(alphabet="问答题:：\n x", max_size=40))
def test_any_text_is_told_or_no_pairs(text: str) -> None:
    found = list(qa_text.pairs(text)) if qa_text.is_pairs(text) else []
    assert bool(found) == qa_text.is_pairs(text)
    assert all(one.raw and one.line >= 1 for one in found)


def test_rows_of_other_files_are_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "问：a", "response": "b"}\n"plain"\n')
    assert [row.value for row in rows.read(path)] == [{"prompt": "问：a", "response": "b"}, "plain"]
