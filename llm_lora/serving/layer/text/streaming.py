"""Answers as streams of server-sent events: read while they pass, judged at the end."""

from __future__ import annotations

import re
import time

from llm_lora.serving.layer.exchange import Exchange
from llm_lora.serving.layer.text import judging
from llm_lora.serving.layer.text.judging import Answer, Judged

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


class Events:
    """Splits a stream into complete events, however it arrives in pieces."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events now complete, each with the blank line that ends it."""
        self._held += data
        events = []
        start = 0
        for blank in _BLANK_LINE.finditer(self._held, self._searched):
            events.append(bytes(self._held[start : blank.end()]))
            start = blank.end()
        del self._held[:start]
        # The last three bytes may be the start of a blank line.
        self._searched = max(0, len(self._held) - 3)
        return events

    def rest(self) -> bytes:
        """The rest that no blank line ended."""
        return bytes(self._held)


def payload(event: bytes) -> bytes:
    """The data of an event; empty for a comment."""
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


class Stream:
    """One streamed answer on its way to the client.

    Events pass unchanged and at once, with two exceptions: the chunk that ends an answer gains the
    `llm_lora` field, and the usage chunk is removed where the client did not ask for it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._events = Events()
        self._answers: dict[int, Answer] = {}
        self._judged: dict[int, Judged] = {}
        self._broken = False

    def feed(self, data: bytes) -> bytes:
        """The bytes to send to the client for the next bytes of the stream."""
        return b"".join(map(self._pass, self._events.feed(data)))

    def close(self) -> bytes:
        """Record the outcome of the stream; returns the rest to send."""
        if self._judged:
            judging.settle(self._exchange, list(self._judged.values()))
        if self._broken or not self._judged or len(self._judged) < len(self._answers):
            self._exchange.outcome = "error"
        return self._events.rest()

    def _pass(self, event: bytes) -> bytes:
        data = payload(event)
        if not data or data == b"[DONE]":
            return event
        try:
            chunk = judging.read(data)
        except ValueError:
            self._broken = True
            return event
        if chunk.error is not None:
            self._broken = True
        exchange = self._exchange
        if chunk.usage is not None:
            exchange.prompt_tokens = chunk.usage.prompt_tokens
            exchange.answer_tokens = chunk.usage.completion_tokens
            if exchange.include_usage_added and not chunk.choices:
                return b""
        ended = [judged for choice in chunk.choices if (judged := self._take(choice))]
        return judging.with_field(event, judging.field(exchange, ended)) if ended else event

    def _take(self, choice: judging.Choice) -> Judged | None:
        """Add a piece; returns the verdict if this piece ended the answer."""
        answer = self._answers.get(choice.index)
        if answer is None:
            answer = self._answers[choice.index] = Answer(choice.index)
        if answer.add(choice) and self._exchange.first_token is None:
            self._exchange.first_token = time.monotonic()
        if choice.finish_reason is None:
            return None
        judged = judging.judge(self._exchange.schema, answer)
        self._judged[choice.index] = judged
        return judged
