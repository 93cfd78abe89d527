"""A small ASGI application behind a real socket, for tests of HTTP clients."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

Handler = Callable[[Any], Any]
"""The answer to a request's JSON body: an object, `(status, object)`, or a list of server
events, which are streamed one by one."""


@dataclass
class Application:
    """Answers by method and path, and records requests."""

    routes: dict[tuple[str, str], Handler]
    pause: float = 0.0
    """Seconds before an answer, and between the events of a stream."""
    asked: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)
    """Path, body and headers of every request."""
    now: int = 0
    most: int = 0
    """Requests being answered at once: now, and at most so far."""

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        assert scope["type"] == "http"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        value = json.loads(body) if body else None
        headers = {name.decode(): text.decode() for name, text in scope["headers"]}
        self.asked.append((scope["path"], value, headers))
        handler = self.routes.get((scope["method"], scope["path"]))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.pause)
            answer = handler(value) if handler else (404, {"error": {"message": "no such route"}})
            await self._send(answer, send)
        finally:
            self.now -= 1

    async def _send(self, answer: Any, send: Any) -> None:
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        stream = isinstance(content, list)
        kind = b"text/event-stream" if stream else b"application/json"
        headers = [(b"content-type", kind)]
        if status == 429:
            headers.append((b"retry-after", b"7"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for event in content if stream else []:
            text = event if isinstance(event, str) else json.dumps(event)
            data = f"data: {text}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
            await asyncio.sleep(self.pause)
        end = (
            b""
            if stream
            else content
            if isinstance(content, bytes)
            else json.dumps(content).encode()
        )
        await send({"type": "http.response.body", "body": end})


@contextmanager
def serving(application: Any) -> Iterator[str]:
    """The address of a server that runs for the length of the context."""
    config = uvicorn.Config(application, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def said(text: object) -> dict[str, Any]:
    """A chat completion with this text."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}
