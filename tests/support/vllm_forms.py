"""vLLM's answers in their exact form, from a small ASGI application, for tests of the layer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lora.adapter.manifest import Manifest, Origin
from llm_lora.schema.answer import AnswerSchema
from llm_lora.serving.layer.exchange import Exchange
from llm_lora.store.store import Version

Message = dict[str, Any]

SCHEMA = AnswerSchema.from_text(
    json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "dose": {"type": "number"}},
            "required": ["name", "dose"],
            "additionalProperties": False,
        }
    )
)
VALID = '{"name":"Ibuprofen — 400 mg 💊","dose":1.50}'
INVALID = '{"name":"Ibuprofen","dose":"400"}'
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HEAD = {"id": "chatcmpl-1", "created": 1790000000, "model": "medical-qa@0123456789ab"}


def version(name: str = "medical-qa", number: int = 3, digest: str = "0" * 64) -> Version:
    return Version(
        name=name,
        number=number,
        digest=digest,
        folder=Path("nowhere"),
        base_name="tiny",
        base_digest="b" * 64,
        rank=8,
        modules=42,
        published={"event": "publish", "at": "2026-11-01T10:00:00+00:00", "by": "me", "why": ""},
        manifest=Manifest(digest="d" * 64, base=Origin("tiny", "b" * 64)),
        report=None,
    )


def exchange(**given: Any) -> Exchange:
    facts: dict[str, Any] = {
        "id": "r-1",
        "route": CHAT,
        "started": 0.0,
        "asked": "medical-qa",
        "version": version(),
        "schema": SCHEMA,
    }
    return Exchange(**facts | given)


def usage(prompt: int = 20, answer: int = 9) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer}


def event(value: dict[str, Any] | str) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def event_of_text(value: dict[str, Any]) -> bytes:
    """JSON like vLLM's: characters are not escaped."""
    return f"data: {json.dumps(value, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


def pieces(text: str, size: int = 4) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def chat_chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None}
    choice["finish_reason"] = finish
    if finish is not None:
        choice["stop_reason"] = None
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}


def chat_stream(
    *texts: str, finish: str = "stop", with_usage: bool = True, done: bool = True
) -> list[bytes]:
    """The events of a streamed chat answer; several texts are several choices, interleaved."""
    events = [
        event_of_text(chat_chunk(index, {"role": "assistant", "content": ""}))
        for index in range(len(texts))
    ]
    rows = [pieces(text) for text in texts]
    for step in range(max(map(len, rows))):
        for index, row in enumerate(rows):
            if step < len(row):
                events.append(event_of_text(chat_chunk(index, {"content": row[step]})))
            if step == len(row) - 1:
                events.append(event_of_text(chat_chunk(index, {}, finish)))
    if with_usage:
        last = {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": usage()}
        events.append(event_of_text(last))
    return [*events, event("[DONE]")] if done else events


def completion_stream(text: str, finish: str = "stop") -> list[bytes]:
    def chunk(piece: str, why: str | None) -> bytes:
        choice = {"index": 0, "text": piece, "logprobs": None, "finish_reason": why}
        choice["stop_reason"] = None
        return event_of_text({**HEAD, "object": "text_completion", "choices": [choice]})

    *first, last = pieces(text)
    return [*(chunk(piece, None) for piece in first), chunk(last, finish), event("[DONE]")]


def chat_answer(*texts: str | None, finish: str = "stop", **message: Any) -> bytes:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None, **message},
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": None,
        }
        for index, text in enumerate(texts)
    ]
    value = {**HEAD, "object": "chat.completion", "choices": choices, "usage": usage()}
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def completion_answer(text: str, finish: str = "stop") -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    value = {**HEAD, "object": "text_completion", "choices": [choice], "usage": usage()}
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def error_answer(status: int = 400) -> bytes:
    error = {"message": "the prompt is too long", "type": "BadRequestError", "param": None}
    return json.dumps({"error": {**error, "code": status}}).encode()


@dataclass
class Server:
    """Answers each request with the next of `answers`; the last one repeats.

    A list of bytes is a stream, sent piece by piece; bytes are a complete answer; an exception is
    raised.
    """

    answers: Sequence[list[bytes] | bytes | Exception]
    status: int = 200
    pause: float = 0.0
    """Seconds before each piece; a disconnect in that time ends the answer."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    scopes: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        self.scopes.append(scope)
        message = await receive()
        assert message["more_body"] is False
        length = dict(scope["headers"])[b"content-length"]
        assert int(length) == len(message["body"])
        self.asked.append(json.loads(message["body"]))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        listening = asyncio.create_task(_until_gone(receive))
        work = asyncio.create_task(self._send(answer, send))
        await asyncio.wait({listening, work}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if not work.done():
            self.cancelled += 1
            work.cancel()
            return
        work.result()

    async def _send(self, answer: list[bytes] | bytes, send: Any) -> None:
        stream = isinstance(answer, list)
        parts = answer if isinstance(answer, list) else [answer]
        if not stream:
            await asyncio.sleep(self.pause)
        kind = b"text/event-stream; charset=utf-8" if stream else b"application/json"
        headers = [(b"content-type", kind)]
        if not stream:
            headers.append((b"content-length", str(len(parts[0])).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for part in parts:
            if stream:
                await asyncio.sleep(self.pause)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
