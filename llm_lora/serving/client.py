"""A client for a running llm-lora server: listing adapters, moving aliases, asking.

Keys come from the environment, never from arguments: `LLM_LORA_API_KEY` for use,
`LLM_LORA_ADMIN_KEY` for promoting, rolling back, canaries and history.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import httpx

from llm_lora.errors import UserError
from llm_lora.example import Message
from llm_lora.files import Json
from llm_lora.machine import is_loopback
from llm_lora.store import Event, Listed, Standing

API_KEY = "LLM_LORA_API_KEY"
ADMIN_KEY = "LLM_LORA_ADMIN_KEY"

_ADMIN = "/admin/"


@dataclass(frozen=True)
class Reply:
    """One answer of the server.

    `finish` is OpenAI's finish reason; token counts are the server's. `judged` is the
    server's `llm_lora` field: adapter, version, verdict and reasons; empty where there is none.
    """

    text: str
    finish: str
    prompt_tokens: int
    answer_tokens: int
    judged: Json


class Client:
    """Talks to one server; may be used from several threads at once.

    Every method that sends a request raises `UserError` with a remedy: no reply, or none in time;
    a reply from another kind of server; a missing or wrong key; a server that refuses, is full or
    failed.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Open no connection yet.

        Args:
            url: of the server, such as http://127.0.0.1:8000; with or without /v1.
            timeout: seconds to wait for an answer.
            transport: how to reach the server; the network where None.

        Raises:
            UserError: `url` is not a server address.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL:
            address = httpx.URL("")
        if address.scheme not in ("http", "https") or not address.host:
            raise UserError(
                "not a server address", where=url, fix="write it as http://127.0.0.1:8000"
            )
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            transport=transport,
            # A proxy set in the environment must not see local traffic, least of all keys.
            trust_env=not is_loopback(address.host),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def adapters(self) -> list[Listed]:
        """Every adapter that the server knows: versions, alias, what is loaded, counts."""
        found = self._ask("GET", "/v1/adapters")
        with self._understood():
            return [Listed.from_json(one) for one in found["data"]]

    def chat(self, model: str, messages: Sequence[Message], **options: object) -> Reply:
        """One answer, not streamed; `options` go into the request as they are."""
        body = {"model": model, "messages": as_json(messages), **options}
        answer = self._ask("POST", "/v1/chat/completions", body)
        with self._understood():
            choice, usage = answer["choices"][0], answer["usage"]
            return Reply(
                text=choice["message"]["content"] or "",
                finish=choice["finish_reason"],
                prompt_tokens=usage["prompt_tokens"],
                answer_tokens=usage["completion_tokens"],
                judged=answer.get("llm_lora") or {},
            )

    def tokenize(self, model: str, messages: Sequence[Message]) -> list[int]:
        """The token ids that the server feeds the model for these messages."""
        answer = self._ask("POST", "/tokenize", {"model": model, "messages": as_json(messages)})
        ids = answer.get("tokens")
        if not isinstance(ids, list):
            raise self._stranger()
        return ids

    def promote(
        self, name: str, version: int, *, why: str | None = None, force: bool = False
    ) -> Standing:
        """Point an alias at a version."""
        body = {"name": name, "version": version, "force": force}
        return self._move("/admin/promote", body, why)

    def rollback(self, name: str, *, why: str | None = None) -> Standing:
        """Point an alias at the version before."""
        return self._move("/admin/rollback", {"name": name}, why)

    def canary(
        self, name: str, version: int, share: float, *, why: str | None = None, force: bool = False
    ) -> Standing:
        """Send a share of an alias's requests, 0 to 1, to another version; 0 ends it."""
        body = {"name": name, "version": version, "share": share, "force": force}
        return self._move("/admin/canary", body, why)

    def history(self, name: str) -> list[Event]:
        """What happened to an adapter, oldest first."""
        found = self._ask("GET", "/admin/history", params={"name": name})
        with self._understood():
            return [Event.from_json(one) for one in found["data"]]

    def _move(self, path: str, body: Json, why: str | None) -> Standing:
        """Move an alias."""
        answer = self._ask("POST", path, body if why is None else {**body, "why": why})
        with self._understood():
            return Standing.from_json(answer)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Report an answer of another form than a server's."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._stranger() from None

    def _ask(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Json:
        """Ask for a JSON object."""
        variable = ADMIN_KEY if path.startswith(_ADMIN) else API_KEY
        key = os.environ.get(variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            response = self._http.request(method, path, json=body, params=params, headers=headers)
        except httpx.TimeoutException:
            raise UserError(
                f"no answer within {self._timeout:g} s",
                where=self.url + path,
                fix="the server may be busy or stuck; see its log",
            ) from None
        except httpx.TransportError as error:
            raise UserError(
                f"cannot reach the server: {error}",
                where=self.url,
                fix="check the address, or start one: llm-lora serve RUN",
            ) from None
        if not response.is_success:
            raise _refused(response, variable)
        try:
            value = response.json()
        except ValueError:
            raise self._stranger() from None
        if not isinstance(value, dict):
            raise self._stranger()
        return value

    def _stranger(self) -> UserError:
        return UserError(
            "the reply does not come from an llm-lora server",
            where=self.url,
            fix="check the address",
        )


def as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the OpenAI API wants them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _refused(response: httpx.Response, variable: str) -> UserError:
    """The error for an HTTP status that is no success."""
    said = _message(response)
    fix = {
        401: f"set {variable} to a key of the server",
        403: f"set {ADMIN_KEY} to an admin key of the server",
        404: "list what is served: llm-lora adapters --url URL",
        413: "send a smaller request",
        429: f"try again in {response.headers.get('Retry-After', 'a few')} s",
    }.get(response.status_code)
    if fix is None and response.status_code >= 500:
        fix = "see the server's log"
    return UserError(
        f"the server refused ({response.status_code}): {said}",
        where=str(response.request.url),
        fix=fix,
    )


def _message(response: httpx.Response) -> str:
    """The reason that the server gives: OpenAI's error message, or the raw text."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:200] or response.reason_phrase
