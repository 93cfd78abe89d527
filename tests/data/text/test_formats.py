"""Formats: every known one yields the same example; other rows are set aside with their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_lora.data.text import formats
from llm_lora.errors import UserError
from llm_lora.example import RAW_LIMIT, Example, Message, Rejected

USER, REPLY = "How is the weather?\nBe brief.", "It rains. ☂"
EARLIER = [("user", "Hello"), ("assistant", "Good day.")]


def write(path: Path, *rows: object, end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(row) + end for row in rows).encode())
    return path


def read(path: Path, **options: Any) -> list[Example | Rejected]:
    return list(formats.read(path, **options))


def only(path: Path, **options: Any) -> Example:
    (row,) = read(path, **options)
    assert isinstance(row, Example), row
    return row


SHAPES: dict[str, list[dict[str, Any]]] = {
    "prompt-response": [
        {"prompt": USER, "response": REPLY},
        {"question": USER, "answer": REPLY},
        {"input": USER, "output": REPLY},
        {"prompt": USER, "completion": REPLY, "source": "ignored"},
    ],
    "alpaca": [
        {"instruction": USER, "output": REPLY},
        {"instruction": USER, "input": "", "output": REPLY},
        {"instruction": "How is the weather?\nBe brief.", "input": None, "response": REPLY},
    ],
    "messages": [
        {
            "messages": [
                {"role": "user", "content": USER},
                {"role": "assistant", "content": REPLY},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": USER}]},
                {"role": "assistant", "content": REPLY},
            ]
        },
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": REPLY}]},
        {"conversations": [{"role": "user", "content": USER}, {"from": "gpt", "value": REPLY}]},
    ],
}
ROWS = [(shape, row) for shape, rows in SHAPES.items() for row in rows]


@pytest.mark.parametrize(("shape", "row"), ROWS)
def test_every_shape_gives_the_same_example(
    tmp_path: Path, shape: str, row: dict[str, Any]
) -> None:
    path = write(tmp_path / "rows.jsonl", row)
    example = only(path)
    assert formats.detect(path) == shape
    assert example.prompt == (Message("user", USER),)
    assert (example.answer, example.where) == (REPLY, f"{path}:1")
    other = write(tmp_path / "other.jsonl", {"prompt": USER, "response": REPLY})
    assert example.id == only(other).id


def test_alpaca_joins_instruction_and_input(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"instruction": "Sum up.", "input": "Long", "output": "S"})
    assert only(path).prompt[0].content == "Sum up.\n\nLong"


def test_only_the_last_of_several_turns_is_the_answer(tmp_path: Path) -> None:
    turns = [*EARLIER, ("user", USER), ("assistant", REPLY)]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    example = only(write(tmp_path / "m.jsonl", row))
    assert [(m.role, m.content) for m in example.prompt] == turns[:-1]
    assert example.answer == REPLY


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "the recipe's"),
        ({"system": "own"}, "own"),
        ({"system": None}, "the recipe's"),
        ({"system": ""}, None),
    ],
)
def test_a_rows_system_text_goes_before_the_recipes(
    tmp_path: Path, row: dict[str, Any], expected: str | None
) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": USER, "response": REPLY} | row)
    first = only(path, system="the recipe's").prompt[0]
    assert (first.content if first.role == "system" else None) == expected


def test_a_system_message_goes_before_the_recipes(tmp_path: Path) -> None:
    turns = [("system", "own"), ("user", USER), ("assistant", REPLY)]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    example = only(write(tmp_path / "m.jsonl", row), system="the recipe's")
    assert [m.content for m in example.prompt] == ["own", USER]


@pytest.mark.parametrize("answer", [{"b": 1, "a": [None, "é"]}, [1, 2], 3, False])
def test_an_answer_that_is_no_string_is_json(tmp_path: Path, answer: object) -> None:
    path = write(tmp_path / "j.jsonl", {"prompt": USER, "response": answer, "part": "seen"})
    example = only(path)
    assert json.loads(example.answer) == answer
    assert example.part == "seen"
    if isinstance(answer, dict):
        assert list(json.loads(example.answer)) == ["b", "a"]


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    row = json.dumps({"prompt": USER, "response": REPLY}).encode()
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + row + b"\r\n  \r\n" + row)
    assert [row.where.rpartition(":")[2] for row in read(path)] == ["2", "4"]


def test_line_separators_inside_texts_do_not_cut_lines(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0bd"
    path = tmp_path / "u.jsonl"
    path.write_text(json.dumps({"prompt": text, "response": text}, ensure_ascii=False) + "\n")
    assert only(path).answer == text


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_read_with_the_lines_of_its_items(
    tmp_path: Path, indent: int | None
) -> None:
    rows = [{"prompt": f"{USER} {i}", "response": REPLY} for i in range(3)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=indent))
    lines = [int(row.where.rpartition(":")[2]) for row in read(path)]
    assert lines == ([1, 1, 1] if indent is None else [2, 6, 10])


def test_lines_that_are_arrays_are_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", [1], {"prompt": USER, "response": REPLY})
    first, second = read(path)
    assert isinstance(first, Rejected)
    assert isinstance(second, Example)


def test_the_id_depends_on_the_texts_alone(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "response": "r", "part": "seen", "note": 1},
        {"prompt": "p", "response": "s"},
        {"prompt": "p", "response": "r", "system": "s"},
    ]
    ids = [row.id for row in read(write(tmp_path / "i.jsonl", *rows)) if isinstance(row, Example)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_rejected_rows_keep_only_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "' + "x" * 10_000 + "\n")
    _, rejected = read(path)
    assert isinstance(rejected, Rejected)
    assert len(rejected.raw) == RAW_LIMIT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
KNOWN = "prompt|response|messages|conversations|instruction|input|output|system|part|history"
keys = st.sampled_from(KNOWN.split("|"))
rows = st.dictionaries(
    keys,
    json_values
    | st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), json_values)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    made=st.lists(rows | json_values, max_size=4),
    junk=st.binary(max_size=30),
    shape=st.sampled_from(["auto", *SHAPES]),
)
def test_whatever_a_line_holds_is_an_example_or_set_aside(
    tmp_path: Path, made: list[object], junk: bytes, shape: str
) -> None:
    path = tmp_path / "any.jsonl"
    lines = [json.dumps(row).encode() for row in made]
    path.write_bytes(b"\n".join([b'{"prompt": "p", "response": "r"}', *lines, junk]))
    try:
        found = read(path, format=shape)
    except UserError:
        assert b"\0" in junk  # taken for a binary file
        return
    assert len(found) >= 1 + len(made)
    for row in found:
        if isinstance(row, Example):
            roles = [m.role for m in row.prompt if m.role != "system"]
            assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
            assert roles[-1] == "user"
            assert all(m.content.strip() for m in row.prompt if m.role != "system")
            assert row.answer.strip()
            (row.answer + "".join(m.content for m in row.prompt)).encode()
        else:
            assert row.reason
            row.raw.encode()


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(prompt=texts, answer=texts)
def test_texts_arrive_unchanged(tmp_path: Path, prompt: str, answer: str) -> None:
    path = write(tmp_path / "t.jsonl", {"prompt": prompt, "response": answer})
    example = only(path)
    assert (example.prompt[0].content, example.answer) == (prompt, answer)
