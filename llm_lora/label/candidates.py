"""Candidate captions for `llm-lora label --method clip`, which chooses one per part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_lora import files
from llm_lora.data.image import one_line
from llm_lora.errors import Problem, UserError
from llm_lora.files import ASSETS

BUILT_IN = ASSETS / "candidates.txt"

_SURE = 0.5
"""Lowest share at which a part's winner is written; the first part is always written."""


@dataclass(frozen=True)
class Part:
    """Candidates that exclude each other, such as all subjects."""

    name: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """A caption composed of parts; `share` is the probability of its least certain part, 0 to 1."""

    caption: str
    share: float


def read(path: Path = BUILT_IN) -> tuple[Part, ...]:
    """Read a file of parts: [name] begins a part, # a comment, any other line is a candidate.

    Raises:
        UserError: it cannot be read, or a part has fewer than two candidates or a duplicate.
    """
    found: list[tuple[str, int, list[str]]] = []
    problems = []
    for number, raw in enumerate(files.read_text(path).splitlines(), 1):
        line = one_line(raw)
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            found.append((line[1:-1].strip(), number, []))
            continue
        if not found:
            found.append(("caption", number, []))
        if line in found[-1][2]:
            problems.append(Problem(f"duplicate candidate: {line}", f"{path}:{number}", "keep one"))
        found[-1][2].append(line)
    problems += [
        Problem(f"part {name} has {len(texts)} candidates", f"{path}:{line}", "give it at least 2")
        for name, line, texts in found
        if len(texts) < 2
    ]
    if not found:
        problems.append(Problem("no candidates", str(path), "put one caption on each line"))
    if problems:
        raise UserError(problems)
    return tuple(Part(name, tuple(texts)) for name, _, texts in found)


def choose(parts: Sequence[Part], shares: Sequence[Sequence[float]]) -> Choice:
    """The caption for a picture.

    Args:
        parts: the candidates.
        shares: for each part the probabilities of its candidates; they sum to 1.
    """
    chosen, least = [], 1.0
    for number, (part, likely) in enumerate(zip(parts, shares, strict=True)):
        best = max(range(len(likely)), key=lambda index: likely[index])
        if number == 0 or likely[best] >= _SURE:
            chosen.append(part.texts[best])
            least = min(least, likely[best])
    return Choice(", ".join(chosen), least)
