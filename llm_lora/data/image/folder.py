"""Reading of a picture folder: usable pictures with captions and measurements, and the rest with
reasons.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from llm_lora.data.finding import Finding
from llm_lora.data.image import captions
from llm_lora.data.image import files as picture_files
from llm_lora.data.image.buckets import EXTREME
from llm_lora.data.image.captions import Caption
from llm_lora.data.image.files import Head, Looks, Unusable
from llm_lora.errors import UserError
from llm_lora.example import Rejected

U = TypeVar("U")

_IGNORED = (".html", ".md")
_IGNORED_STEMS = ("license", "licence", "readme", "thumbs", "desktop")
_IGNORED_FOLDERS = ("__MACOSX",)
_MOST_THREADS = 16


@dataclass(frozen=True, slots=True)
class Found:
    """A usable picture: path below the folder, caption as read, header facts, measurements."""

    name: str
    path: Path
    caption: Caption
    head: Head
    looks: Looks


@dataclass(frozen=True)
class Folder:
    """The content of a folder; `files` counts everything that could be a picture."""

    pictures: tuple[Found, ...]
    rejected: tuple[Rejected, ...]
    findings: tuple[Finding, ...]
    files: int


@dataclass(frozen=True)
class Listing:
    """Candidate files, by path below the folder with slashes, and rejected ones."""

    pictures: dict[str, Path]
    rejected: tuple[Rejected, ...]


def read(
    folder: Path, *, resolution: int, min_size: int | None = None, listed: Path | None = None
) -> Folder:
    """Read every file of a folder and its subfolders.

    Args:
        folder: holds pictures with their captions.
        resolution: side in pixels at which pictures are trained.
        min_size: smallest usable side in pixels; half the resolution if None.
        listed: the list of captions, if it is elsewhere or has another name.

    Raises:
        UserError: there is no such folder, or its list of captions cannot be read.
    """
    listing = find(folder, listed)
    told = captions.read(folder, listing.pictures, listed=listed)
    rejected = [*listing.rejected, *told.rejected]
    least = resolution // 2 if min_size is None else min_size

    def aside(name: str, reason: str) -> None:
        raw = told.by_name[name].text if name in told.by_name else ""
        rejected.append(Rejected(str(listing.pictures[name]), reason, raw))

    heads: dict[str, Head] = {}
    first: dict[str, str] = {}
    with picture_files.bombs_refused():
        for name, head in _each(picture_files.head, listing.pictures.items()):
            if isinstance(head, Unusable):
                aside(name, str(head))
            elif reason := _unfit(head, least):
                aside(name, reason)
            elif name not in told.by_name:
                aside(name, "no caption: neither in the list nor beside the picture")
            elif head.sha256 in first:
                aside(name, f"identical to another picture: {first[head.sha256]}")
            else:
                first[head.sha256] = name
                heads[name] = head
        pictures = []
        look = partial(picture_files.looks, resolution=resolution)
        for name, looks in _each(look, ((name, listing.pictures[name]) for name in heads)):
            if isinstance(looks, Unusable):
                aside(name, str(looks))
            else:
                path = listing.pictures[name]
                pictures.append(Found(name, path, told.by_name[name], heads[name], looks))
    return Folder(tuple(pictures), tuple(rejected), told.findings, len(listing.pictures))


def find(folder: Path, listed: Path | None = None) -> Listing:
    """Everything in a folder, at any depth, that could be a picture, sorted by name.

    Hidden files, the list of captions, captions beside pictures, pages and licences are skipped.

    Args:
        folder: the folder to search.
        listed: the list of captions, if it has another name.

    Raises:
        UserError: there is no such folder, or it may not be read.
    """
    if not folder.is_dir():
        what = "this is a file" if folder.exists() else "no such folder"
        raise UserError(what, where=str(folder), fix="name the folder that holds the pictures")
    root, known = folder.resolve(), listed and listed.resolve()
    pictures: dict[str, Path] = {}
    texts: list[Path] = []
    rejected: list[Rejected] = []

    def fail(error: OSError) -> None:
        raise UserError(
            f"cannot read: {error.strerror}", where=str(error.filename), fix="check its permissions"
        )

    for place, folders, names in os.walk(folder, onerror=fail):
        here = Path(place)
        for name in sorted(folders):
            if (here / name).is_symlink():
                rejected.append(Rejected(str(here / name), "a link to a folder: not followed", ""))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(names):
            path = here / name
            if _is_passed_over(path, folder) or path.resolve() == known:
                continue
            if not _is_utf8(name):
                where = os.fsencode(path).decode("utf-8", "backslashreplace")
                rejected.append(Rejected(where, "the name is not UTF-8: rename it", ""))
            elif name in captions.LISTS:
                reason = (
                    "a list of captions in a subfolder: move its rows to the list of the top folder"
                )
                rejected.append(Rejected(str(path), reason, ""))
            elif path.suffix.lower() in captions.TEXT_SUFFIXES:
                texts.append(path)
            elif path.is_symlink() and not path.resolve().is_relative_to(root):
                rejected.append(Rejected(str(path), "the link leads out of the folder", ""))
            else:
                pictures[path.relative_to(folder).as_posix()] = path
    stems = {path.with_suffix("") for path in pictures.values()}
    rejected += [
        Rejected(str(path), "a caption without its picture", "")
        for path in texts
        if path.with_suffix("") not in stems
    ]
    return Listing(pictures, tuple(rejected))


def _is_utf8(name: str) -> bool:
    """Whether a file's name is UTF-8; on Linux, names are arbitrary bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED_FOLDERS


def _is_passed_over(path: Path, folder: Path) -> bool:
    if path.parent == folder and path.name in captions.LISTS:
        return True
    plain = path.suffix.lower() in ("", ".txt", ".db", ".ini", *_IGNORED)
    is_page = path.suffix.lower() in _IGNORED or (plain and path.stem.lower() in _IGNORED_STEMS)
    return _is_hidden(path.name) or is_page


def _unfit(head: Head, least: int) -> str | None:
    """The reason why a picture of this size cannot be used."""
    short, long = sorted((head.width, head.height))
    if short < least:
        return f"too small: {head.width} x {head.height} pixels, the shorter side is below {least}"
    if long > EXTREME * short:
        return f"too elongated: {head.width} x {head.height}, over {EXTREME:g} to 1; crop it"
    return None


def _each(
    look: Callable[[Path], U], items: Iterable[tuple[str, Path]]
) -> list[tuple[str, U | Unusable]]:
    """Apply a function to each file, in order; Pillow decodes in several threads at once."""

    def one(item: tuple[str, Path]) -> tuple[str, U | Unusable]:
        try:
            return item[0], look(item[1])
        except Unusable as reason:
            return item[0], reason

    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        return list(pool.map(one, items))
