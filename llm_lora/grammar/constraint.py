"""The decoding constraint, shared by the engine in this process and the server.

Both compile the same text with llguidance, so the measured constraint is the served one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import llguidance

from llm_lora.errors import UserError
from llm_lora.schema import AnswerSchema

_KEPT = 256
"""Number of schemas whose grammars are cached; a server uses only a few."""


@dataclass(frozen=True)
class Decoding:
    """A constraint: `grammar` for llguidance in this process, `request` the fields for vLLM."""

    grammar: str
    request: Mapping[str, Mapping[str, str]]


def decoding(schema: AnswerSchema) -> Decoding:
    """The constraint that makes answers fit a schema, in either decoder.

    Answers are compact, without free white space; strings, arrays and numbers are bounded; the
    end-of-turn token is allowed only after a complete answer.

    Raises:
        UserError: the decoder refuses the schema (it refuses rather than accept what it cannot
            enforce).
    """
    grammar, error = _compiled(schema.constraint)
    if error:
        raise UserError(
            f"the decoder cannot enforce this schema: {error.splitlines()[0]}",
            where=schema.where,
            fix=f"llm-lora schema lint {schema.where} shows which keywords; --fix repairs some",
        )
    return Decoding(grammar, request_fields(schema))


def request_fields(schema: AnswerSchema) -> Mapping[str, Mapping[str, str]]:
    """The fields of a request to vLLM that constrain its answer to a schema.

    The schema is sent as text, so that the server compiles it once and later only compares it.
    vLLM would parse `response_format` for each request, and some chat templates write it into the
    prompt, which the adapter was not trained on.
    """
    return {"structured_outputs": {"json": schema.constraint}}


@lru_cache(_KEPT)
def _compiled(constraint: str) -> tuple[str, str]:
    """The grammar of a constraint, and the compiler's error, empty if there is none."""
    grammar: str = llguidance.grammar_from("json_schema", constraint)
    error: str = llguidance.LLMatcher.validate_grammar(grammar, None)
    return grammar, error
