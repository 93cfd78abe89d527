"""The playground: one page that talks only to the server it came from."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.types import Send

from llm_lora.files import ASSETS
from llm_lora.serving.layer import asgi
from llm_lora.serving.layer.asgi import Header
from llm_lora.serving.layer.text import judging

TEMPLATES = ASSETS / "playground"


async def respond(send: Send, task: str) -> None:
    """Answer GET / with the page."""
    content, headers = _response(task)
    await asgi.send(send, 200, content, b"text/html; charset=utf-8", headers)


def page(task: str) -> str:
    """The page of a server for a task; everything in it comes from the package."""
    files = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return files.get_template(f"{task}.html.jinja").render(verdicts=judging.TITLES)


@cache
def _response(task: str) -> tuple[bytes, list[Header]]:
    """The page, and headers that allow only its own script and style."""
    content = page(task).encode()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(content, 'script')}",
            f"style-src {_hash(content, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return content, [
        (b"content-security-policy", policy.encode()),
        (b"cache-control", b"no-cache"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]


def _hash(page: bytes, tag: str) -> str:
    """The hash of the one inline script or style sheet, for the policy."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
