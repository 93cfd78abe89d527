"""Run folders: never overwritten, finished only with a manifest, found by the names users type."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.made_runs import FINISHED

from llm_lora import run
from llm_lora.errors import UserError


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    folders = {run.create(tmp_path, "demo", lambda _: "name: demo\n").folder for _ in range(20)}
    assert len(folders) == 20


def test_a_run_is_finished_when_its_manifest_is_there(tmp_path: Path) -> None:
    here = run.create(tmp_path, "demo", lambda _: "name: demo\n")
    assert not here.finished
    with pytest.raises(UserError, match=r"no report.json yet; finish it: llm-lora train"):
        here.read(here.report)
    here.finish(FINISHED)
    assert here.finished
    assert here.read(here.manifest) == FINISHED.to_json()


def test_a_run_tells_when_it_began_whatever_its_folder_is_called(tmp_path: Path) -> None:
    here = run.create(tmp_path, "demo", lambda _: "name: demo\n")
    assert datetime.now(UTC) - here.started < timedelta(minutes=5)

    copied = run.Run(here.folder.rename(tmp_path / "my_best_run"))
    os.utime(copied.recipe, (1_700_000_000, 1_700_000_000))
    assert copied.started == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    # A copy's files are as old as the copying; TensorBoard's tell the time in their names.
    (copied.folder / "tensorboard").mkdir()
    for name in ("1600003600.vm.1.0", "1600000000.vm.1.0", "odd.vm.1.0"):
        (copied.folder / "tensorboard" / f"events.out.tfevents.{name}").touch()
    assert copied.started == datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)


def test_runs_are_found_by_folder_by_name_and_by_latest(tmp_path: Path) -> None:
    first = run.create(tmp_path, "demo", lambda _: "a: 1\n")
    first.finish(FINISHED)
    first.become_latest()
    second = run.create(tmp_path, "demo", lambda _: "a: 2\n")
    assert run.find(tmp_path / "demo").folder == first.folder.resolve()
    second.finish(FINISHED)
    assert run.find(tmp_path / "demo").folder == first.folder.resolve()
    second.become_latest()
    for path in (tmp_path / "demo", tmp_path / "demo" / "latest", second.folder):
        assert run.find(path).folder == second.folder.resolve()
    assert {one.folder for one in run.every(tmp_path)} == {
        first.folder.resolve(),
        second.folder.resolve(),
    }
    with pytest.raises(UserError, match="no run here; known runs: "):
        run.find(tmp_path / "demo" / "nothing")


def test_resuming_takes_the_newest_unfinished_run_of_the_same_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no unfinished run of demo; leave out --resume"):
        run.unfinished(tmp_path, "demo", lambda _: "a: 1\n")
    here = run.create(tmp_path, "demo", lambda _: "a: 1\n")
    run.create(tmp_path, "demo", lambda _: "a: 1\n").finish(FINISHED)
    assert run.unfinished(tmp_path, "demo", lambda _: "a: 1\n").folder == here.folder.resolve()
    with pytest.raises(UserError, match="the recipe has changed since"):
        run.unfinished(tmp_path, "demo", lambda _: "a: 2\n")


def test_a_damaged_file_of_a_run_is_told_with_its_line(tmp_path: Path) -> None:
    here = run.create(tmp_path, "demo", lambda _: "a: 1\n")
    here.report.write_text('{"a":\n')
    with pytest.raises(UserError, match=r"report.json:2: damaged"):
        here.read(here.report)


def test_a_run_tells_its_task_and_whether_it_was_trained(tmp_path: Path) -> None:
    here = run.create(tmp_path, "demo", lambda _: "task: image\nname: demo\n")
    assert here.task == "image"
    with pytest.raises(UserError, match=r"no fit\.json yet"):
        here.require_trained()
    here.fit.write_text("{}")
    with pytest.raises(UserError, match="no dataset folder"):
        here.require_trained()
    here.dataset.mkdir()
    here.require_trained()
    with pytest.raises(UserError, match=r"recipe\.yaml: the recipe has no task"):
        _ = run.create(tmp_path, "demo", lambda _: "name: demo\n").task
