"""The commands of the store, as people and programs call them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from support.adapter_folders import report_of, write_adapter

from llm_lora import files
from llm_lora.cli import publishing, shelves
from llm_lora.errors import UserError
from llm_lora.serving import client
from llm_lora.store.store import Store

NAME = "medical-qa"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shelves.console, "width", 200)


def call(command: click.Command, *arguments: object) -> str:
    """The output of a command; its exceptions propagate."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if isinstance(result.exception, SystemExit):
        raise click.UsageError(result.output)
    if result.exception is not None:
        raise result.exception
    return result.output


def make_run(folder: Path, *, seed: int = 0, passed: bool = True, finished: bool = True) -> Path:
    """The parts of a run that publishing reads."""
    adapter = write_adapter(folder / "adapter", seed=seed)
    (folder / "recipe.yaml").write_text("task: text\n")
    files.write_json(folder / "report.json", report_of(adapter, passed=passed))
    if finished:
        files.write_json(folder / "manifest.json", {})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "runs" / "medical_qa" / "2026")
    (folder.parent / "latest").symlink_to("2026")
    return folder


def test_from_a_run_to_a_live_version_and_back(run: Path, tmp_path: Path) -> None:
    printed = call(publishing.publish, "runs/medical_qa/latest", "--as", NAME)
    assert "medical-qa@1 · rank 4 · 12 modules on tiny · gates passed" in printed
    assert "Next: llm-lora promote medical-qa 1" in printed
    assert "not on this machine" not in printed
    assert "medical-qa → version 1" in call(publishing.promote, NAME, 1)
    second = make_run(tmp_path / "second", seed=2)
    printed = call(publishing.publish, second, "--as", NAME, "--promote", "--why", "more data")
    assert "medical-qa@2" in printed
    assert "It is live." in printed
    assert "medical-qa → version 1" in call(publishing.rollback, NAME)
    printed = call(publishing.canary, NAME, 2, "--share", "12.5%")
    assert "version 2 on trial with 12.5% of the requests" in printed
    assert "on trial" not in call(publishing.canary, NAME, 2, "--share", 0)
    assert "Back to version 2: llm-lora rollback medical-qa" in call(publishing.promote, NAME, 1)
    assert call(publishing.remove, NAME, 2) == "medical-qa@2 removed\n"
    printed = call(publishing.history, NAME)
    kinds = ["publish", "promote", "publish", "promote", "rollback", "canary", "canary", "remove"]
    assert [line.split()[2] for line in printed.splitlines()[1:]] == kinds
    assert "more data" in printed
    events = json.loads(call(publishing.history, NAME, "--json"))
    assert [event["event"] for event in events] == kinds
    assert all("@" in event["by"] for event in events)


def test_what_is_named_by_run_adapter_or_other_store(run: Path, tmp_path: Path) -> None:
    """All have the same content and report, so there is one version."""
    # Under the recipe's name, whatever the folder is called.
    assert json.loads(call(publishing.publish, run, "--json"))["id"] == "small@1"
    for source in (run / "adapter", "runs/medical_qa", "store/small/versions/1"):
        row = json.loads(call(publishing.publish, source, "--json"))
        assert (row["id"], row["passed"]) == ("small@1", True)
    # Without a report beside it, an adapter is published unproven, under the recipe's name.
    bare = write_adapter(tmp_path / "elsewhere" / "adapter")
    row = json.loads(call(publishing.publish, bare, "--json"))
    assert (row["id"], row["passed"]) == ("small@2", None)


def test_an_unfinished_run_is_not_published(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", finished=False)
    for source in (folder, folder / "adapter"):
        with pytest.raises(UserError, match="this run is not finished; finish it"):
            call(publishing.publish, source)
    with pytest.raises(UserError, match="no run"):
        call(publishing.publish, tmp_path / "nowhere")
    assert not (tmp_path / "store").exists()


def test_a_name_with_an_underscore_is_answered_with_the_dashed_one(run: Path) -> None:
    with pytest.raises(UserError, match=r"write medical-qa$"):
        call(publishing.publish, run, "--as", "medical_qa")


def test_failed_gates_need_force(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", passed=False)
    with pytest.raises(UserError, match=r"gate field_f1 failed: 0.5, wanted 0.6; improve the"):
        call(publishing.publish, folder, "--as", NAME, "--promote")
    # It is published nevertheless.
    assert "failed" in call(publishing.adapters)
    call(publishing.promote, NAME, 1, "--force", "--why", "demo")
    assert "forced=gate field_f1 failed: 0.5, wanted 0.6" in call(publishing.history, NAME)


def test_a_base_that_is_not_here_is_told(tmp_path: Path) -> None:
    from dataclasses import replace

    from llm_lora.base import text as bases

    gone = replace(bases.resolve("tiny"), name=str(tmp_path / "gone"))
    changed = replace(gone, name="tiny", digest="e" * 64)
    for number, base in enumerate((gone, changed), 1):
        folder = write_adapter(tmp_path / str(number), seed=number, base=bases.resolve("tiny"))
        manifest = json.loads((folder / "llm_lora.json").read_text())
        manifest["base"] = {"name": base.name, "digest": base.digest}
        files.write_json(folder / "llm_lora.json", manifest)
        printed = call(publishing.publish, folder, "--as", NAME)
        assert "is not on this machine; whether the weights fit it is checked when" in printed


def test_weights_that_do_not_fit_their_base_are_not_published(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", zero=True)
    with pytest.raises(UserError, match="no effect"):
        call(publishing.publish, folder, "--as", NAME)


@pytest.mark.parametrize("share", ["10", "1", "100%", "-1%", "nan", "ten", "", "1e400"])
def test_shares_that_are_none(run: Path, share: str) -> None:
    call(publishing.publish, run, "--as", NAME, "--promote")
    with pytest.raises(click.UsageError, match=r"is not a share; write 10% or 0\.1"):
        call(publishing.canary, NAME, 1, "--share", share)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "1000000"])
def test_versions_that_are_none(number: str) -> None:
    with pytest.raises(click.UsageError):
        call(publishing.promote, "--", NAME, number)


def test_the_list_of_adapters(run: Path, tmp_path: Path) -> None:
    assert "no adapters in store yet: llm-lora publish RUN --as NAME" in call(publishing.adapters)
    assert json.loads(call(publishing.adapters, "--json")) == []
    for seed in range(1, 6):
        folder = make_run(tmp_path / str(seed), seed=seed)
        call(publishing.publish, folder, "--as", NAME)
    call(publishing.promote, NAME, 1)
    call(publishing.promote, NAME, 2)
    call(publishing.canary, NAME, 3, "--share", "10%")
    Store(Path("store")).refuse(NAME, 4, "answers like [base]")
    path = Path("store", NAME, "versions", "5", "report.json")
    path.chmod(0o644)
    path.unlink()
    lines = call(publishing.adapters).splitlines()[1:]
    states = ("previous", "live", "on trial 10.0%", "refused", "damaged")
    for line, state in zip(lines[:5], states, strict=True):
        assert state in line
    assert lines[5] == "refused medical-qa@4: answers like [base]"
    assert lines[6].startswith("damaged medical-qa@5: ")
    assert "report.json" in lines[6]
    assert all("tiny" in line and "0.900" in line and "0.700" in line for line in lines[:4])
    (one,) = json.loads(call(publishing.adapters, "--json"))
    assert (one["name"], one["live"], one["previous"]) == (NAME, 2, 1)
    assert one["canary"] == {"number": 3, "share": 0.1}
    assert one["versions"][1]["served"] == Store(Path("store")).version(NAME, 2).served_name
    assert "report.json" in one["versions"][4]["damaged"]


def test_a_damaged_alias_is_told_in_its_row_and_hides_no_other(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", seed=1)
    call(publishing.publish, run, "--as", NAME, "--promote")
    call(publishing.publish, other, "--as", "other", "--promote")
    (tmp_path / "store" / NAME / "alias.json").write_text("{")
    first, second = json.loads(call(publishing.adapters, "--json"))
    assert (first["name"], first["live"], first["changed"]) == (NAME, None, None)
    assert "the live version is unknown" in first["problem"]
    assert [version["id"] for version in first["versions"]] == ["medical-qa@1"]
    assert (second["live"], second["problem"]) == (1, None)
    lines = call(publishing.adapters).splitlines()
    assert lines[1].split()[:2] == ["medical-qa@1", "problem"]
    assert lines[2].split()[:2] == ["other@1", "live"]
    assert lines[3].startswith("problem medical-qa: ") and "damaged" in lines[3]


def test_a_name_is_taken_out_of_service_and_back(run: Path) -> None:
    call(publishing.publish, run, "--as", NAME, "--promote")
    with pytest.raises(UserError, match="llm-lora retire medical-qa"):
        call(publishing.remove, NAME, 1)
    state = json.loads(call(publishing.retire, NAME, "--why", "wrong", "--json"))
    assert (state["live"], state["previous"], state["canary"]) == (None, 1, None)
    assert state["changed"] == Store(Path("store")).history(NAME)[-1].at
    call(publishing.rollback, NAME)
    printed = call(publishing.retire, NAME)
    assert "nothing is live" in printed and "llm-lora rollback medical-qa" in printed
    call(publishing.remove, NAME, 1)
    assert Store(Path("store")).numbers(NAME) == []


def test_a_running_server_is_asked_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    versions = [
        {
            "number": 3,
            "id": "medical-qa@3",
            "served": "medical-qa@aaaaaaaaaaaa",
            "base": "tiny",
            "rank": 4,
            "published": "2026-11-21T10:00:00+00:00",
            "age_seconds": 90000,
            "passed": True,
            "refused": None,
            "requests": 1234,
            "valid_rate": 0.998,
            "loaded": True,
            "adapter_digest": "e" * 64,
            "schema": None,
        }
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        asked.append((request.method, request.url.path, body))
        state = {"name": NAME, "live": 3, "previous": 2, "canary": None, "changed": None}
        state["problem"] = "rank 99"
        data: list[dict[str, Any]] = [state | {"versions": versions}]
        if request.url.path == "/admin/history":
            data = [
                {"event": "promote", "at": "2026-11-21T10", "by": "ann", "why": "", "number": 3}
            ]
        return httpx.Response(200, json=state | {"data": data})

    served = functools.partial(client.Client, transport=httpx.MockTransport(answer))
    monkeypatch.setattr(client, "Client", served)
    url = ("--url", "http://127.0.0.1:8000")
    _, line, trouble = call(publishing.adapters, *url).splitlines()
    assert line.split() == "medical-qa@3 problem tiny 4 passed 1 d ago yes 1234 0.998".split()
    assert trouble == "problem medical-qa: rank 99"
    assert "medical-qa → version 3" in call(publishing.promote, NAME, 3, *url, "--force")
    assert "medical-qa → version 3" in call(publishing.rollback, NAME, *url)
    call(publishing.canary, NAME, 3, "--share", "10%", *url)
    assert "promote" in call(publishing.history, NAME, *url)
    assert [path for _, path, _ in asked] == [
        "/v1/adapters",
        "/admin/promote",
        "/admin/rollback",
        "/admin/canary",
        "/admin/history",
    ]
    assert asked[1][2] == {"name": NAME, "version": 3, "force": True}
    assert asked[3][2]["share"] == 0.1
    call(publishing.canary, NAME, 3, "--share", "10%", "--force", *url)
    assert [body["force"] for _, path, body in asked if path == "/admin/canary"] == [False, True]


def test_ages_are_told_in_their_largest_unit() -> None:
    spans = {-5: "0 s", 59: "59 s", 60: "1 min", 7199: "1 h", 86400: "1 d", 864000: "10 d"}
    assert {seconds: shelves.age(seconds) for seconds in spans} == spans


@pytest.mark.slow
def test_a_really_trained_run_goes_live(small_run: Path) -> None:
    printed = call(publishing.publish, small_run, "--as", "small")
    assert "small@1" in printed
    # Its weights were mapped onto the base, key by key.
    assert "not on this machine" not in printed
    call(publishing.promote, "small", 1, "--force")
    version = Store(Path("store")).version("small")
    assert version.number == 1
    assert version.manifest.scores is not None
