"""What the commands print, what they return, and that nobody meets a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import RunCommand
from support.drawn import folder
from support.places import ROOT, TEMPLATE

SCHEMA = str(TEMPLATE / "answer.schema.json")


def test_help_names_every_command(run_command: RunCommand) -> None:
    code, out, _ = run_command("--help")
    assert code == 0
    commands = (
        "train data validate evaluate report chat runs doctor label schema generate recipe "
        "publish promote rollback canary retire adapters history remove serve merge export bench"
    )
    for name in commands.split():
        assert f" {name} " in out
    assert run_command("--version")[1].startswith("llm-lora 0.")


def test_a_report_of_another_version_does_not_stop_the_list_of_runs(
    run_command: RunCommand, tmp_path: Path
) -> None:
    for name, made, report in (
        ("old", "a", "{}"),
        ("older", "b", '{"gates": [{}], "passed": true}'),
        ("young", "c", None),
    ):
        folder = tmp_path / name / f"2026-01-01T00-00-00-{made}"
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text("task: text\n")
        if report is not None:
            (folder / "report.json").write_text(report)
            (folder / "manifest.json").write_text("{}")
    code, out, _ = run_command("runs", "--runs", tmp_path, "--json")
    rows = json.loads(out)
    listed = [(row.pop("name"), row.pop("state")) for row in rows]
    other = "report of another version"
    assert code == 0
    assert listed == [("old", other), ("older", other), ("young", "unfinished")]
    assert all(row.keys() == {"run", "task"} for row in rows)
    code, out, _ = run_command("runs", "--runs", tmp_path)
    assert code == 0 and out.count("report of") == 2 and "unfinished" in out
    code, _, told = run_command("report", tmp_path / "old" / "2026-01-01T00-00-00-a")
    assert code == 2 and "written by another version of llm-lora" in told


def test_validate_tells_line_place_and_rule(run_command: RunCommand) -> None:
    code, out, err = run_command("validate", "tests/data/answers.jsonl", "--schema", SCHEMA)
    assert (code, err) == (1, "")
    assert out == (ROOT / "tests/golden/validate.txt").read_text()


def test_validate_for_machines(run_command: RunCommand) -> None:
    code, out, _ = run_command("validate", "tests/data/answers.jsonl", "--schema", SCHEMA, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [row["kind"] for row in rows[:-1]] == ["valid"] * 3 + ["not_json", "invalid"]
    assert rows[-1]["summary"]["valid"] == 3


def test_validate_writes_verdicts_and_repairs(run_command: RunCommand, tmp_path: Path) -> None:
    answers, out_file, fixed = (tmp_path / name for name in ("a.jsonl", "v.jsonl", "f.jsonl"))
    (tmp_path / "s.json").write_text('{"required":["a"],"properties":{"a":{"type":"integer"}}}')
    answers.write_text('{"a":1}\n```{"a":1,}\nSo: {"a":2,}\n{"a":"3"}\n')
    command = ("validate", answers, "--schema", tmp_path / "s.json")
    code, out, _ = run_command(*command, "--out", out_file, "--fix", fixed)
    assert code == 1
    assert out.splitlines() == [
        "line 2: repaired: text around the JSON, trailing comma removed",
        "line 3: repaired: text around the JSON, trailing comma removed",
        'line 4: a: expected an integer, got the string "3"',
        "where  rule  answers  first line  ",
        "a      type  1        4           ",
        "3 of 4 answers valid (75.0%), 1 not fitting the schema, 0 not JSON",
        "2 repaired: text around the JSON 2, trailing comma 2",
        f"verdicts: {out_file}",
        f"repaired answers: {fixed}",
    ]
    assert fixed.read_text().splitlines() == ['{"a":1}', '{"a":1}', '{"a":2}', '{"a":"3"}']
    rows = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["valid", "valid", "valid", "invalid"]
    assert rows[3]["reasons"] == [
        {
            "path": "a",
            "keyword": "type",
            "message": 'expected an integer, got the string "3"',
            "expected": "an integer",
            "got": 'the string "3"',
        }
    ]
    assert run_command("validate", fixed, "--schema", tmp_path / "s.json", "--jobs", 1)[0] == 1


def test_a_failed_validate_leaves_no_files(run_command: RunCommand, tmp_path: Path) -> None:
    answers, out_file = tmp_path / "a.json", tmp_path / "v.jsonl"
    answers.write_text('[\n{"a":1},\n{"a"')
    code, _, err = run_command("validate", answers, "--schema", SCHEMA, "--out", out_file)
    assert (code, "a.json:3: not JSON" in err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


def test_validate_is_content_with_good_answers(run_command: RunCommand, tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text((TEMPLATE / "train.jsonl").read_text())
    code, out, _ = run_command("validate", good, "--schema", SCHEMA)
    assert code == 0
    assert out == "900 of 900 answers valid (100.0%), 0 not fitting the schema, 0 not JSON\n"


def test_data_check_for_people_and_for_machines(run_command: RunCommand) -> None:
    arguments = ("data", "check", "recipes/medical_qa.yaml", "--profile", "cpu")
    code, out, _ = run_command(*arguments)
    assert code == 0
    assert "855 train · 45 validation · 300 held out · fingerprint " in out
    code, out, _ = run_command(*arguments, "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["parts"]["held_out"] == {"seen": 150, "unseen": 150}
    assert summary["tokens"]["answer"]["most"] < 300


def test_data_check_writes_the_quarantine_where_asked(
    run_command: RunCommand, tmp_path: Path
) -> None:
    rows = (TEMPLATE / "train.jsonl").read_text().splitlines()[:60]
    (tmp_path / "train.jsonl").write_text("\n".join([*rows[:30], "{oops", *rows[30:]]) + "\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"task: text\nbase: tiny\ndata:\n  train: train.jsonl\n  schema: {SCHEMA}\n"
        "  held_out: 0.2\n"
    )
    aside = tmp_path / "aside.jsonl"
    code, out, _ = run_command("data", "check", recipe, "--quarantine", aside)
    assert code == 0
    assert "1 records set aside" in out and "train.jsonl:31" in out
    (row,) = map(json.loads, aside.read_text().splitlines())
    assert row["where"].endswith("train.jsonl:31") and row["raw"] == "{oops"


@pytest.mark.parametrize("task", ["text", "image"])
def test_the_quarantine_is_written_also_where_too_little_is_left(
    run_command: RunCommand, tmp_path: Path, task: str
) -> None:
    recipe, aside = tmp_path / "r.yaml", tmp_path / "aside.jsonl"
    if task == "text":
        (tmp_path / "train.jsonl").write_text('{"prompt": "p", "response": 1}\n' + "{oops\n" * 59)
        data = f"{{train: train.jsonl, schema: {SCHEMA}}}"
    else:
        for path in folder(tmp_path / "pictures", 60, (16, 16)).glob("*.png"):
            path.write_bytes(b"\x89PNG")
        data = "{train: pictures}"
    recipe.write_text(f"task: {task}\nbase: tiny\ndata: {data}\n")
    code, _, told = run_command("data", "check", recipe, "--quarantine", aside)
    assert code == 2 and "all 60 were set aside" in told
    assert f"{aside}: the 60 records set aside, with the reasons, are in this file" in told
    rows = [json.loads(line) for line in aside.read_text().splitlines()]
    assert len(rows) == 60 and all(row.keys() == {"where", "reason", "raw"} for row in rows)
    code, out, _ = run_command("data", "check", recipe, "--quarantine", aside, "--json")
    assert code == 2 and json.loads(out)["error"][-1]["where"] == str(aside)


def test_gates_of_parts_that_the_data_does_not_have_are_told_before_training(
    run_command: RunCommand, tmp_path: Path
) -> None:
    rows = (TEMPLATE / "train.jsonl").read_text().splitlines(keepends=True)[:60]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"task: text\nbase: tiny\ndata:\n  train: train.jsonl\n  schema: {SCHEMA}\n"
        "  held_out: 0.2\ncheck:\n  field_f1_seen: 0.8\n  field_f1_unseen: 0.6\n"
    )
    aside = tmp_path / "aside.jsonl"
    code, _, told = run_command("data", "check", recipe, "--quarantine", aside)
    assert code == 2 and aside.is_file(), "what was set aside may be of that part"
    for part in ("seen", "unseen"):
        assert f"check.field_f1_{part} has no examples: no held-out record has" in told
    unset = [f"--set=check.field_f1_{part}=null" for part in ("seen", "unseen")]
    assert run_command("data", "check", recipe, *unset)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("train", "recipes/medical_q.yaml"),
            "error: recipes/medical_q.yaml: no such file\n  → ",
        ),
        (
            ("train", "recipes/medical_qa.yaml", "--profile", "cpu", "--set", "lora.ranks=8"),
            "error: --set lora.ranks=8: lora.ranks is not a setting\n  → did you mean lora.rank?",
        ),
        (
            ("validate", "tests/data/answers.jsonl", "--schema", "nope.json"),
            "error: nope.json: no such file\n  → check the path",
        ),
        (("validate", "nope.jsonl", "--schema", SCHEMA), "error: nope.jsonl: no such file"),
        (("report", "runs/nope"), "error: runs/nope: no run here\n  → "),
        (
            ("train", "recipes/medical_qa.yaml", "--profile", "gpu-9gb"),
            "error: ",
        ),
    ],
    ids=["recipe", "set", "schema", "answers", "run", "profile"],
)
def test_newcomers_mistakes(
    run_command: RunCommand, arguments: tuple[str, ...], expected: str
) -> None:
    code, out, err = run_command(*arguments)
    assert code == 2
    assert err.startswith(expected), err
    assert "Traceback" not in out + err


def test_errors_for_machines(run_command: RunCommand) -> None:
    code, out, _ = run_command("report", "runs/nope", "--json")
    assert code == 2
    (problem,) = json.loads(out)["error"]
    assert problem["what"] == "no run here" and problem["where"] == "runs/nope"


def test_no_runs_yet(run_command: RunCommand, tmp_path: Path) -> None:
    code, out, _ = run_command("runs", "--runs", tmp_path)
    assert code == 0 and "start one: llm-lora train recipes/medical_qa.yaml" in out
    assert json.loads(run_command("runs", "--runs", tmp_path, "--json")[1]) == []


def test_doctor_looks_at_what_matters(run_command: RunCommand) -> None:
    code, out, _ = run_command("doctor", "--json")
    found = {row["what"]: row for row in json.loads(out)}
    assert {"Python", "Machine", "NVIDIA GPU", "torch", "Embedded tiny base"} <= found.keys()
    assert found["Embedded tiny image"]["status"] == "good"
    assert code == int(any(row["status"] == "wrong" for row in found.values()))
    assert found["torch"]["found"].startswith("2.13.0")


@pytest.mark.slow
def test_report_runs_and_chat_on_a_real_run(run_command: RunCommand, small_run: Path) -> None:
    code, out, _ = run_command("report", small_run)
    assert code == 0 and "adapter, constrained" in out
    code, out, _ = run_command("runs", "--runs", small_run.parent.parent, "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["state"] == "finished" and row["base"] == "tiny"
    code, out, _ = run_command("chat", small_run, "I have a dry cough since Monday.", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["finish"] in ("stop", "length")
    assert answer["answer"].startswith('{"symptoms":["')


@pytest.mark.slow
def test_evaluate_gives_the_report_again(
    run_command: RunCommand, small_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "small" / "again"
    shutil.copytree(small_run, run)
    before = json.loads((run / "report.json").read_text())
    code, out, _ = run_command("evaluate", run, "--json")
    after = json.loads(out)
    assert code == int(not after["passed"])
    assert after["scores"] == before["scores"]
