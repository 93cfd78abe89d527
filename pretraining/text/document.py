"""A document: pieces of text, each with the weight of its tokens in the loss."""

from __future__ import annotations

import json
from random import Random

from pretraining.text.values import Json

Document = list[tuple[str, float]]

PROMPT = 0.12
"""Weight of user text: enough to learn the language, little compared with the answers."""
ANSWER = 1.0

_SYSTEMS = (
    "You extract data.",
    "You turn text into JSON.",
    "Return JSON only.",
    "You are a helpful assistant.",
    "You read messages and fill in a record.",
    "Answer with one JSON object and nothing else.",
    "You are a careful assistant that answers in JSON.",
    "Copy what the text says; use null for what it does not say.",
    "Read the text and answer with a JSON object that fits the schema.",
    "You work at a front desk and file what people write.",
    "Be short and exact.",
    "Structured answers only.",
)


def compact(value: Json) -> str:
    """JSON without any space between its parts."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def some_system(rng: Random, chance: float) -> str | None:
    """A system text, or none."""
    return rng.choice(_SYSTEMS) if rng.random() < chance else None


def turns(
    exchanges: list[tuple[str, str]],
    *,
    system: str | None = None,
    prompt: float = PROMPT,
    first_answer: float = ANSWER,
) -> Document:
    """A conversation in the chat template's form.

    Args:
        exchanges: user messages and assistant answers, turn by turn.
        system: the system text, if there is one.
        prompt: weight of everything except answers.
        first_answer: weight of the first answer; lower if it cannot be known.
    """
    pieces: Document = []
    if system is not None:
        pieces.append((f"<|im_start|>system\n{system}<|im_end|>\n", prompt))
    for number, (user, answer) in enumerate(exchanges):
        pieces.append((f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", prompt))
        pieces.append((f"{answer}<|im_end|>", first_answer if number == 0 else ANSWER))
        pieces.append(("\n", prompt))
    return pieces
