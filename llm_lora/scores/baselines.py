"""Trivial baselines: answers that need no model, which any useful adapter must beat.

constant   one and the same answer: of some training answers the one that scores best in training
frequent   the most frequent value of each closed field, everything else left out
nearest    the answer to the training prompt with the most words in common
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from llm_lora.example import Example
from llm_lora.schema import AnswerSchema
from llm_lora.schema import json_text as jsontext
from llm_lora.scores import fields, scoring
from llm_lora.scores.preference import some
from llm_lora.scores.scoring import Tolerances

BASELINES: Mapping[str, str] = {
    "constant": "the best constant answer",
    "frequent": "the most frequent closed values",
    "nearest": "the answer to the most similar training prompt",
}
"""The baselines, and what they answer."""

_CANDIDATES = 32
"""Constant answers that are tried; the most frequent ones first."""

_JUDGES = 200
"""Training examples that choose between them."""

_REMEMBERED = 5000
"""Training prompts that the nearest one is looked for in."""

_SEED = 17


def baselines(
    schema: AnswerSchema | None,
    train: Sequence[Example],
    held_out: Sequence[Example],
    tolerances: Tolerances | None = None,
) -> dict[str, list[str]]:
    """The answers of each baseline to the held-out examples, which it knows only by their prompts.

    Without a schema there are no closed values, so `frequent` is left out. Without training
    examples there are no baselines.
    """
    if not train:
        return {}
    found: dict[str, list[str]] = {}
    constants = [answer for answer, _ in Counter(one.answer for one in train).most_common()]
    constants = constants[:_CANDIDATES]
    if schema is not None:
        common = _frequent(schema, train)
        found["frequent"] = [common] * len(held_out)
        constants.append(common)
    found["constant"] = [_best(schema, constants, train, tolerances)] * len(held_out)
    found["nearest"] = _nearest(some(train, _REMEMBERED, _SEED), held_out)
    return {name: found[name] for name in BASELINES if name in found}


def _best(
    schema: AnswerSchema | None,
    constants: Sequence[str],
    train: Sequence[Example],
    tolerances: Tolerances | None,
) -> str:
    """The constant answer with the highest F1 on training examples; of equals the first."""
    judges = [
        scoring.read(schema, example.answer, "")[0] for example in some(train, _JUDGES, _SEED)
    ]

    def f1(constant: str) -> float:
        _, verdict = scoring.read(schema, constant, constant)
        scored = (scoring.score(schema, judge, verdict, tolerances) for judge in judges)
        return scoring.micro_f1(field for found in scored for field in found.values()) or 0.0

    return max(constants, key=f1)


def _frequent(schema: AnswerSchema, train: Sequence[Example]) -> str:
    """An answer of the most frequent value of each closed field outside of lists."""
    references = [jsontext.parse(example.answer) for example in train]

    def fill(known: fields.Shape, values: Sequence[Any]) -> Any:
        if isinstance(known, fields.Record):
            inner = {
                key: fill(member, [one.get(key) for one in values if isinstance(one, dict)])
                for key, member in known.members.items()
            }
            return {key: value for key, value in inner.items() if value is not None} or None
        if known != fields.Leaf("closed"):
            return None
        # As text, since 1 and true are the same key.
        counted = Counter(jsontext.dumps(value) for value in values)
        return jsontext.parse(counted.most_common(1)[0][0]) if counted else None

    return jsontext.dumps(fill(fields.shape(schema), references) or {})


def _nearest(train: Sequence[Example], held_out: Sequence[Example]) -> list[str]:
    """For each held-out prompt the answer to the training prompt of the highest word F1."""
    import numpy as np

    lengths = np.zeros(len(train))
    holders: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for number, example in enumerate(train):
        words = scoring.words(example.prompt[-1].content)
        lengths[number] = words.total()
        for word, count in words.items():
            numbers, counts = holders[word]
            numbers.append(number)
            counts.append(count)
    index = {word: tuple(map(np.array, held)) for word, held in holders.items()}
    found = []
    for example in held_out:
        words = scoring.words(example.prompt[-1].content)
        shared = np.zeros(len(train))
        for word in words.keys() & index.keys():
            where, times = index[word]
            shared[where] += np.minimum(words[word], times)
        # Of equally similar prompts the first; without any word in common that is the first of all.
        found.append(train[int(np.argmax(shared / (lengths + max(1, words.total()))))].answer)
    return found
