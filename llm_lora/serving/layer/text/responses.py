"""The path of an answer from server to client: passed on, judged, retried if need be."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_lora.schema import Verdict
from llm_lora.serving.layer import errors
from llm_lora.serving.layer.asgi import Header, replay, with_json
from llm_lora.serving.layer.exchange import Exchange
from llm_lora.serving.layer.text import judging
from llm_lora.serving.layer.text.judging import Answer, Judged, Usage
from llm_lora.serving.layer.text.streaming import Stream

RETRY_TEMPERATURE = 0.5
"""Lowest temperature of a retry: at 0 it would only repeat the first answer."""

logger = logging.getLogger(__name__)

_SAID_REASONS = 3
"""Most reasons in the message of a 422; its `llm_lora` field has more."""


async def answer(
    app: ASGIApp, scope: Scope, body: bytes, exchange: Exchange, receive: Receive, send: Send
) -> None:
    """Ask the server and pass its answer on, judged; fills `exchange`.

    Streams pass as they come; refusals of the server pass unchanged. When `receive` reports that
    the client is gone, so does the server's, and it drops the request. Exceptions of the server
    propagate; while `exchange.status` is 0, nothing has been sent.
    """
    if exchange.stream and exchange.on_invalid != "flag":
        exchange.outcome, exchange.status = "error", 400
        await errors.send_error(
            send,
            400,
            f'"on_invalid": "{exchange.on_invalid}" needs a complete answer, but this one is '
            'streamed; leave out "stream" or "on_invalid"',
        )
        return
    exchange.outcome = "aborted"  # until an answer is complete
    line = _Line(scope, receive, send)
    try:
        reply = await _ask(app, body, exchange.id, exchange, line)
        if reply is not None and exchange.on_invalid == "retry" and reply.wrong:
            exchange.retried = True
            reply = _better(reply, await _ask_again(app, body, exchange, line))
        if reply is not None and not line.gone:
            await _send(reply, exchange, line)
    except Exception:
        if not line.gone:
            exchange.outcome = "error"
            raise
    if line.gone:
        exchange.outcome = "aborted"


class _Line:
    """The connection to the client; `gone` once it closed before the answer's end."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.gone = False
        self._ended = False
        self._scope, self._receive, self._send = scope, receive, send

    def scope(self, body: bytes, request_id: str) -> Scope:
        """The scope of the client's request for the server."""
        return with_json(self._scope, body, request_id)

    def receiver(self, body: bytes) -> Receive:
        """What the server receives: the body and, later, the disconnect."""
        return replay(body, self._listen)

    async def _listen(self) -> Message:
        while (message := await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = not self._ended
        return message

    async def send(self, message: Message) -> None:
        """Send to the client; an OSError of the web server means that the client is gone."""
        try:
            await self._send(message)
        except OSError:
            self.gone = True
            raise
        if message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)


@dataclass(frozen=True, slots=True)
class _Reply:
    """A complete answer of the server; `judged` is empty where it refused or failed."""

    start: Message
    body: bytes
    judged: Sequence[Judged]
    usage: Usage

    @property
    def wrong(self) -> bool:
        return any(one.outcome in judging.WRONG for one in self.judged)


class _Incoming:
    """The server's messages: a stream passes to the client at once, anything else is kept."""

    def __init__(self, exchange: Exchange, line: _Line) -> None:
        self.start: Message | None = None
        self.stream: Stream | None = None
        self.ended = False
        self._parts: list[bytes] = []
        self._exchange, self._line = exchange, line

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    async def take(self, message: Message) -> None:
        """Handle the server's next message."""
        if self._line.gone:
            return
        if message["type"] == "http.response.start":
            self.start = message
            if message["status"] == 200 and _is_stream(message):
                self.stream = Stream(self._exchange)
                self._exchange.status = 200
                await self._line.send(_start(message, 200, judging.headers(self._exchange)))
        elif message["type"] == "http.response.body":
            data, more = message.get("body", b""), message.get("more_body", False)
            self.ended = not more
            if self.stream is None:
                self._parts.append(data)
                return
            out = self.stream.feed(data) if more else self.stream.feed(data) + self.stream.close()
            if out or not more:
                await self._line.send(
                    {"type": "http.response.body", "body": out, "more_body": more}
                )


async def _ask(
    app: ASGIApp, body: bytes, request_id: str, exchange: Exchange, line: _Line
) -> _Reply | None:
    """The server's answer; None after a stream, which was passed on, or if the client is gone."""
    incoming = _Incoming(exchange, line)
    await app(line.scope(body, request_id), line.receiver(body), incoming.take)
    if line.gone or (incoming.stream and incoming.ended):
        return None
    if incoming.start is None or not incoming.ended:
        exchange.outcome = "error"
        return None
    return _read(incoming.start, incoming.body, exchange)


async def _ask_again(app: ASGIApp, body: bytes, exchange: Exchange, line: _Line) -> _Reply | None:
    """The answer to a retry; None where the retry failed in any way."""
    try:
        return await _ask(app, _another_try(body), f"{exchange.id}-retry", exchange, line)
    except Exception:
        # Once something was sent, or the client is gone, the first answer cannot stand in.
        if line.gone or exchange.status:
            raise
        logger.exception("%s: the retry failed; the first answer is sent", exchange.id)
        return None


def _is_stream(start: Message) -> bool:
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    return bool(kinds) and kinds[0].startswith(b"text/event-stream")


def _read(start: Message, body: bytes, exchange: Exchange) -> _Reply:
    """Read and judge a complete answer."""
    judged = []
    usage = Usage()
    if start["status"] == 200:
        try:
            found = judging.read(body)
        except ValueError:
            return _Reply(start, body, (), usage)
        usage = found.usage or usage
        for choice in found.choices:
            one = Answer(choice.index)
            one.add(choice)
            judged.append(judging.judge(exchange.schema, one))
    return _Reply(start, body, judged, usage)


def _another_try(body: bytes) -> bytes:
    """The same request with another seed and some temperature."""
    request = json.loads(body)
    seed, temperature = request.get("seed"), request.get("temperature")
    request["seed"] = (seed if isinstance(seed, int) else 0) ^ 1
    if isinstance(temperature, int | float):
        request["temperature"] = max(temperature, RETRY_TEMPERATURE)
    return json.dumps(request).encode()


def _better(first: _Reply, second: _Reply | None) -> _Reply:
    """The second answer unless it failed, with the token counts of both."""
    if second is None or not second.judged:
        return first
    tokens = Usage(
        first.usage.prompt_tokens + second.usage.prompt_tokens,
        (first.usage.completion_tokens or 0) + (second.usage.completion_tokens or 0),
    )
    return _Reply(second.start, second.body, second.judged, tokens)


async def _send(reply: _Reply, exchange: Exchange, line: _Line) -> None:
    """Send a complete answer, or the 422 that replaces it."""
    status, body = int(reply.start["status"]), reply.body
    extra: list[Header] = []
    if reply.judged:
        judging.settle(exchange, reply.judged)
        exchange.prompt_tokens = reply.usage.prompt_tokens
        exchange.answer_tokens = reply.usage.completion_tokens
        report = judging.field(exchange, reply.judged)
        extra = judging.headers(exchange)
        if report is not None:
            extra.append((b"x-llm-lora-verdict", exchange.outcome.encode()))
        if exchange.on_invalid == "error" and reply.wrong:
            status = 422
            body = errors.body(status, _complaint(exchange.verdict), code="invalid_answer")
        body = judging.with_field(body, report)
    else:
        exchange.outcome = "error"
    exchange.status = status
    extra.append((b"content-length", str(len(body)).encode()))
    await line.send(_start(reply.start, status, extra))
    await line.send({"type": "http.response.body", "body": body})


def _complaint(verdict: Verdict | None) -> str:
    """Short reason why an answer is invalid."""
    reasons = verdict.reasons if verdict else ()
    found = "; ".join(map(str, reasons[:_SAID_REASONS]))
    # It may quote half of a surrogate pair, which UTF-8 cannot encode.
    return f"the answer does not fit the schema: {found}".encode(errors="replace").decode()


def _start(start: Message, status: int, extra: Sequence[Header]) -> Message:
    """The start message for the client: other headers, another length."""
    kept = [header for header in start["headers"] if header[0].lower() != b"content-length"]
    return {**start, "status": status, "headers": [*kept, *extra]}
