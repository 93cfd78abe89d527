"""The probe of a loaded adapter: comparison of its answer with the base's."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp

from llm_lora.serving.layer import asgi
from llm_lora.serving.layer.terms import Terms

LEAST = 1e-4
"""Difference of log-probabilities below which two models count as equal."""

NOISE = 0.05
"""Largest difference of a base from itself that is held against an adapter's effect."""

_ROUNDS = 2
_TOKENS = 8
_TOP = 20
"""Most log-probabilities per token that vLLM returns by default."""

_QUESTION = "Read this message and answer it: on Monday 3 boxes arrived, 2 of them were damaged."


@dataclass(frozen=True, slots=True)
class _Step:
    """A token of the answer, and the log-probabilities of the likeliest ones in its place."""

    token: str
    likeliest: Mapping[str, float]


class ProbeFailed(Exception):
    """The server did not answer the probe."""


async def difference(app: ASGIApp, served: str, base: str, terms: Terms) -> float:
    """How much an adapter differs from the base in a short answer to the same question.

    The largest difference of log-probabilities (in nats) of a token in the same place after the
    same words; 0 where the base differs from itself as much: on a busy GPU the same question is
    not always computed the same way.

    Raises:
        ProbeFailed: the server refused or failed.
    """
    for _ in range(_ROUNDS):
        first = await _ask(app, base, terms)
        found = _distance(first, await _ask(app, served, terms))
        noise = _distance(first, await _ask(app, base, terms))
        if found > max(LEAST, min(noise, NOISE)):
            return found
    return 0.0


async def _ask(app: ASGIApp, model: str, terms: Terms) -> Sequence[_Step]:
    """The first tokens of a model's answer."""
    messages = [{"role": "user", "content": _QUESTION}]
    if terms.system is not None:
        messages.insert(0, {"role": "system", "content": terms.system})
    reply = await asgi.call(
        app,
        "POST",
        "/v1/chat/completions",
        {
            "model": model,
            "messages": messages,
            "chat_template_kwargs": terms.template,
            "temperature": 0,
            "max_tokens": _TOKENS,
            "logprobs": True,
            "top_logprobs": _TOP,
            "return_tokens_as_token_ids": True,
            # Computed afresh each time: cached prefixes may differ in the last bits.
            "cache_salt": f"probe-{uuid.uuid4().hex}",
        },
    )
    if reply.status != 200:
        raise ProbeFailed(f"status {reply.status}: {reply.body[:300].decode(errors='replace')}")
    try:
        steps = json.loads(reply.body)["choices"][0]["logprobs"]["content"]
        return [
            _Step(step["token"], {one["token"]: one["logprob"] for one in step["top_logprobs"]})
            for step in steps
        ]
    except (ValueError, KeyError, TypeError, IndexError):
        raise ProbeFailed("the server returned no log-probabilities") from None


def _distance(one: Sequence[_Step], other: Sequence[_Step]) -> float:
    """The largest difference, up to the first token that differs.

    Raises:
        ProbeFailed: there is nothing to compare.
    """
    found: list[float] = []
    for mine, yours in zip(one, other, strict=False):
        shared = mine.likeliest.keys() & yours.likeliest.keys()
        if not shared:
            return math.inf
        found += [abs(mine.likeliest[token] - yours.likeliest[token]) for token in shared]
        if mine.token != yours.token:
            break
    if not found:
        raise ProbeFailed("the server returned no log-probabilities")
    return max(found)
