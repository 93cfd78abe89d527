"""ASGI helpers for the layer: reading a body, answering, calling the inner app.

Plain messages instead of starlette's requests and responses: a body is limited while it arrives,
bytes of JSON go out as they are, and a wait must end when the client goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_lora.serving.layer.errors import Refused

T = TypeVar("T")
Header = tuple[bytes, bytes]

_BODY_SECONDS = 60.0
"""How long a client may take to send its request."""

_LENGTH_DIGITS = 20

_JSON: Header = (b"content-type", b"application/json")


class Gone(Exception):
    """The client went away before it got its answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply of the inner app."""

    status: int
    headers: Sequence[Header]
    body: bytes


class Inner:
    """The app that the layer wraps.

    A server adds itself to the scope of each request, and its routes look for it there; calls that
    start in the layer get it as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._server: dict[str, object] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "app" in scope:
            self._server = {"app": scope["app"]}
        await self._app({**self._server, **scope}, receive, send)


def header(scope: Scope, name: bytes) -> list[bytes]:
    """Every value of a request header; `name` in lower case."""
    return [value for key, value in scope["headers"] if key == name]


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body of a request.

    Raises:
        Refused: it is larger than `limit` bytes (413), takes too long to arrive (408), or
            announces an invalid length (400).
        Gone: the client went away.
    """
    length = header(scope, b"content-length")
    if length and length[0].isdigit():
        # Python refuses to convert a number of thousands of digits.
        if len(length[0]) > _LENGTH_DIGITS:
            raise Refused(
                400,
                "the header `Content-Length` is not a valid length",
                headers=[(b"connection", b"close")],
            )
        if int(length[0]) > limit:
            raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise _too_large(limit)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refused(
            408,
            f"the request did not arrive within {_BODY_SECONDS:.0f} s",
            headers=[(b"connection", b"close")],
        ) from None
    return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first, and then what the client does."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def with_json(scope: Scope, body: bytes, request_id: str) -> Scope:
    """The scope for the inner app: another body, no API keys, no compressed reply."""
    dropped = (
        b"accept-encoding",
        b"authorization",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"x-request-id",
    )
    kept = [pair for pair in scope["headers"] if pair[0] not in dropped]
    kept += [
        _JSON,
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    return {**scope, "headers": kept}


async def send(
    send: Send, status: int, content: bytes, kind: bytes, headers: Sequence[Header] = ()
) -> None:
    """Answer with a whole body of the content type `kind`."""
    length = (b"content-length", str(len(content)).encode())
    start: Message = {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", kind), length, *headers],
    }
    await send(start)
    await send({"type": "http.response.body", "body": content})


async def send_json(send_: Send, status: int, value: object) -> None:
    """Answer with JSON."""
    await send(send_, status, to_json(value), _JSON[1])


async def call(app: ASGIApp, method: str, path: str, value: object = None) -> Reply:
    """Ask the inner app, from within; `value` is sent as JSON.

    Raises:
        ConnectionError: the app ended without a complete reply.
        Exception: whatever the app raises.
    """
    content = b"" if value is None else to_json(value)
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [_JSON, (b"content-length", str(len(content)).encode())],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
    }
    start: Message | None = None
    parts: list[bytes] = []
    ended = False

    async def stay() -> Message:
        # Never reports a disconnect; whoever listens for one is cancelled after the reply.
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never

    async def take(message: Message) -> None:
        nonlocal start, ended
        if message["type"] == "http.response.start":
            start = message
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            ended = not message.get("more_body", False)

    await app(scope, replay(content, stay), take)
    if start is None or not ended:
        raise ConnectionError(f"{method} {path}: the server gave no complete answer")
    return Reply(start["status"], list(start.get("headers", [])), b"".join(parts))


async def unless_gone(
    receive: Receive, work: Coroutine[Any, Any, T], undo: Callable[[T], object]
) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    `undo` gets a result that arrived too late to be returned.

    Raises:
        Gone: the client went away.
    """
    task = asyncio.create_task(work)
    listener = asyncio.create_task(_gone(receive))
    delivered = False
    try:
        await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        delivered = True
        return task.result()
    finally:
        listener.cancel()
        if not delivered:
            task.cancel()
            task.add_done_callback(lambda done: _undo(done, undo))


def _undo(task: asyncio.Task[T], undo: Callable[[T], object]) -> None:
    if not task.cancelled() and task.exception() is None:
        undo(task.result())


async def _gone(receive: Receive) -> None:
    """Ends when the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int) -> Refused:
    return Refused(
        413,
        f"the request is larger than {limit:,} bytes",
        headers=[(b"connection", b"close")],
    )
