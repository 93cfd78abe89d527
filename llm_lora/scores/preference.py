"""Preference pairs of a model's own answers, ranked by the judge and the field scores.

The reward of an answer is 1 for fitting the schema plus the F1 of its values against the training
answer: from 0 for an answer that cannot be parsed to 2 for one that is right in every field.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_lora.example import Answer, Example
from llm_lora.schema import AnswerSchema
from llm_lora.scores.scoring import answer_score, read, score


@dataclass(frozen=True)
class Pair:
    """Two answers to the prompt of a training example, and their rewards.

    `ended` is False if the token limit cut off the rejected answer.
    """

    example: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float
    ended: bool

    def to_dict(self) -> dict[str, Any]:
        """A line of `pairs.jsonl`."""
        return {
            "example": self.example,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "rewards": [round(self.chosen_reward, 4), round(self.rejected_reward, 4)],
            "ended": self.ended,
        }

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Pair:
        """The pair that `to_dict` wrote."""
        chosen, rejected = row["rewards"]
        return cls(
            row["example"], row["chosen"], row["rejected"], chosen, rejected, ended=row["ended"]
        )


def reward(schema: AnswerSchema, reference: str, answer: str) -> float:
    """The reward of an answer, 0 to 2.

    Args:
        schema: the answer schema, which also defines the fields.
        reference: the training answer, which fits the schema.
        answer: the text that a model wrote.
    """
    value, verdict = read(schema, reference, answer)
    fields = score(schema, value, verdict)
    return float(verdict.valid) + answer_score(verdict, fields)


def some(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most `count` examples, drawn at random with `seed`, in their original order."""
    if count >= len(examples):
        return list(examples)
    chosen = random.Random(seed).sample(range(len(examples)), count)
    return [examples[index] for index in sorted(chosen)]


def pairs(
    schema: AnswerSchema,
    examples: Sequence[Example],
    drawn: Sequence[Sequence[Answer]],
    *,
    chosen: Literal["target", "best"],
    margin: float,
) -> list[Pair]:
    """At most one pair per example; its worst drawn answer is the rejected one.

    Args:
        schema: the answer schema.
        examples: the training examples whose prompts were answered.
        drawn: the answers to each of them.
        chosen: the chosen answer: the training answer or the best drawn one that was not cut off.
        margin: pairs whose rewards differ by less are left out.
    """
    found = []
    for example, answers in zip(examples, drawn, strict=True):
        rated = _rated(schema, example.answer, answers)
        worst_reward, worst = rated[0]
        ended = [(value, answer.text) for value, answer in rated if answer.finish == "stop"]
        if chosen == "target":
            best_reward, best = reward(schema, example.answer, example.answer), example.answer
        elif ended:
            best_reward, best = ended[-1]
        else:
            continue
        if best_reward - worst_reward >= margin and best != worst.text:
            cut = worst.finish == "length"
            found.append(
                Pair(example.id, best, worst.text, best_reward, worst_reward, ended=not cut)
            )
    return found


def _rated(
    schema: AnswerSchema, reference: str, answers: Iterable[Answer]
) -> list[tuple[float, Answer]]:
    """The answers with their rewards, worst first; equal ones in the order of drawing."""
    rated = [(reward(schema, reference, answer.text), answer) for answer in answers]
    return sorted(rated, key=lambda one: one[0])
