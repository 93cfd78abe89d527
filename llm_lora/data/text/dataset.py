"""Preparation of a recipe's data: reading, checks, split, fingerprint, and the dataset folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lora.data import written
from llm_lora.data.finding import Finding, main_reasons
from llm_lora.data.text.findings import notice
from llm_lora.data.text.sieve import Sieve
from llm_lora.data.text.split import SIDES, Side, Split, fingerprint, split
from llm_lora.data.written import Check, Fields
from llm_lora.errors import Problem, UserError
from llm_lora.example import Example, Message, Rejected, TooFewLeft, make_example

if TYPE_CHECKING:
    from llm_lora.base import Chat
    from llm_lora.recipe.text import DataRecipe, Recipe
    from llm_lora.schema import AnswerSchema

LEAST_TRAIN = 8
"""Minimum number of training examples: one common batch."""

_LEAST_SIMILARITY = 0.5
_BINS = 20


@dataclass(frozen=True)
class Stats:
    """Figures of a dataset.

    `tokens` holds the lengths in tokens of prompts and answers of train, validation and held-out
    in that order (empty without a tokenizer).
    """

    counts: dict[str, int]
    parts: dict[str, dict[str, int]]
    formats: dict[str, str]
    answers_changed: int
    near_duplicates: dict[str, int]
    tokens: dict[str, list[int]]


@dataclass(frozen=True)
class Dataset:
    """Checked examples by side, rows set aside, and findings.

    `fingerprint` identifies which examples are on which side, in any order.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    held_out: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    findings: tuple[Finding, ...]
    fingerprint: str
    stats: Stats

    def side(self, side: Side) -> tuple[Example, ...]:
        """The examples of one side."""
        examples: tuple[Example, ...] = getattr(self, side)
        return examples

    def summary(self) -> Fields:
        """The results of the data check as JSON: counts, parts, lengths, reasons, findings."""
        return self._check().to_json()

    def _check(self) -> Check:
        tokens = {name: asdict(_spread(each)) for name, each in self.stats.tokens.items()}
        stats = {**vars(self.stats), "tokens": tokens}
        return Check(self.fingerprint, self.rejected, self.findings, stats)

    def write(self, folder: Path) -> None:
        """Write train, validation, held_out and quarantine (.jsonl), then check.json.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        tokens = self.stats.tokens
        lengths = ({name: tokens[name][i] for name in tokens} for i in count())
        # The lengths go on from side to side.
        rows = {side: (_row(one, next(lengths)) for one in self.side(side)) for side in SIDES}
        written.write(folder, rows, self._check())

    @classmethod
    def read(cls, folder: Path) -> Dataset:
        """Read a written dataset, equal to the original.

        Raises:
            UserError: a file is missing or damaged, or its examples were changed.
        """
        with written.undamaged(folder):
            rows, check = written.read(folder, SIDES)
            examples = {side: tuple(map(_example, rows[side])) for side in SIDES}
            every = [row for side in SIDES for row in rows[side]]
            names = check.stats["tokens"]
            tokens = {name: [row["tokens"][name] for row in every] for name in names}
            stats = Stats(**{**check.stats, "tokens": tokens})
        written.require_unchanged(folder, check.fingerprint, fingerprint(examples))
        return cls(
            train=examples["train"],
            validation=examples["validation"],
            held_out=examples["held_out"],
            rejected=check.rejected,
            findings=check.findings,
            fingerprint=check.fingerprint,
            stats=stats,
        )


def prepare(recipe: Recipe, schema: AnswerSchema | None, chat: Chat | None) -> Dataset:
    """Read, check and split the data of a recipe.

    Args:
        recipe: names the files, fractions and limits.
        schema: the schema that answers must fit; they are rewritten in its canonical form.
        chat: measures examples in tokens and refuses those that it cannot encode faithfully.

    Raises:
        UserError: a file cannot be read, or the settings make no sense.
        TooFewLeft: too few rows are left.
    """
    data = recipe.data
    if data.near_duplicate < _LEAST_SIMILARITY:
        raise UserError(
            f"data.near_duplicate {data.near_duplicate:g} would treat unrelated rows as duplicates",
            fix=f"use {_LEAST_SIMILARITY:g} to 1; the default is 0.9",
        )
    share, named = (data.held_out, ()) if isinstance(data.held_out, float) else (0.0, data.held_out)
    sieve = Sieve(recipe, schema, chat)
    # Held-out files first, because the first of equal rows is kept.
    held_out, cut = sieve.read(named, data.train)
    parted = split(
        held_out,
        cut,
        held_out_share=share,
        validation_share=data.validation,
        near_duplicate=data.near_duplicate,
    )
    for row in parted.aside:
        reason = f"near-duplicate on another side: it is like {row.like.where}, in {row.side}"
        sieve.reject(row.example, reason)
    context = chat.context_length if chat is not None else None
    rejected = tuple(sorted(sieve.rejected, key=_place))
    _require_enough(parted.sides, rejected, data)
    return Dataset(
        train=tuple(parted.sides["train"]),
        validation=tuple(parted.sides["validation"]),
        held_out=tuple(parted.sides["held_out"]),
        rejected=rejected,
        findings=(
            *sieve.findings(),
            *notice(parted, recipe, schema, sieve.tokens, context),
        ),
        fingerprint=fingerprint(parted.sides),
        stats=_stats(sieve, parted),
    )


def _stats(sieve: Sieve, parted: Split) -> Stats:
    kept = [example for side in SIDES for example in parted.sides[side]]
    names = ("prompt", "answer") if sieve.tokens else ()
    return Stats(
        counts={
            "read": sieve.rows,
            **{side: len(parted.sides[side]) for side in SIDES},
            "rejected": len(sieve.rejected),
            "equal": len(sieve.equal),
        },
        parts={
            side: dict(Counter(e.part for e in parted.sides[side] if e.part is not None))
            for side in SIDES
        },
        formats=dict(sieve.shapes),
        answers_changed=len(sieve.changed),
        near_duplicates={
            "rows": sum(map(len, parted.clusters)),
            "clusters": len(parted.clusters),
            "set_aside": len(parted.aside),
        },
        tokens={name: [sieve.tokens[e.id][i] for e in kept] for i, name in enumerate(names)},
    )


def _require_enough(
    sides: Mapping[Side, Sequence[Example]],
    rejected: Sequence[Rejected],
    data: DataRecipe,
) -> None:
    """Stop if too little is left; reports the most frequent reasons for setting rows aside."""
    problems = []
    where = ", ".join(map(str, data.train))
    train = len(sides["train"])
    if not any(sides.values()):
        problems.append(Problem(f"no usable row: all {len(rejected)} were set aside", where))
    elif train < LEAST_TRAIN:
        what = f"only {train} examples" if train else "no example"
        fix = f"at least {LEAST_TRAIN} are needed: add some"
        fix += ", or correct those that were set aside" if rejected else ""
        problems.append(Problem(f"{what} to train on", where, fix))
    elif not sides["held_out"]:
        what = "no held-out example, so nothing could be evaluated"
        if isinstance(data.held_out, float):
            problems.append(Problem(what, where, "add rows or raise data.held_out"))
        else:
            named = ", ".join(map(str, data.held_out))
            problems.append(Problem(what, named, "correct the rows of the held-out file"))
    if problems:
        raise TooFewLeft([*problems, *main_reasons(rejected)], rejected)


def _place(row: Rejected) -> tuple[str, int]:
    name, _, line = row.where.rpartition(":")
    return name, int(line)


@dataclass(frozen=True)
class _Histogram:
    """Counts in bins of equal width, the first of which begins at 0."""

    width: int
    counts: list[int]


@dataclass(frozen=True)
class _Spread:
    """Quantiles of lengths in tokens, and their histogram."""

    least: int
    median: int
    p95: int
    most: int
    total: int
    histogram: _Histogram


def _spread(lengths: Sequence[int]) -> _Spread:
    ordered = sorted(lengths)
    width = -(-(ordered[-1] + 1) // _BINS)
    counts = Counter(length // width for length in ordered)
    return _Spread(
        least=ordered[0],
        median=ordered[len(ordered) // 2],
        p95=ordered[len(ordered) * 95 // 100],
        most=ordered[-1],
        total=sum(ordered),
        histogram=_Histogram(width, [counts[i] for i in range(ordered[-1] // width + 1)]),
    )


# Rows of the written files


def _row(example: Example, tokens: Mapping[str, int]) -> Fields:
    return {
        "id": example.id,
        "messages": [asdict(message) for message in example.prompt],
        "answer": example.answer,
        "part": example.part,
        "where": example.where,
        "tokens": tokens,
    }


def _example(row: Fields) -> Example:
    prompt = tuple(Message(**message) for message in row["messages"])
    example = make_example(prompt, row["answer"], part=row["part"], where=row["where"])
    if example.id != row["id"]:
        raise ValueError(f"the example of {example.where} was changed")
    return example
