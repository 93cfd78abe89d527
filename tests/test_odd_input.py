"""Unexpected paths, names, references and keys: a message of a few lines, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from support.commands import RunCommand
from support.places import ROOT

from llm_lora import pipeline
from llm_lora.recipe import yaml as yaml_source


@pytest.mark.parametrize(
    "schema",
    [
        '{"$ref": "http://[bad"}',
        '{"$ref": "a%00b.json"}',
        '{"$ref": "' + 300 * "x" + '.json"}',
    ],
)
def test_references_that_are_no_addresses(
    schema: str, tmp_path: Path, run_command: RunCommand
) -> None:
    (tmp_path / "s.json").write_text(schema)
    (tmp_path / "a.jsonl").write_text('{"answer": "1"}\n')
    code, _, said = run_command("validate", tmp_path / "a.jsonl", "--schema", tmp_path / "s.json")
    assert code == 2 and "s.json" in said and "$ref" in said


def test_paths_that_nothing_can_be_at(tmp_path: Path, run_command: RunCommand) -> None:
    (tmp_path / "file").write_text("{}")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.jsonl").write_text('{"answer": "1"}\n')
    for place in ("file/x", "loop", 300 * "x"):
        code, _, said = run_command("validate", tmp_path / "a.jsonl", "--schema", tmp_path / place)
        assert code == 2 and said.startswith("error: ") and place[:40] in said, place
        code, _, said = run_command("data", "check", tmp_path / place)
        assert code == 2 and said.startswith("error: "), place


def test_an_emoji_in_two_halves_is_one_in_a_recipe() -> None:
    assert yaml_source.parse(r'a: "smile \ud83d\ude00"', "x").data == {"a": "smile \U0001f600"}
    source = yaml_source.parse('a: 1\nb: "half \\ud83d"', "x")
    (problem,) = source.problems
    assert str(problem.where) == "x:2" and "half of a surrogate pair" in problem.what


def test_a_number_with_a_decimal_comma(tmp_path: Path, run_command: RunCommand) -> None:
    recipe = tmp_path / "x.yaml"
    for written, meant in (("0,0002", "0.0002"), ("1,5", "1.5"), ("1,000", "1000")):
        text = "task: text\nbase: tiny\ndata: {train: a, schema: b}\n"
        recipe.write_text(f"{text}train: {{learning_rate: '{written}'}}\n")
        code, _, said = run_command("data", "check", recipe)
        assert code == 2 and f"write {meant}\n" in said
    recipe.write_text("task: text\nbase: tiny\ndata: {train: a, schema: b}\nlora: {rank: '1,5'}\n")
    code, _, said = run_command("data", "check", recipe)
    assert code == 2 and "lora.rank" in said and "write 1" not in said


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(KeyboardInterrupt, 130, "interrupted"), (click.Abort, 2, "aborted; nothing was done")],
)
def test_ctrl_c_is_no_verdict(
    raised: type[BaseException],
    code: int,
    said: str,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(pipeline, "prepare", stop)
    found = run_command("data", "check", "recipes/medical_qa.yaml")
    assert (found[0], found[2].strip()) == (code, said)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "100000x100000"),
        ("--size", "0x64"),
        ("--guidance", "nan"),
        ("--seed", "4294967295 --count 2"),
    ],
)
def test_values_that_nobody_can_paint_with(
    option: str, value: str, run_command: RunCommand
) -> None:
    code, _, said = run_command("generate", "--base", "tiny", "a cat", option, *value.split())
    assert code == 2 and f"error: {option}: " in said


def test_names_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "object"}')
    name = os.fsencode(tmp_path) + b"/non\xff.jsonl"
    Path(os.fsdecode(name)).write_text('{"answer": "1"}\n')
    done = subprocess.run(
        [sys.executable, "-m", "llm_lora.cli", "validate", name, "--json", "--schema", "s.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr


def test_what_is_read_is_not_written_over(tmp_path: Path, run_command: RunCommand) -> None:
    schema, answers = tmp_path / "s.json", tmp_path / "a.jsonl"
    schema.write_text('{"type": "object"}')
    answers.write_text('{"answer": "1"}\n')
    new = tmp_path / "new.jsonl"
    for options, option in (
        (("--out", answers), "--out"),
        (("--fix", schema), "--fix"),
        (("--out", new, "--fix", tmp_path / "." / "new.jsonl"), "--fix"),
    ):
        code, _, said = run_command("validate", answers, "--schema", schema, *options)
        assert code == 2 and f"error: {option}: " in said and "name another file" in said
    assert answers.read_text() == '{"answer": "1"}\n' and not new.exists()


def test_no_answers_are_no_good_answers(tmp_path: Path, run_command: RunCommand) -> None:
    (tmp_path / "s.json").write_text("{}")
    (tmp_path / "a.jsonl").write_text("\n")
    code, out, _ = run_command("validate", tmp_path / "a.jsonl", "--schema", tmp_path / "s.json")
    assert code == 1 and "0 of 0 answers valid" in out


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_answers_in_utf_16_are_told_once(
    encoding: str, tmp_path: Path, run_command: RunCommand
) -> None:
    (tmp_path / "s.json").write_text("{}")
    answers = tmp_path / "a.jsonl"
    answers.write_bytes(('\ufeff{"answer": "1"}\n' * 9).encode(encoding))
    code, _, said = run_command("validate", answers, "--schema", tmp_path / "s.json")
    assert code == 2 and said.count("error: ") == 1 and "this is UTF-16 text" in said
