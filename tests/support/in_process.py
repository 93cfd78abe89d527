"""An in-process client of an ASGI application, which can also misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = {"content-type": "application/json"}


@dataclass
class Got:
    """The reply; `status` is 0 where none came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        told: dict[str, Any] = self.json["error"]
        assert isinstance(told["message"], str) and told["message"]
        assert isinstance(told["type"], str)
        return told

    @property
    def events(self) -> list[dict[str, Any]]:
        rows = [row.removeprefix(b"data: ") for row in self.body.split(b"\n\n") if row]
        return [json.loads(row) for row in rows if row != b"[DONE]"]

    @property
    def text(self) -> str:
        """The text of the answer, streamed or not."""
        if self.body.startswith(b"data: "):
            choices = [choice for event in self.events for choice in event.get("choices", [])]
            return "".join(
                c.get("text") or c.get("delta", {}).get("content") or "" for c in choices
            )
        choice = self.json["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])


async def ask(
    app: Any,
    method: str,
    path: str,
    value: Any = None,
    *,
    raw: bytes | Sequence[bytes] | None = None,
    headers: dict[str, str] | None = None,
    key: str | None = None,
    query: str = "",
    stalls: bool = False,
    leave: asyncio.Event | None = None,
    leave_after_parts: int | None = None,
) -> Got:
    """One request; `raw` replaces the JSON of `value`, in several pieces if it is a list.

    `stalls`: the body never ends. The client disconnects when `leave` is set, or after that many
    parts of the answer.
    """
    pieces = [json.dumps(value).encode()] if raw is None and value is not None else raw
    pieces = [pieces] if isinstance(pieces, bytes) else list(pieces or [b""])
    sent = dict(headers if headers is not None else JSON)
    if isinstance(raw, bytes) or raw is None:
        sent.setdefault("content-length", str(len(pieces[0])))
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), text.encode()) for name, text in sent.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    got = Got()
    gone = leave or asyncio.Event()
    queue = list(pieces)

    async def receive() -> dict[str, Any]:
        if queue and not gone.is_set():
            piece = queue.pop(0)
            more = bool(queue) or stalls
            return {"type": "http.request", "body": piece, "more_body": more}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if gone.is_set():
            return
        if message["type"] == "http.response.start":
            assert got.status == 0, "two answers"
            got.status = message["status"]
            names = [name.decode().lower() for name, _ in message["headers"]]
            assert len(names) == len(set(names)), f"a header stands there twice: {names}"
            got.headers = {n.decode().lower(): v.decode() for n, v in message["headers"]}
        else:
            assert got.status and not got.complete
            got.parts.append(message.get("body", b""))
            got.complete = not message.get("more_body", False)
            if leave_after_parts is not None and len(got.parts) >= leave_after_parts:
                gone.set()

    await app(scope, receive, send)
    if got.complete and "content-length" in got.headers:
        assert int(got.headers["content-length"]) == len(got.body)
    return got


async def chat(app: Any, model: str, **more: Any) -> Got:
    """A chat request with one message."""
    keywords = {
        name: more.pop(name) for name in ("key", "leave", "leave_after_parts") if name in more
    }
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
    return await ask(app, "POST", "/v1/chat/completions", body, **keywords)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something certain to happen, however busy the machine is."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
