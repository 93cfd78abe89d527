"""One constraint for both decoders: the engine in this process and the server.

Both compile the same text with llguidance, so that what is measured here is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import llguidance

from llm_lora.errors import UserError
from llm_lora.schema import AnswerSchema

_KEPT = 256
"""Schemas whose grammars are kept; a server sees few."""


@dataclass(frozen=True)
class Decoding:
    """`grammar` is for llguidance in this process, `request` the fields for vLLM's server."""

    grammar: str
    request: Mapping[str, Mapping[str, str]]


def decoding(schema: AnswerSchema) -> Decoding:
    """What holds answers to a schema, wherever they are decoded.

    Compact, without free white space; strings, arrays and numbers end; the end-of-turn token only
    behind a complete answer.

    Raises:
        UserError: the decoder refuses the schema (it refuses rather than accept what it cannot
            enforce).
    """
    grammar, error = _compiled(schema.constraint)
    if error:
        raise UserError(
            f"the decoder cannot enforce this schema: {error.splitlines()[0]}",
            where=schema.where,
            fix=f"llm-lora schema lint {schema.where} tells which keywords; --fix mends some",
        )
    return Decoding(grammar, request_fields(schema))


def request_fields(schema: AnswerSchema) -> Mapping[str, Mapping[str, str]]:
    """The fields of a request to vLLM that hold its answer to a schema.

    As text, so that the server compiles it once and compares it quickly ever after.
    `response_format` would be taken apart for each request, and some chat templates write it into
    the prompt, which the adapter has never seen.
    """
    return {"structured_outputs": {"json": schema.constraint}}


@lru_cache(_KEPT)
def _compiled(constraint: str) -> tuple[str, str]:
    """The grammar of a constraint, and what the compiler says against it."""
    grammar: str = llguidance.grammar_from("json_schema", constraint)
    error: str = llguidance.LLMatcher.validate_grammar(grammar, None)
    return grammar, error
