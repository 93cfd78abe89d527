"""Atomic creation of folders and large files."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_lora import files
from llm_lora.errors import UserError

_UNFINISHED = ".unfinished"


def cache() -> Path:
    """The folder for reproducible data: `LLM_LORA_CACHE`, or the user's cache (XDG)."""
    if own := os.environ.get("LLM_LORA_CACHE"):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "llm-lora"


def require_new(path: Path) -> None:
    """Refuse a path that is in use.

    Raises:
        UserError: there is a file at this path, or a folder that is not empty.
    """
    if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(
            "this path exists already", where=str(path), fix="choose another, or remove it"
        )


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """An empty, hidden folder beside `target` to build it in; removed at the end.

    A folder left by a killed process is removed by the next one that builds the same target. A
    running process holds a lock on its folder.

    Raises:
        UserError: the folder cannot be created.
    """
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}.*{_UNFINISHED}"):
            _sweep(left)
        space, handle = _claimed(target)
    except OSError as error:
        raise files.write_error(error, target) from error
    try:
        yield space
    finally:
        shutil.rmtree(space, ignore_errors=True)
        os.close(handle)


def put(built: Path, target: Path) -> None:
    """Move a result from a workspace to its place, atomically and synced to disk.

    Raises:
        UserError: it cannot be written, or the target has appeared meanwhile.
    """
    folders = [built, *(path for path in built.rglob("*") if path.is_dir())]
    try:
        for folder in folders if built.is_dir() else ():
            # mkdtemp creates folders that only the owner can read, but results are to be shared.
            folder.chmod(0o755)
            _sync(folder)
        built.rename(target)
        _sync(target.absolute().parent)
    except OSError as error:
        raise files.write_error(error, target) from error


def _claimed(target: Path) -> tuple[Path, int]:
    """A new workspace, and the handle that holds its lock."""
    while True:
        space = Path(tempfile.mkdtemp(_UNFINISHED, f".{target.name}.", target.parent))
        handle = os.open(space, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if space.is_dir():
            return space, handle
        # Another process removed it before it was locked.
        os.close(handle)


def _sweep(left: Path) -> None:
    try:
        handle = os.open(left, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
