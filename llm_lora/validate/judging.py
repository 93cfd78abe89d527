"""Validation of a file of answers, block by block, with constant memory and on every core.

A small input is judged in this process; the blocks of a larger one in several, in file order.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from llm_lora.errors import UserError
from llm_lora.schema import (
    KINDS,
    VALID,
    AnswerSchema,
    KindName,
    NotJson,
    Verdict,
    bulk,
    not_json,
    repair,
)
from llm_lora.schema import json_text as jsontext
from llm_lora.validate import intake
from llm_lora.validate.envelope import Envelope, no_column
from llm_lora.validate.intake import STDIN, Block, Items

__all__ = ["STDIN", "Judge", "Judged", "LineVerdict", "Summary", "judge_blocks", "judge_file"]

# A model may invent any number of names; reasons beyond this limit are counted together.
_MOST_REASONS = 1000
_REST = ("(other places)", "(other rules)")
_SMALL = 8 << 20
_AT_ONCE = 128
_SHOWN = 20


@dataclass(frozen=True)
class LineVerdict:
    """The verdict on the answer of one line (from 1); `repairs` lists repairs made before it."""

    line: int
    verdict: Verdict
    repairs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        row = {"line": self.line, **self.verdict.to_dict()}
        return {**row, "repairs": list(self.repairs)} if self.repairs else row


@dataclass(frozen=True)
class ReasonCount:
    """The answers that one reason refused: its place, its rule, their number and first line."""

    path: str
    keyword: str
    answers: int
    first_line: int


@dataclass
class Summary:
    """Totals over a file of answers; grows by `add` and `merge`."""

    answers: int = 0
    kinds: Counter[KindName] = field(default_factory=Counter)
    """Answer counts by kind of verdict."""

    repaired: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answer counts by place (without indices; empty for the whole answer) and keyword."""

    first_lines: dict[tuple[str, str], int] = field(default_factory=dict)
    repairs: Counter[str] = field(default_factory=Counter)
    """Counts of repaired answers by what was removed."""

    @property
    def valid(self) -> int:
        return self.kinds["valid"]

    def add(self, judged: LineVerdict) -> None:
        """Count one more answer."""
        self.answers += 1
        self.kinds[judged.verdict.kind] += 1
        self.repaired += bool(judged.repairs)
        self.repairs.update(judged.repairs)
        for reason in {(reason.field, reason.keyword) for reason in judged.verdict.reasons}:
            self._count(reason, 1, judged.line)

    def merge(self, later: Summary, *, shift: int = 0) -> None:
        """Count the answers of a later part, whose line 1 is line `shift` + 1."""
        self.answers += later.answers
        self.kinds.update(later.kinds)
        self.repaired += later.repaired
        self.repairs.update(later.repairs)
        for reason, count in later.reasons.items():
            self._count(reason, count, later.first_lines[reason] + shift)

    def _count(self, reason: tuple[str, str], count: int, line: int) -> None:
        known = reason in self.reasons or len(self.reasons) < _MOST_REASONS
        key = reason if known else _REST
        self.reasons[key] += count
        self.first_lines.setdefault(key, line)

    def counted(self) -> list[ReasonCount]:
        """The answers that each reason refused, the most frequent reason first."""
        ordered = sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        return [ReasonCount(*key, count, self.first_lines[key]) for key, count in ordered]

    def to_dict(self) -> dict[str, object]:
        """For JSON output, the most frequent reason first."""
        return {
            "answers": self.answers,
            **{name: self.kinds[name] for name in KINDS},
            "repaired": self.repaired,
            "reasons": [asdict(one) for one in self.counted()],
            "repairs": dict(self.repairs.most_common()),
        }


@dataclass
class Judged:
    """A judged block. Its summary counts lines from the start of the block, the rest from the
    start of the file."""

    lines: int
    """Number of lines in the block; 0 if they are numbered by the file already."""

    before: int = 0
    """Number of lines in the file before the block."""

    summary: Summary = field(default_factory=Summary)
    bad: list[LineVerdict] = field(default_factory=list)
    """The first few answers that are invalid or were repaired."""

    with_column: bool = False
    """Whether any record has the requested column."""

    keys: list[str] = field(default_factory=list)
    """Keys of the first record without it."""

    rows: list[tuple[int, str]] = field(default_factory=list)
    """Line and verdict of every answer, as JSON without its opening brace; if requested."""

    fixed: bytes = b""
    """Every line, repaired where the repair is unambiguous; if requested."""

    def after(self, lines: int) -> None:
        """Renumber lines by the file, which has `lines` lines before the block."""
        self.before = lines
        self.bad = [replace(one, line=one.line + lines) for one in self.bad]
        self.rows = [(line + lines, row) for line, row in self.rows]


@dataclass(frozen=True)
class Judge:
    """Judges blocks against a schema.

    Each line holds one answer: a JSON string, the answer itself, or a record with the answer (text
    or JSON) under `column`. `Envelope` says which keys are the default. A line that is not JSON is
    the text of an answer. `rows` requests the verdict on every answer, `fix` repairs.
    """

    schema: AnswerSchema
    column: str | None = None
    rows: bool = False
    fix: bool = False

    @cached_property
    def envelope(self) -> Envelope:
        """Finds the answer in a line."""
        return Envelope(self.schema, self.column)

    def block(self, block: Block) -> Judged:
        """Judge the answers of a block."""
        texts, numbers, lines, bare = _texts(block)
        judged = Judged(lines)
        with bulk.no_collection():
            for start in range(0, len(texts), _AT_ONCE):
                stop = start + _AT_ONCE
                self._some(texts[start:stop], numbers[start:stop], bare, judged)
        return judged

    def each(self, block: Block) -> Iterator[LineVerdict]:
        """The verdict on every answer of a block."""
        texts, numbers, _, bare = _texts(block)
        for start in range(0, len(texts), _AT_ONCE):
            verdicts, _ = self._verdicts(texts[start : start + _AT_ONCE], bare, Judged(0))
            yield from map(LineVerdict, numbers[start : start + _AT_ONCE], verdicts)

    def _some(
        self, texts: Sequence[bytes], numbers: Sequence[int], bare: bool, into: Judged
    ) -> None:
        verdicts, mended = self._verdicts(texts, bare, into)
        notable = [
            index
            for index, verdict in enumerate(verdicts)
            if verdict is not VALID or index in mended
        ]
        into.summary.answers += len(verdicts) - len(notable)
        into.summary.kinds["valid"] += len(verdicts) - len(notable)
        for index in notable:
            repairs = mended[index].removed if index in mended else ()
            one = LineVerdict(numbers[index], verdicts[index], repairs)
            into.summary.add(one)
            if len(into.bad) < _SHOWN:
                into.bad.append(one)
        if self.rows:
            into.rows += [
                (number, _row(verdict, mended.get(index)))
                for index, (number, verdict) in enumerate(zip(numbers, verdicts, strict=True))
            ]
        if self.fix:
            into.fixed += b"".join(
                self._written(text, bare, mended.get(index)) for index, text in enumerate(texts)
            )

    def _verdicts(
        self, texts: Sequence[bytes], bare: bool, into: Judged
    ) -> tuple[list[Verdict], dict[int, repair.Mended]]:
        """Verdicts on answers, and repairs by the answer's index."""
        values = bulk.parse_all(texts)
        inner: dict[int, bytes] = {}
        lacking: dict[int, Verdict] = {}
        if not bare:
            for index, value in enumerate(values):
                held = value
                if type(value) is dict:
                    if (key := self.envelope.key(value)) is not None:
                        values[index] = held = value[key]
                        into.with_column = True
                    elif (verdict := self.envelope.lacking(value)) is not None:
                        lacking[index] = verdict
                        into.keys = into.keys or list(value)
                if type(held) is str:
                    inner[index] = held.encode()
            for index, value in zip(inner, bulk.parse_all(list(inner.values())), strict=True):
                values[index] = value
        broken = {index: value for index, value in enumerate(values) if type(value) is NotJson}
        mended: dict[int, repair.Mended] = {}
        for index in broken if self.fix else ():
            source = inner.get(index, texts[index]).decode(errors="replace")
            if (found := repair.mend(source)) is not None:
                mended[index], values[index] = found, jsontext.parse(found.text)
        for index in broken.keys() - mended.keys():
            values[index] = None
        verdicts = self.schema.judge_all(values)
        for index in broken.keys() - mended.keys():
            verdicts[index] = not_json(broken[index])
        for index, verdict in lacking.items():
            verdicts[index] = verdict
        return verdicts, mended

    def _written(self, text: bytes, bare: bool, mended: repair.Mended | None) -> bytes:
        """A line of the repaired file."""
        if bare:
            answer = mended.text if mended else text.decode(errors="replace")
            return jsontext.dumps(answer).encode() + b"\n"
        if mended is None:
            return _one_line(text)
        try:
            line = text.decode()
            value = jsontext.parse(line)
        except (UnicodeDecodeError, NotJson):
            return _one_line(mended.text.encode())
        key = self.envelope.key(value) if isinstance(value, dict) else None
        start = jsontext.locate(line, [] if key is None else [key])
        end = json.JSONDecoder().raw_decode(line, start)[1]
        written = line[:start] + jsontext.dumps(mended.text) + line[end:]
        return _one_line(written.encode())


def _texts(block: Block) -> tuple[Sequence[bytes], Sequence[int], int, bool]:
    """Texts of the answers, their line numbers, the number of lines, and whether texts are bare."""
    held = block.read()
    if isinstance(held, Items):
        return held.texts, held.lines, 0, held.bare
    lines = list(map(bytes.strip, held.data.split(b"\n")))
    count = len(lines) - (not lines[-1])
    if not lines[-1]:
        lines.pop()
    if all(lines):
        return lines, range(1, count + 1), count, False
    numbers = [number for number, line in enumerate(lines, 1) if line]
    return [line for line in lines if line], numbers, count, False


def _one_line(text: bytes) -> bytes:
    """The text on one line: in JSON, a raw line break is always replaceable white space."""
    return text.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def _row(verdict: Verdict, mended: repair.Mended | None) -> str:
    if verdict is VALID and mended is None:
        return _VALID_ROW
    row = {**verdict.to_dict(), **({"repairs": list(mended.removed)} if mended else {})}
    return json.dumps(row, ensure_ascii=False)[1:]


_VALID_ROW = json.dumps(VALID.to_dict())[1:]


# --- a whole file ---------------------------------------------------------------------------------


def judge_file(path: Path, schema: AnswerSchema) -> Iterator[LineVerdict]:
    """The verdict on every answer of a file as it is read; `-` reads standard input.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    judge = Judge(schema)
    before = 0
    for block in intake.blocks(path, column=None, arrays=judge.envelope.arrays):
        for one in judge.each(block):
            yield replace(one, line=one.line + before)
        before += _texts(block)[2]


def judge_blocks(path: Path, judge: Judge, *, jobs: int | None = None) -> Iterator[Judged]:
    """Judge a file of any size, block by block in its order, with lines numbered by the file.

    Args:
        path: the file; `-` is standard input.
        judge: the schema to judge against, and the requested results.
        jobs: number of processes; None means one per core.

    Raises:
        UserError: the file cannot be read or is damaged, no record has the requested column, or a
            process was killed.
    """
    blocks = intake.blocks(path, column=judge.column, arrays=judge.envelope.arrays)
    before, found, keys = 0, False, list[str]()
    for judged in _judged(blocks, judge, _cores() if jobs is None else jobs):
        judged.after(before)
        before += judged.lines
        found, keys = found or judged.with_column, keys or judged.keys
        yield judged
    if judge.column is not None and keys and not found:
        raise no_column(path, judge.column, keys)


def summarise(judged: Iterable[LineVerdict]) -> Summary:
    """Count verdicts by kind, and reasons by place and keyword."""
    summary = Summary()
    for one in judged:
        summary.add(one)
    return summary


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _judged(blocks: Iterator[Block], judge: Judge, jobs: int) -> Iterator[Judged]:
    seen = 0
    for block in blocks:
        yield judge.block(block)
        seen += block.size
        # Starting processes takes longer than judging a small input.
        if jobs > 1 and seen >= _SMALL:
            break
    else:
        return
    yield from _in_processes(blocks, judge, jobs)


def _in_processes(blocks: Iterator[Block], judge: Judge, jobs: int) -> Iterator[Judged]:
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    schema = judge.schema
    settings = (schema.text, schema.where, judge.column, judge.rows, judge.fix)
    pool = ProcessPoolExecutor(jobs, initializer=_begin, initargs=settings)
    waiting: deque[Future[Judged]] = deque()
    try:
        for block in blocks:
            waiting.append(pool.submit(_work, block))
            # Enough to keep all processes busy, few enough to keep memory constant.
            if len(waiting) > 2 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        fix = "free some memory, or use fewer processes: --jobs 1"
        raise UserError("a worker process was killed", fix=fix) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_judge: Judge | None = None
"""The judge of a worker process; built there, because a compiled schema cannot be sent."""


def _begin(text: str, where: str, column: str | None, rows: bool, fix: bool) -> None:
    global _judge
    # The parent process handles Ctrl-C and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _judge = Judge(AnswerSchema.from_text(text, where), column, rows, fix)


def _work(block: Block) -> Judged:
    assert _judge is not None
    return _judge.block(block)
