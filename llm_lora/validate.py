"""Judging a file of answers line by line, in memory that does not grow with the file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llm_lora import jsontext
from llm_lora.errors import UserError
from llm_lora.jsontext import Flaw, NotJson
from llm_lora.schema import AnswerSchema
from llm_lora.verdict import Verdict, not_json

STDIN = Path("-")
RECORD_KEYS = ("answer", "response", "text")
"""Where a record holds its answer: our own answers.jsonl, training data, plain dumps of models."""

# Names that a model makes up could be without number; what lies beyond is counted together.
_MOST_REASONS = 1000
_REST = ("(other places)", "(other rules)")


@dataclass(frozen=True)
class LineVerdict:
    """The verdict on the answer of one line, counted from 1."""

    line: int
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        return {"line": self.line, **self.verdict.to_dict()}


@dataclass
class Summary:
    """What a file of answers came to; grows by `add`."""

    answers: int = 0
    valid: int = 0
    invalid: int = 0
    not_json: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers by place (indices left out, empty for the whole answer) and keyword."""

    first_lines: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, judged: LineVerdict) -> None:
        """Count one more answer."""
        self.answers += 1
        kind = judged.verdict.kind
        setattr(self, kind, getattr(self, kind) + 1)
        for reason in {(reason.field, reason.keyword) for reason in judged.verdict.reasons}:
            known = reason in self.reasons or len(self.reasons) < _MOST_REASONS
            key = reason if known else _REST
            self.reasons[key] += 1
            self.first_lines.setdefault(key, judged.line)

    def to_dict(self) -> dict[str, Any]:
        """For JSON output, the commonest reason first."""
        return {
            "answers": self.answers,
            "valid": self.valid,
            "invalid": self.invalid,
            "not_json": self.not_json,
            "reasons": [
                {
                    "path": key[0],
                    "keyword": key[1],
                    "answers": count,
                    "first_line": self.first_lines[key],
                }
                for key, count in sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
            ],
        }


def summarise(judged: Iterable[LineVerdict]) -> Summary:
    """Count verdicts by kind, and reasons by place and keyword."""
    summary = Summary()
    for one in judged:
        summary.add(one)
    return summary


def judge_file(path: Path, schema: AnswerSchema) -> Iterator[LineVerdict]:
    """Judge every answer of a file as it is read; `-` reads standard input. Blank lines are none.

    A line holds one answer: as a JSON string, as the answer itself, or as a record with the answer
    (text or JSON) under `answer`, `response` or `text`, unless the schema knows a property of that
    name. A line that is no JSON at all is taken as the text of an answer.

    Raises:
        UserError: the file cannot be read, or is one JSON document over several lines.
    """
    known = schema.document.get("properties", {})
    keys = [key for key in RECORD_KEYS if key not in known]
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text:
                continue
            if number == 1 and text in (b"[", b"{"):
                raise UserError(
                    "one JSON document over several lines",
                    where=str(path),
                    fix="write one answer a line (JSON Lines): jq -c '.[]' FILE",
                )
            yield LineVerdict(number, _judge_line(text, schema, keys))


def _judge_line(line: bytes, schema: AnswerSchema, keys: list[str]) -> Verdict:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
        return not_json(NotJson((Flaw("utf8", what, error.start),)))
    try:
        value = jsontext.parse(text)
    except NotJson as flaws:
        return not_json(flaws)
    if isinstance(value, dict):
        held = next((value[key] for key in keys if key in value), value)
        return schema.judge(held) if isinstance(held, str) else schema.judge_value(held)
    return schema.judge(value) if isinstance(value, str) else schema.judge_value(value)


def _open(path: Path) -> IO[bytes] | nullcontext[IO[bytes]]:
    if path == STDIN:
        return nullcontext(sys.stdin.buffer)
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), fix="check the path") from None
    except OSError as error:
        what = f"cannot read: {error.strerror or error}"
        raise UserError(what, where=str(path), fix="name a file that you may read") from None
