"""Random valid answers of a schema, for tests, prompts and demonstrations, without a model."""

from __future__ import annotations

import copy
import random
from typing import Any

from llm_lora.errors import UserError
from llm_lora.grammar.features import used
from llm_lora.grammar.matching import Grammar, Refused, compile_schema, draw
from llm_lora.grammar.probes import Probes
from llm_lora.schema import AnswerSchema, dumps

_TRIES = 60
"""Draws per requested answer; draws that do not fit the schema are discarded."""
_LONGEST = 4000


def sample(schema: AnswerSchema, count: int, seed: int = 0) -> list[str]:
    """Different valid answers in canonical form, fewer if the schema allows fewer.

    They are drawn from the decoder's grammar, without the keywords that it refuses, and judged.

    Raises:
        UserError: no valid answer was found.
    """
    grammar = _grammar(schema)
    source = random.Random(seed)
    found: dict[str, None] = {}
    for _ in range(_TRIES * count):
        text = draw(grammar, source, _LONGEST)
        if text is not None and schema.judge(text).valid:
            found[schema.canonical_text(text)] = None
        if len(found) == count:
            break
    if not found:
        raise UserError(
            "no valid answer was found", where=schema.where, fix="run llm-lora schema lint on it"
        )
    return list(found)


def _grammar(schema: AnswerSchema) -> Grammar:
    try:
        return compile_schema(schema)
    except Refused:
        pass
    document = copy.deepcopy(schema.document)
    probes = Probes("vllm")
    for use in used(schema.parts):
        node: Any = document
        for key in use.node.place:
            node = node[key]
        for feature in use.features:
            if probes.feature(feature).state == "refused":
                for keyword in _KEYWORDS.get(feature, (feature.partition(":")[0],)):
                    node.pop(keyword, None)
    probes.save()
    try:
        return compile_schema(AnswerSchema.from_text(dumps(document), schema.where))
    except Refused as error:
        raise UserError(
            f"no answers can be drawn: {error}",
            where=schema.where,
            fix="run llm-lora schema lint to see which keywords the decoder refuses",
        ) from None


_KEYWORDS = {"if": ("if", "then", "else")}
