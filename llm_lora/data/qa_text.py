"""Plain-text questions and answers in the format of lora-scripts: "问：…" and "答：…"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_QUESTION = r"(?:问题|問題|问|問)"
_ANSWER = r"(?:回答|答案|答)"
_MARK = re.compile(rf"^[ \t]*(?:(?P<q>{_QUESTION})|(?P<a>{_ANSWER}))[ \t]*[:：]", re.MULTILINE)
_BEGINS = re.compile(rf"\s*{_QUESTION}[ \t]*[:：]")


class Pair(NamedTuple):
    """A question with its answer, the line it starts on (from 1), and its text in the file.

    `answer` is None if no answer follows.
    """

    line: int
    raw: str
    question: str
    answer: str | None


def is_pairs(text: str) -> bool:
    """Whether a text starts with a question mark of this format.

    >>> is_pairs("问：头痛三天\\n答：多休息"), is_pairs("问题很多")
    (True, False)
    """
    return _BEGINS.match(text) is not None


def pairs(text: str) -> Iterator[Pair]:
    """The pairs of a text for which `is_pairs` holds; text belongs to the mark before it."""
    marks = list(_MARK.finditer(text))
    questions = [i for i, mark in enumerate(marks) if mark["q"]]
    for number, first in enumerate(questions):
        last = questions[number + 1] if number + 1 < len(questions) else len(marks)
        end = marks[last].start() if last < len(marks) else len(text)
        start = marks[first].start()
        # A second answer to one question is part of the first.
        answer = marks[first + 1] if first + 1 < last else None
        question_end = answer.start() if answer else end
        yield Pair(
            line=text.count("\n", 0, start) + 1,
            raw=text[start:end].rstrip(),
            question=text[marks[first].end() : question_end].strip(),
            answer=text[answer.end() : end].strip() if answer else None,
        )
