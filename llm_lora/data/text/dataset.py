"""Preparation of a recipe's data: reading, checks, split, fingerprint, and the dataset folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lora import files
from llm_lora.data.finding import Finding, by_reason
from llm_lora.data.text.findings import notice
from llm_lora.data.text.sieve import Sieve
from llm_lora.data.text.split import SIDES, Side, Split, fingerprint, split
from llm_lora.errors import Problem, UserError
from llm_lora.example import Example, Message, Rejected, TooFewLeft, make_example

if TYPE_CHECKING:
    from llm_lora.base import Chat
    from llm_lora.recipe.text import DataRecipe, Recipe
    from llm_lora.schema import AnswerSchema

CHECK = "check.json"
QUARANTINE = "quarantine.jsonl"

LEAST_TRAIN = 8
"""Minimum number of training examples: one common batch."""

_LEAST_SIMILARITY = 0.5
_SHOWN_REASONS = 5
_BINS = 20


@dataclass(frozen=True)
class Dataset:
    """Checked examples by side, rows set aside, and findings.

    `fingerprint` identifies which examples are on which side, in any order. `stats` holds counts
    and, under "tokens", the lengths in tokens of prompts and answers of train, validation and
    held-out in that order (empty without a tokenizer).
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    held_out: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    findings: tuple[Finding, ...]
    fingerprint: str
    stats: dict[str, Any]

    def side(self, side: Side) -> tuple[Example, ...]:
        """The examples of one side."""
        examples: tuple[Example, ...] = getattr(self, side)
        return examples

    def summary(self) -> dict[str, Any]:
        """The results of the data check as JSON: counts, parts, lengths, reasons, findings."""
        return {
            "fingerprint": self.fingerprint,
            **self.stats,
            "tokens": {name: _spread(lengths) for name, lengths in self.stats["tokens"].items()},
            "rejected_by_reason": by_reason(self.rejected),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def write(self, folder: Path) -> None:
        """Write train, validation, held_out and quarantine (.jsonl), then check.json.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        tokens = self.stats["tokens"]
        place = 0
        for side in SIDES:
            examples = self.side(side)
            lengths = ({name: tokens[name][i] for name in tokens} for i in count(place))
            files.write_jsonl(folder / f"{side}.jsonl", map(_row, examples, lengths))
            place += len(examples)
        files.write_jsonl(folder / QUARANTINE, (asdict(row) for row in self.rejected))
        files.write_json(folder / CHECK, self.summary())

    @classmethod
    def read(cls, folder: Path) -> Dataset:
        """Read a written dataset, equal to the original.

        Raises:
            UserError: a file is missing or damaged, or its examples were changed.
        """
        try:
            check = json.loads(files.read_text(folder / CHECK))
            rows = {side: _rows(folder / f"{side}.jsonl") for side in SIDES}
            examples = {side: tuple(map(_example, rows[side])) for side in SIDES}
            rejected = tuple(Rejected(**row) for row in _rows(folder / QUARANTINE))
            findings = tuple(Finding(**row) for row in check.pop("findings"))
            written = check.pop("fingerprint")
            del check["rejected_by_reason"]
            every = [row for side in SIDES for row in rows[side]]
            check["tokens"] = {name: [r["tokens"][name] for r in every] for name in check["tokens"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"the dataset folder is damaged: {error!r}", where=str(folder), fix="train again"
            ) from None
        if written != fingerprint(examples):
            raise UserError(
                "the dataset was changed after it was checked", where=str(folder), fix="train again"
            )
        return cls(
            train=examples["train"],
            validation=examples["validation"],
            held_out=examples["held_out"],
            rejected=rejected,
            findings=findings,
            fingerprint=written,
            stats=check,
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


def _stats(sieve: Sieve, parted: Split) -> dict[str, Any]:
    kept = [example for side in SIDES for example in parted.sides[side]]
    names = ("prompt", "answer") if sieve.tokens else ()
    return {
        "counts": {
            "read": sieve.rows,
            **{side: len(parted.sides[side]) for side in SIDES},
            "rejected": len(sieve.rejected),
            "equal": len(sieve.equal),
        },
        "parts": {
            side: dict(Counter(e.part for e in parted.sides[side] if e.part is not None))
            for side in SIDES
        },
        "formats": dict(sieve.shapes),
        "answers_changed": len(sieve.changed),
        "near_duplicates": {
            "rows": sum(map(len, parted.clusters)),
            "clusters": len(parted.clusters),
            "set_aside": len(parted.aside),
        },
        "tokens": {name: [sieve.tokens[e.id][i] for e in kept] for i, name in enumerate(names)},
    }


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
        for group in by_reason(rejected)[:_SHOWN_REASONS]:
            more = f" (and {group['count'] - 1} more like it)" if group["count"] > 1 else ""
            problems.append(Problem(group["reason"] + more, group["where"]))
        raise TooFewLeft(problems, rejected)


def _place(row: Rejected) -> tuple[str, int]:
    name, _, line = row.where.rpartition(":")
    return name, int(line)


def _spread(lengths: Sequence[int]) -> dict[str, Any]:
    """Quantiles of lengths in tokens, and a histogram with bins of equal width from 0."""
    ordered = sorted(lengths)
    width = -(-(ordered[-1] + 1) // _BINS)
    counts = Counter(length // width for length in ordered)
    return {
        "least": ordered[0],
        "median": ordered[len(ordered) // 2],
        "p95": ordered[len(ordered) * 95 // 100],
        "most": ordered[-1],
        "total": sum(ordered),
        "histogram": {
            "width": width,
            "counts": [counts[i] for i in range(ordered[-1] // width + 1)],
        },
    }


# Rows of the written files


def _row(example: Example, tokens: Mapping[str, int]) -> dict[str, Any]:
    return {
        "id": example.id,
        "messages": [asdict(message) for message in example.prompt],
        "answer": example.answer,
        "part": example.part,
        "where": example.where,
        "tokens": tokens,
    }


def _example(row: Mapping[str, Any]) -> Example:
    prompt = tuple(Message(**message) for message in row["messages"])
    example = make_example(prompt, row["answer"], part=row["part"], where=row["where"])
    if example.id != row["id"]:
        raise ValueError(f"the example of {example.where} was changed")
    return example


def _rows(path: Path) -> list[dict[str, Any]]:
    # Split at "\n" only: splitlines would also split at other line breaks inside texts.
    return [json.loads(line) for line in files.read_text(path).split("\n") if line]
