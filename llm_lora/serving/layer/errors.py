"""The layer's refusals, in the error format of the OpenAI API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json
from starlette.types import Send

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


class Refused(Exception):
    """A request that is not answered.

    `status` is the HTTP status, `param` the field at fault, `code` a machine-readable name,
    `retry_after` the seconds after which a retry makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = list(headers)
        if retry_after is not None:
            self.headers.append((b"retry-after", str(max(1, math.ceil(retry_after))).encode()))


def body(
    status: int, message: str, *, param: str | None = None, code: str | None = None, **more: object
) -> bytes:
    """The JSON of an error; `more` is added beside it."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return to_json({"error": error, **more})


async def send_error(send: Send, status: int, message: str, **more: Any) -> None:
    """Answer with an error; `more` as for `Refused`."""
    await send_refused(send, Refused(status, message, **more))


async def send_refused(send: Send, refused: Refused) -> None:
    """Answer with a refusal."""
    content = body(refused.status, refused.message, param=refused.param, code=refused.code)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *refused.headers,
    ]
    await send(
        {"type": "http.response.start", "status": refused.status, "headers": headers},
    )
    await send({"type": "http.response.body", "body": content})
