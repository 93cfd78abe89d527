"""A reader of the server's growing log: progress, errors, and the cause of death."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_KEPT = 400
"""Lines kept to explain why the server died; a traceback takes under a hundred."""
_EXPLAINED = 6
_LAST = 12

# "(EngineCore pid=12) ERROR 11-21 12:00:00 [core.py:34] text", where output printed by
# workers and libraries has only the first part.
_TAG = re.compile(r"^\((?P<who>[^()]*pid=[^()]*)\)\s?")
_HEAD = re.compile(
    r"^(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):? +"
    r"(?:\d\d-\d\d \d\d:\d\d:\d\d )?(?:\[[^\]]*\] )?"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# The last line of a traceback, or the error of an argument parser.
_CAUSE = re.compile(r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b|^\S+: error: ")
# vLLM ends with these, which only point to earlier lines.
_POINTERS = ("Engine core initialization failed", "WorkerProc initialization failed", "See stack")


@dataclass(frozen=True)
class Line:
    """One line of the log; `level` is None where the line has none."""

    level: str | None
    text: str

    @property
    def alarming(self) -> bool:
        """An error worth showing at once: its message, not the stack below it."""
        lead = not self.text.startswith((" ", "Traceback", "^"))
        return self.level in ("ERROR", "CRITICAL") and lead and bool(self.text)


def parse(raw: str) -> Line:
    """A line without colours, tags, time and place."""
    # A progress bar overwrites its line: only the last state counts.
    text = _ESCAPES.sub("", raw).rstrip("\r\n").rsplit("\r", 1)[-1]
    text = _TAG.sub("", text)
    head = _HEAD.match(text)
    return Line(head["level"], text[head.end() :]) if head else Line(None, text)


class Tail:
    """The lines added to a file since the last look; keeps the newest."""

    def __init__(self, path: Path) -> None:
        """Begin at the present end of the file."""
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""
        self._kept: deque[Line] = deque(maxlen=_KEPT)

    def new(self) -> list[Line]:
        """Whole lines that came since the last call."""
        found = list(self._read())
        self._kept.extend(found)
        return found

    def explain(self) -> list[str]:
        """The lines that most likely show why the server died."""
        self.new()
        return causes(list(self._kept))

    def _read(self) -> Iterator[Line]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield parse(line.decode(errors="replace"))


def causes(lines: Sequence[Line]) -> list[str]:
    """The errors among log lines, first cause first; the last lines where there is none."""
    texts = [line.text.strip() for line in lines if line.text.strip()]
    found = [text for text in dict.fromkeys(texts) if _CAUSE.match(text)]
    telling = [text for text in found if not any(pointer in text for pointer in _POINTERS)]
    return (telling or found or texts[-_LAST:])[-_EXPLAINED if telling or found else -_LAST :]
