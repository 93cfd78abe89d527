"""Whole files or none, and errors that name the place."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_lora import files
from llm_lora.errors import Problem, UserError


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    files.write_json(target, {"ü": 1})
    files.write_json(target, {"ü": 2})
    assert json.loads(target.read_text()) == {"ü": 2}
    assert list(target.parent.iterdir()) == [target]


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    files.write_text(target, "old")

    def broken() -> Any:
        yield b"new"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        files.write_chunks(target, broken())
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_the_users_error(tmp_path: Path, monkeypatch: Any) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        files.write_text(tmp_path / "a.txt", "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full() -> None:
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert "disk is full" in str(files.write_error(caught.value, Path("/dev/full")))


def test_text_that_is_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("ok\nna\xefve".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt:2: not UTF-8: byte 0xef at offset 5"):
        files.read_text(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        files.read_text(tmp_path / "gone")
    with pytest.raises(UserError, match="this is a folder"):
        files.read_text(tmp_path)


def test_an_error_tells_all_problems_one_a_line() -> None:
    error = UserError([Problem("bad", "a:1", "mend it"), Problem("worse")])
    assert str(error) == "a:1: bad; mend it\nworse"
