"""The client's connection for one request, with its deadline."""

from __future__ import annotations

import asyncio
import uuid

from starlette.types import Message, Receive, Send

from llm_lora.serving.layer import errors
from llm_lora.serving.layer.errors import Refused


class Connection:
    """Receives from the client and sends to it.

    After `seconds` it reports that the client has disconnected: to a server this is the one signal
    that ends all the work it does for a request. `id` names the request in the answer's headers,
    in the log and to the server.
    """

    def __init__(self, receive: Receive, send: Send, seconds: float) -> None:
        self.id = uuid.uuid4().hex
        self.began = False
        self.gone = False
        self._ended = False
        self._streams = False
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """The client's next message; "http.disconnect" once it is gone or the time is up."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            return {"type": "http.disconnect"}

    @property
    def late(self) -> bool:
        """Whether the deadline has passed and the answer is not complete."""
        return not self._ended and asyncio.get_running_loop().time() >= self._deadline

    async def send(self, message: Message) -> None:
        """Send to the client."""
        if message["type"] == "http.response.start":
            self.began = True
            headers = list(message.get("headers", []))
            self._streams = any(
                name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in headers
            )
            message = {**message, "headers": [*headers, (b"x-request-id", self.id.encode())]}
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        try:
            await self._send(message)
        except OSError:
            self.gone = True
            raise

    async def refuse(self, refused: Refused) -> None:
        """Report a refusal to the client in the way that is still open.

        Once a plain answer has begun there is none: it stays incomplete, which clients detect.
        """
        if not self.began:
            await errors.send_refused(self.send, refused)
        elif self._streams and not self._ended:
            content = errors.body(refused.status, refused.message, code=refused.code)
            await self.send({"type": "http.response.body", "body": b"data: " + content + b"\n\n"})

    def overdue(self) -> Refused:
        """The refusal for a request whose deadline has passed."""
        return Refused(
            504, f"no complete answer within {self._seconds:g} s", code="request_timeout"
        )
