"""The playground: one page that asks the server it came from, and nothing else on any network."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.types import Send

from llm_lora.serving import asgi
from llm_lora.serving.asgi import Header

PAGE = Path(__file__).parent.parent / "assets" / "playground.html"


async def respond(send: Send) -> None:
    """Answer GET / with the page."""
    page, headers = _page()
    await asgi.send(send, 200, page, b"text/html; charset=utf-8", headers)


@cache
def _page() -> tuple[bytes, list[Header]]:
    """The page, and headers that let run what is in it and keep everything else out."""
    page = PAGE.read_bytes()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(page, 'script')}",
            f"style-src {_hash(page, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return page, [
        (b"content-security-policy", policy.encode()),
        (b"cache-control", b"no-cache"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]


def _hash(page: bytes, tag: str) -> str:
    """The one inline script or style sheet, as a policy names it."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
