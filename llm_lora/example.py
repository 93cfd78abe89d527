"""Examples: training pairs as messages, and the answers that models give."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llm_lora import files
from llm_lora.errors import Problem, UserError

Role = Literal["system", "user", "assistant"]

RAW_LIMIT = 2000
"""Characters of a rejected row that are kept: enough to find and correct it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One training pair; `prompt` ends with the user turn that `answer` replies to."""

    id: str
    prompt: tuple[Message, ...]
    answer: str
    part: str | None
    where: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was set aside: its place ("file:line"), the reason, and the start of its text."""

    where: str
    reason: str
    raw: str


class TooFewLeft(UserError):
    """Raised if too few rows are left; `rejected` holds those set aside."""

    def __init__(self, problems: Iterable[Problem], rejected: Iterable[Rejected]) -> None:
        super().__init__(problems)
        self.rejected = tuple(rejected)


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer; `finish` is "length" if the token limit cut it off.

    `chances` holds, for each token, the character that it starts at and its log probability, if the
    engine was asked for them.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length"]
    chances: tuple[tuple[int, float], ...] = ()


def make_example(
    prompt: tuple[Message, ...], answer: str, *, part: str | None, where: str
) -> Example:
    """An example with its id: 16 hex digits of a hash of the texts, not of place or part."""
    turns = [[message.role, message.content] for message in prompt]
    content = json.dumps([turns, answer], ensure_ascii=False)
    return Example(files.sha256(content)[:16], prompt, answer, part, where)
