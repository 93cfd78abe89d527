"""Reading of files with helpful errors, and atomic writing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from llm_lora import files
from llm_lora.errors import UserError

Json = dict[str, Any]
"""A JSON object whose members another part of the program, or another program, defines."""

ASSETS = Path(__file__).parent / "assets"
"""What ships with the package: the embedded bases, templates of pages, configurations."""


def sha256(data: bytes | str) -> str:
    """Hex digest of bytes, or of text in UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: the file is missing, a folder, or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), fix="check the path") from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=str(path), fix="name a file in it") from None
    except PermissionError:
        raise UserError(
            "no permission to read this file", where=str(path), fix="check its owner and mode"
        ) from None
    except (OSError, ValueError) as error:  # A link to itself, a name that no file can have.
        what = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot be read: {what}", where=str(path), fix="check the path") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: as for `read_bytes`, or the file is not UTF-8 (with the line).
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            where=f"{path}:{line}",
            fix="save the file as UTF-8",
        ) from None


def require_apart(read: Iterable[Path], written: Mapping[str, Path | None]) -> None:
    """Refuse to overwrite an input file, or to write two outputs to one path.

    Args:
        read: files that are read.
        written: files to write, by the option that names them; None if it is not given.

    Raises:
        UserError: a file would be overwritten.
    """
    taken = {os.path.realpath(path) for path in read}
    for option, path in written.items():
        if path is None:
            continue
        if (place := os.path.realpath(path)) in taken:
            what = f"{path} is already an input or output of this command and would be overwritten"
            raise UserError(what, where=option, fix="name another file")
        taken.add(place)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a temporary file beside it is synced, then renamed.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    write_chunks(path, (data,))


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Like `write_bytes`, for data in chunks."""
    with writing(path) as file:
        for chunk in chunks:
            file.write(chunk)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which appears under its name if the block ends without an error.

    Raises:
        UserError: as `write_bytes`.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp creates files that only the owner can read, but runs are meant to be shared.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise write_error(error, path) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_error(error: OSError, path: Path) -> UserError:
    """The error to report for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            "the disk is full", where=str(path), fix="free some space and run the command again"
        )
    return UserError(
        f"cannot write: {error.strerror or error}", where=str(path), fix="check the folder"
    )


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_chunks(path, (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from one of a model's files.

    Raises:
        UserError: the file is missing, not UTF-8, or not a JSON object.
    """
    try:
        value = json.loads(files.read_text(path))
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=str(path), fix="restore the file") from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path), fix="restore the file")
    return value


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
        raise write_error(error, target) from error
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
        raise write_error(error, target) from error


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
