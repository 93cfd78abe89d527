"""The answer of `GET /v1/models`: the names that a request may use, in OpenAI's format."""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp

from llm_lora.files import Json
from llm_lora.serving.layer import asgi
from llm_lora.serving.layer.catalog import Catalog
from llm_lora.serving.layer.errors import Refused


async def listing(app: ASGIApp, catalog: Catalog) -> Json:
    """The base as the server describes it, followed by the names of every adapter.

    Raises:
        Refused: the server does not describe its base (502).
    """
    reply = await asgi.call(app, "GET", "/v1/models")
    try:
        cards = json.loads(reply.body)["data"]
        card = next(card for card in cards if card["id"] == catalog.base_name)
    except (ValueError, KeyError, TypeError, StopIteration):
        raise Refused(502, "the server did not list its models") from None
    # The server names the base's folder, which clients must not see.
    base = {**card, "root": catalog.base_name}
    names = await asyncio.to_thread(catalog.known)
    adapters = [
        {**base, "id": name, "owned_by": "llm-lora", "root": name, "parent": catalog.base_name}
        for name in names
        if name != catalog.base_name
    ]
    return {"object": "list", "data": [base, *adapters]}
