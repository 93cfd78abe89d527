"""Findings of the data check that are not errors, each with a count and an example place."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from llm_lora.data.finding import Finding
from llm_lora.data.text.split import Split
from llm_lora.example import Example, Message
from llm_lora.schema import quote

if TYPE_CHECKING:
    from llm_lora.recipe.text import Recipe
    from llm_lora.schema import AnswerSchema

FEW_HELD_OUT = 30
"""With fewer, a single answer moves a score by more than three points."""

FEW_VALIDATION = 10
"""With fewer, single examples dominate the validation loss and early stopping."""

# A closed field with the same value almost everywhere is learned as a constant.
_ONE_SIDED = 0.98
_ENOUGH_ANSWERS = 50


def notice(
    split: Split,
    recipe: Recipe,
    schema: AnswerSchema | None,
    tokens: Mapping[str, tuple[int, int]],
    context_length: int | None,
) -> Iterator[Finding]:
    """Findings on examples that passed every check.

    Args:
        split: the examples by side.
        tokens: lengths of prompt and answer by the example's id, if they were measured.
        context_length: the base's maximum context in tokens, if known.
    """
    sides = split.sides
    yield from _near_duplicates(split)
    yield from _contradictions(sides["train"])
    limit = recipe.generate.max_new_tokens
    if limit is not None:
        measured = [(example, *tokens[example.id]) for example in sides["held_out"] if tokens]
        long = [example for example, _, answer in measured if answer > limit]
        if long:
            message = f"held-out answers are longer than generate.max_new_tokens ({limit})"
            yield Finding("cut_off", message, len(long), long[0].where)
        room = (context_length or math.inf) - limit
        tight = [example for example, prompt, _ in measured if prompt > room]
        if tight:
            message = (
                f"held-out prompts leave less room than generate.max_new_tokens ({limit}) in the "
                f"base's context of {context_length}"
            )
            yield Finding("no_room", message, len(tight), tight[0].where)
    if schema is not None:
        yield from _closed_fields(sides["train"], schema.document)
    if (few := len(sides["held_out"])) < FEW_HELD_OUT:
        message = f"held-out examples are few; {FEW_HELD_OUT} or more make scores more precise"
        yield Finding("few_held_out", message, few)
    if (few := len(sides["validation"])) < FEW_VALIDATION:
        message = (
            f"validation examples are few; {FEW_VALIDATION} or more make early stopping more "
            "reliable"
        )
        yield Finding("few_validation", message, few)


def _near_duplicates(split: Split) -> Iterator[Finding]:
    if not split.clusters:
        return
    aside = f"; {len(split.aside)} of them set aside" if split.aside else ""
    largest = max(split.clusters, key=len)
    message = (
        f"rows have near-duplicates, in {len(split.clusters)} clusters (the largest has "
        f"{len(largest)} rows), each on one side{aside}"
    )
    yield Finding("near_duplicates", message, sum(map(len, split.clusters)), largest[0].where)


def _contradictions(train: Sequence[Example]) -> Iterator[Finding]:
    answers: dict[tuple[Message, ...], set[str]] = {}
    for example in train:
        answers.setdefault(example.prompt, set()).add(example.answer)
    torn = [example for example in train if len(answers[example.prompt]) > 1]
    if torn:
        message = "training rows have the same prompt as another, with a different answer"
        yield Finding("contradictions", message, len(torn), torn[0].where)


def _closed_fields(train: Sequence[Example], document: Mapping[str, object]) -> Iterator[Finding]:
    """Closed top-level fields whose training answers have only one value, or lack some values."""
    properties = document.get("properties")
    answers = [json.loads(example.answer) for example in train]
    if not isinstance(properties, dict) or len(answers) < _ENOUGH_ANSWERS:
        return
    for name, field in properties.items():
        values = _closed(field)
        seen = Counter(json.dumps(a[name]) for a in answers if isinstance(a, dict) and name in a)
        if not values or not seen:
            continue
        missing = [value for value in values if not seen[json.dumps(value)]]
        if missing:
            shown = ", ".join(json.dumps(value, ensure_ascii=False) for value in missing[:5])
            message = f"{quote(name)}: no training answer has {shown}, so it will not be learned"
            yield Finding("unseen_values", message, len(missing))
        (common, count), *_ = seen.most_common(1)
        if count >= _ONE_SIDED * len(answers):
            share = f"{count / len(answers):.0%}"
            message = f"{quote(name)} is {common} in {share} of training answers"
            yield Finding("one_sided", message, count)


def _closed(field: object) -> list[object]:
    """The values that a field may take, if the schema lists them."""
    if not isinstance(field, dict):
        return []
    if isinstance(values := field.get("enum"), list):
        return values
    return [False, True] if field.get("type") == "boolean" else []
