"""What a model should prefer among its own answers, by the judge and the field scores.

The reward of an answer is 1 for fitting the schema plus its mean field score against the training
answer: from 0 for what cannot be read to 2 for what is right in every field.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_lora.example import Answer, Example
from llm_lora.schema import AnswerSchema
from llm_lora.schema import json_text as jsontext
from llm_lora.scores.scoring import mean_score, score


@dataclass(frozen=True)
class Pair:
    """Two answers to the prompt of a training example, and their rewards.

    `ended` is False for a rejected answer that the token limit cut off.
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
        """What `to_dict` wrote."""
        chosen, rejected = row["rewards"]
        return cls(
            row["example"], row["chosen"], row["rejected"], chosen, rejected, ended=row["ended"]
        )


def reward(schema: AnswerSchema, reference: str, answer: str) -> float:
    """How good an answer is, 0 to 2.

    Args:
        schema: judges it, and tells its fields.
        reference: the training answer, which fits the schema.
        answer: the text that a model gave.
    """
    verdict = schema.judge(answer)
    fields = score(schema, jsontext.parse(reference), verdict)
    return float(verdict.valid) + mean_score(fields)


def some(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most `count` examples, drawn by `seed`, in the order in which they came."""
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
    """At most one pair for each example: the worst of its drawn answers loses.

    Args:
        schema: judges the answers.
        examples: the training examples whose prompts were answered.
        drawn: the answers to each of them.
        chosen: what wins, the training answer or the best one drawn that was not cut off.
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
    """The answers with their rewards, the worst first; among equals the earlier drawn."""
    rated = [(reward(schema, reference, answer.text), answer) for answer in answers]
    return sorted(rated, key=lambda one: one[0])
