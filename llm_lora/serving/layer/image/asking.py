"""The handling of a request for pictures, from arrival to end."""

from __future__ import annotations

import time
from dataclasses import replace

from pydantic_core import to_json
from starlette.types import Scope

from llm_lora.files import Json
from llm_lora.lora_prompt import Pick
from llm_lora.serving.layer import asgi
from llm_lora.serving.layer.asgi import Header
from llm_lora.serving.layer.connection import Connection
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.exchange import Exchange
from llm_lora.serving.layer.image import requests as picture_requests
from llm_lora.serving.layer.image.requests import PictureRequest
from llm_lora.serving.layer.residents import Resident
from llm_lora.serving.layer.text import Asking, requests
from llm_lora.store import Version

PAINT = "/paint"
"""The inner route that paints."""


class Painting(Asking):
    """Handles requests for pictures; every name in a request is looked up once, in the store.

    A request that names adapters, in its prompt or in `adapters`, is painted with those alone;
    otherwise with the adapter that `model` names, or with the bare base.
    """

    async def serve(self, scope: Scope, line: Connection) -> None:
        """Answer a request for pictures.

        Raises:
            Refused: it cannot be answered.
            Gone: the client went away before its pictures were done.
        """
        started = time.monotonic()
        requests.check_type(scope)
        body = await asgi.read_body(scope, line.receive, self._config.limits.max_body_bytes)
        request = picture_requests.read(body)
        versions = {name: await self._find(request, name) for name in request.names}
        own = versions[request.model]
        defaults = own.manifest.sampling if own is not None else {}
        order: Json = {
            "prompt": request.text,
            "seeds": picture_requests.seeds(request),
            **picture_requests.settings(request, defaults, self._config.resolution),
        }
        picks = request.picks or ((Pick(request.model),) if own is not None else ())
        worn = self._worn(picks, versions)
        await self._enter(line)
        residents: list[Resident] = []
        try:
            for pick, version in worn:
                residents.append(await self._resident(pick.name, version, line))
            loaded = [resident.version for resident in residents]
            await self._paint(line, request, order, picks, loaded, body, started)
        finally:
            for resident in residents:
                self._residents.release(resident)
            self.gate.leave()

    async def _find(self, request: PictureRequest, name: str) -> Version | None:
        """The version that a name means, or None for the base."""
        try:
            return await self._catalog.find(name)
        except Refused as error:
            if error.param == "model" and name != request.model:
                error.param = "adapters" if _given(request, name) else "prompt"
            raise

    def _worn(
        self, picks: tuple[Pick, ...], versions: dict[str, Version | None]
    ) -> list[tuple[Pick, Version]]:
        """The adapters to paint with, without duplicates.

        Raises:
            Refused: one is the base, two are the same, or there are too many (400).
        """
        limit = self._config.max_resident
        if len(picks) > limit:
            raise picture_requests.wrong("adapters", f"names more than {limit}, the limit here")
        worn: list[tuple[Pick, Version]] = []
        for pick in picks:
            version = versions[pick.name]
            if version is None:
                raise picture_requests.wrong("adapters", f"names {pick.name}, which is the base")
            for other, same in worn:
                if same == version:
                    both = f"{other.name} and {pick.name}"
                    raise picture_requests.wrong("adapters", f"names {both}, which are the same")
            worn.append((pick, version))
        return worn

    async def _paint(
        self,
        line: Connection,
        request: PictureRequest,
        order: Json,
        picks: tuple[Pick, ...],
        versions: list[Version],
        body: bytes,
        started: float,
    ) -> None:
        # A request counts for the adapter that it names first.
        exchange = Exchange(
            id=line.id,
            route="/v1/images/generations",
            started=started,
            asked=request.model,
            version=versions[0] if versions else None,
            outcome="aborted",
        )
        worn = [
            replace(pick, name=one.served_name) for pick, one in zip(picks, versions, strict=True)
        ]
        order["adapters"] = [
            {"name": pick.name, "unet": pick.unet, "text": pick.text} for pick in worn
        ]
        with self._recorded(exchange, line, body):
            reply = await asgi.unless_gone(
                line.receive, asgi.call(self._app, "POST", PAINT, order), lambda _: None
            )
            exchange.status = reply.status
            exchange.outcome = "painted" if reply.status == 200 else "error"
            if reply.status != 200:
                await asgi.send(line.send, reply.status, reply.body, b"application/json")
                return
            told = _told(request, order, picks, versions, self._catalog.base_name)
            content = reply.body[:-1] + b"," + to_json(told)[1:]
            await asgi.send(line.send, 200, content, b"application/json", _headers(picks, versions))


def _given(request: PictureRequest, name: str) -> bool:
    """Whether the name stands in `adapters`, and not in the prompt."""
    return any(one.name == name for one in request.body.adapters or ())


def _told(
    request: PictureRequest,
    order: Json,
    picks: tuple[Pick, ...],
    versions: list[Version],
    base: str,
) -> Json:
    """The answer's record of how its pictures were made, enough to reproduce them."""
    how = ("steps", "guidance", "negative_prompt", "scheduler")
    return {
        "output_format": "png",
        "size": f"{order['width']}x{order['height']}",
        "llm_lora": {
            "base": base,
            "adapters": [
                {
                    "name": version.name,
                    "version": version.number,
                    "digest": version.digest,
                    "served": version.served_name,
                    "weight": pick.unet,
                }
                | ({"text_weight": pick.text} if pick.text != pick.unet else {})
                for pick, version in zip(picks, versions, strict=True)
            ],
            "seeds": order["seeds"],
            **{name: order[name] for name in how},
        },
    }


def _headers(picks: tuple[Pick, ...], versions: list[Version]) -> list[Header]:
    """Names, versions and digests, in the order in which the adapters were added."""
    if not versions:
        return []
    joined = {
        b"x-llm-lora-adapter": [version.name for version in versions],
        b"x-llm-lora-version": [str(version.number) for version in versions],
        b"x-llm-lora-digest": [version.digest for version in versions],
        b"x-llm-lora-weight": [f"{pick.unet:g}" for pick in picks],
    }
    return [(name, ", ".join(values).encode()) for name, values in joined.items()]
