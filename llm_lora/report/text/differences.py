"""Side-by-side differences of two texts, with the words marked that only one of them has."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from llm_lora.schema import AnswerSchema, Verdict, dumps, parse
from llm_lora.scores import FieldScore, micro_f1, same

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


class Row(Protocol):
    """The parts of a judged answer that differences need."""

    @property
    def reference(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def score(self) -> float: ...
    @property
    def fields(self) -> Mapping[str, FieldScore]: ...


@dataclass(frozen=True)
class Piece:
    """A stretch of text; `mark` is set if the other side does not have it."""

    text: str
    mark: bool


@dataclass(frozen=True)
class Difference:
    """One property of an answer next to that of the reference."""

    name: str
    score: float
    reference: tuple[Piece, ...]
    answer: tuple[Piece, ...]


def sides(one: str, other: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Both texts in pieces, with the words marked that only one of them has."""
    ours, theirs = _WORDS.findall(one), _WORDS.findall(other)
    found: tuple[list[Piece], list[Piece]] = ([], [])
    matcher = difflib.SequenceMatcher(a=ours, b=theirs, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        for side, words in zip(found, (ours[a:b], theirs[c:d]), strict=True):
            if words:
                side.append(Piece("".join(words), tag != "equal"))
    return tuple(found[0]), tuple(found[1])


def properties(schema: AnswerSchema | None, row: Row) -> Iterator[Difference]:
    """Reference and answer, property by property; nothing for an answer that is not JSON."""
    if not row.verdict.parsed:
        return
    reference = parse(row.reference) if schema else row.reference
    answer = row.verdict.value
    if not isinstance(reference, dict) or not isinstance(answer, dict):
        yield Difference("", row.score, *sides(_shown(reference), _shown(answer)))
        return
    for key in [*reference, *(key for key in answer if key not in reference)]:
        texts = [_shown(side[key]) if key in side else "" for side in (reference, answer)]
        inner = {name: field for name, field in row.fields.items() if _under(name, key)}
        alike = key in answer and key in reference and same(reference[key], answer[key])
        f1 = micro_f1(inner.values())
        yield Difference(key, float(alike) if f1 is None else f1, *sides(*texts))


def unread(row: Row, limit: int) -> Iterator[Piece]:
    """The first `limit` characters of an answer that is not JSON, marked after the parse error."""
    if row.verdict.parsed:
        return
    at = next((found.position for found in row.verdict.reasons if found.position), None)
    text = row.answer
    if at is None or at > limit:
        yield Piece(text[:limit], False)
        return
    yield Piece(text[:at], False)
    yield Piece(text[at:limit] or " ", True)


def _under(field: str, key: str) -> bool:
    return field == key or field.startswith((f"{key}.", f"{key}["))


def _shown(value: object) -> str:
    """A value as text; a list has one item per line."""
    if isinstance(value, list) and value:
        return "\n".join(dumps(item) for item in value)
    return value if isinstance(value, str) else dumps(value)
