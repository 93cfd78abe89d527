"""Verdicts on finished answers, and their report to the client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from llm_lora.schema import KINDS, AnswerSchema, Reason, Verdict
from llm_lora.serving.layer.exchange import Exchange, Outcome

CUT_OFF = {
    "length": "the token limit cut the answer off; allow more tokens (max_tokens)",
    "repetition": "the server stopped the answer because it repeated itself",
    "abort": "the server aborted the answer",
}
"""Messages for finish reasons that leave an answer incomplete."""

WRONG: tuple[Outcome, ...] = (*(name for name in reversed(KINDS) if name != "valid"), "truncated")
"""The outcomes that `on_invalid` acts on, from worst to best."""

TITLES: dict[Outcome, tuple[str, str]] = {
    **{
        name: ("good", f"✓ {kind.title}") if name == "valid" else ("bad", f"✗ {kind.title}")
        for name, kind in KINDS.items()
    },
    "truncated": ("bad", "✗ cut off"),
    "unjudged": ("", "not judged"),
}
"""How the playground shows the outcome of an answer: its tone (good, bad or empty) and words."""

SHOWN_REASONS = 20
"""Most reasons in an answer's `llm_lora` field, to bound its size."""

_FROM_WORST: tuple[Outcome, ...] = (*WRONG, "valid", "unjudged")


class Message(msgspec.Struct):
    """The model's message, or the next piece of it."""

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw | None = None


class Choice(msgspec.Struct):
    """One answer of several, whole (`message`), a piece (`delta`), or plain text (either)."""

    index: int = 0
    message: Message | None = None
    delta: Message | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> Message:
        return self.message or self.delta or Message(self.text)


class Usage(msgspec.Struct):
    """Tokens of a request; `completion_tokens` counts all its answers together."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class Completion(msgspec.Struct):
    """The parts that are read of an answer's JSON or of a chunk; the rest stays as it is."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw | None = None


class Answer:
    """One answer, assembled from its pieces."""

    __slots__ = ("finish", "index", "pieces", "tools")

    def __init__(self, index: int) -> None:
        self.index = index
        self.pieces: list[str] = []
        self.finish: str | None = None
        self.tools = False

    def add(self, choice: Choice) -> bool:
        """Add a piece; true if it holds anything that the model said."""
        said = choice.said
        if said.content:
            self.pieces.append(said.content)
        called = bool(said.tool_calls or said.function_call)
        self.tools |= called
        self.finish = choice.finish_reason
        return bool(said.content or said.reasoning or called)


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer and its verdict; `verdict` is None where it was not judged."""

    index: int
    text: str
    finish: str | None
    outcome: Outcome
    verdict: Verdict | None

    def to_dict(self) -> dict[str, Any]:
        """The form for the client: verdict, reasons and finish reason."""
        reasons = self.verdict.to_dict()["reasons"][:SHOWN_REASONS] if self.verdict else []
        return {"verdict": self.outcome, "reasons": reasons, "finish": self.finish}


def judge(schema: AnswerSchema | None, answer: Answer) -> Judged:
    """Judge a finished answer; tool calls are not judged."""
    text = "".join(answer.pieces)
    outcome: Outcome = "unjudged"
    verdict = None
    if schema is not None and not answer.tools:
        verdict = schema.judge(text)
        outcome = verdict.kind
        if not verdict.valid and answer.finish in CUT_OFF:
            # The position where the text breaks off only reflects the token limit.
            others = (found for found in verdict.reasons if found.keyword != "truncated")
            cause = Reason("", answer.finish, CUT_OFF[answer.finish])
            verdict = replace(verdict, reasons=(cause, *others))
            outcome = "truncated"
    return Judged(answer.index, text, answer.finish, outcome, verdict)


def settle(exchange: Exchange, answers: Sequence[Judged]) -> None:
    """Record the outcome of a request: of several answers the worst counts.

    Raises:
        ValueError: there is no answer.
    """
    worst = min(answers, key=lambda one: _FROM_WORST.index(one.outcome))
    exchange.outcome = worst.outcome
    exchange.verdict = worst.verdict
    exchange.finish_reason = worst.finish
    exchange.answers = tuple(one.text for one in answers)


def field(exchange: Exchange, answers: Sequence[Judged]) -> dict[str, Any] | None:
    """The `llm_lora` field of a plain answer or of a chunk; None for the base, which has none.

    Raises:
        ValueError: there is no answer.
    """
    if exchange.version is None:
        return None
    worst = min(answers, key=lambda one: _FROM_WORST.index(one.outcome))
    found: dict[str, Any] = {
        "adapter": exchange.version.name,
        "version": exchange.version.number,
        **worst.to_dict(),
    }
    if exchange.retried:
        found["retried"] = True
    if len(answers) > 1:
        found["choices"] = [{"index": one.index, **one.to_dict()} for one in answers]
    return found


def with_field(document: bytes, value: dict[str, Any] | None) -> bytes:
    """A JSON object with an `llm_lora` field at its end, every other byte as it was."""
    if value is None:
        return document
    end = document.rindex(b"}")
    entry = b',"llm_lora":' + json.dumps(value, separators=(",", ":")).encode()
    return document[:end] + entry + document[end:]


def headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """Headers that name the version that answered; none for the base."""
    if exchange.version is None:
        return []
    return [
        (b"x-llm-lora-adapter", exchange.version.name.encode()),
        (b"x-llm-lora-version", str(exchange.version.number).encode()),
    ]


read = msgspec.json.Decoder(Completion).decode
"""Read an answer's JSON; raises msgspec.DecodeError (a ValueError) on any other form."""
