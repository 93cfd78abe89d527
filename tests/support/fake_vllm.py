"""An in-process stand-in for vLLM's server: its routes, LoRA loading and answers.

Its behaviour follows vLLM 0.32 (entrypoints/serve/lora, entrypoints/openai):
a second load under a name is a 400, a missing folder a 404, an unknown model a 404, and
`/adapters` and `/invocations` do the same as the guarded routes without a key.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

BASE = "tiny"

# Routes of vLLM that no client may reach.
CLOSED = [
    ("GET", "/load"),
    ("GET", "/ping"),
    ("POST", "/ping"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("POST", "/adapters"),
    ("DELETE", "/adapters/{name}"),
    ("POST", "/invocations"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{id}"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/chat/completions/batch"),
    ("POST", "/v1/chat/completions/render"),
    ("POST", "/inference/v1/generate"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/sleep"),
    ("POST", "/collective_rpc"),
    ("POST", "/scale_elastic_ep"),
]


def error(status: int, message: str, kind: str = "BadRequestError") -> JSONResponse:
    told = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": told}, status)


class FakeVllm:
    """The server; an ASGI application whose state tests can inspect."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        """Loaded adapters: name → folder."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Path and body of each request to a model."""
        self.headers: list[dict[str, str]] = []
        self.reached: list[str] = []
        """Paths of closed routes that were reached."""
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.most = 0
        """The most adapters that were ever loaded at once."""
        self.running = 0
        self.torn: list[str] = []
        """Adapters unloaded while they answered."""
        self.dead: set[str] = set()
        """Adapters that load and change nothing."""
        self.failing_loads = 0
        """How many of the next loads end in a 500."""
        self.load_seconds = 0.0
        self.piece_seconds = 0.0
        self.slow: dict[str, float] = {}
        """Models that take longer for each piece than `piece_seconds`."""
        self.answer: str | None = None
        """The text of every answer; None: the name of its model."""
        self.healthy = True
        routes = [
            Route("/health", self._health),
            Route("/version", lambda _: JSONResponse({"version": "0.32.0"})),
            Route("/metrics", lambda _: PlainTextResponse("# TYPE vllm:x gauge\nvllm:x 1.0\n")),
            Route("/v1/models", self._models),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
            Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            *(Route(path, self._closed, methods=[method]) for method, path in CLOSED),
        ]
        self.app = Starlette(routes=routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    async def _closed(self, request: Request) -> Response:
        self.reached.append(request.url.path)
        return JSONResponse({})

    async def _health(self, _: Request) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def _models(self, _: Request) -> Response:
        cards = [
            {"id": BASE, "object": "model", "created": 1, "owned_by": "vllm", "root": "/base"},
            *(
                {"id": name, "object": "model", "root": path}
                for name, path in self.adapters.items()
            ),
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, folder = body["lora_name"], body["lora_path"]
        self.loads.append(name)
        await asyncio.sleep(self.load_seconds)
        if self.failing_loads > 0:
            self.failing_loads -= 1
            return error(500, "out of memory", "InternalServerError")
        if name in self.adapters:
            return error(
                400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput"
            )
        if not (Path(folder) / "adapter_config.json").is_file():
            return error(404, "No adapter found", "NotFoundError")
        self.adapters[name] = folder
        self.most = max(self.most, len(self.adapters))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        await asyncio.sleep(self.load_seconds / 2)
        del self.adapters[name]
        self.unloads.append(name)
        return PlainTextResponse("Success")

    async def _tokenize(self, request: Request) -> Response:
        body = await self._take(request)
        if isinstance(body, Response):
            return body
        ids = list(json.dumps(body.get("messages", body.get("prompt"))).encode())
        return JSONResponse({"count": len(ids), "max_model_len": 1024, "tokens": ids})

    async def _chat(self, request: Request) -> Response:
        body = await self._take(request)
        return await self._cancellable(request, body, "chat.completion")

    async def _completion(self, request: Request) -> Response:
        body = await self._take(request)
        return await self._cancellable(request, body, "text_completion")

    async def _cancellable(
        self, request: Request, body: dict[str, Any] | Response, kind: str
    ) -> Response:
        """The answer, unless the client disconnects first, like vLLM's with_cancellation."""
        if isinstance(body, Response):
            return body

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        work = asyncio.create_task(self._answer(body, kind))
        listening = asyncio.create_task(gone())
        done, pending = await asyncio.wait({work, listening}, return_when="FIRST_COMPLETED")
        for task in pending:
            task.cancel()
        return work.result() if work in done else Response()

    async def _take(self, request: Request) -> dict[str, Any] | Response:
        body = json.loads(await request.body())
        assert int(request.headers["content-length"]) == len(await request.body())
        assert "prompt_logprobs" not in body, "this would end vLLM's engine"
        if not str(body.get("cache_salt")).startswith("probe"):
            self.asked.append((request.url.path, body))
            self.headers.append(dict(request.headers))
        model = body.get("model")
        if model != BASE and model not in self.adapters:
            return error(404, f"The model `{model}` does not exist.", "NotFoundError")
        for name in ("temperature", "top_p"):
            if not isinstance(body.get(name, 0.0), int | float):
                return error(400, f"{name}: not a number")
        return body

    async def _answer(self, body: dict[str, Any], kind: str) -> Response:
        model = body["model"]
        head = {"id": "x-1", "object": kind, "created": 1, "model": model}
        text = self.answer if self.answer is not None else f'{{"urgent":true,"by":"{model}"}}'
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        if body.get("stream"):
            return StreamingResponse(
                self._stream(body, head, text, usage), media_type="text/event-stream"
            )
        self.running += 1
        try:
            for _ in range(3):
                await asyncio.sleep(self.slow.get(model, self.piece_seconds))
                self._check(model)
        finally:
            self.running -= 1
        said = {"message": {"role": "assistant", "content": text}}
        if kind == "text_completion":
            said = {"text": text}
        scores = self._logprobs(model) if body.get("logprobs") else None
        choice = {"index": 0, **said, "finish_reason": "stop", "logprobs": scores}
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    async def _stream(
        self, body: dict[str, Any], head: dict[str, Any], text: str, usage: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        chat = head["object"] == "chat.completion"
        head = {**head, "object": "chat.completion.chunk"} if chat else head

        def event(choices: list[Any], **more: Any) -> bytes:
            return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n".encode()

        def choice(piece: str, finish: str | None) -> dict[str, Any]:
            said = {"delta": {"content": piece}} if chat else {"text": piece}
            return {"index": 0, **said, "finish_reason": finish}

        self.running += 1
        try:
            for at in range(0, len(text), 8):
                await asyncio.sleep(self.piece_seconds)
                self._check(body["model"])
                yield event([choice(text[at : at + 8], None)])
            yield event([choice("", "stop")])
            if (body.get("stream_options") or {}).get("include_usage"):
                yield event([], usage=usage)
            yield b"data: [DONE]\n\n"
        finally:
            self.running -= 1

    def _check(self, model: str) -> None:
        if model != BASE and model not in self.adapters:
            self.torn.append(model)

    def _logprobs(self, model: str) -> dict[str, Any] | None:
        return logprobs(0.0 if model == BASE or model in self.dead else 0.5)


def logprobs(shift: float, tokens: str = "abc") -> dict[str, Any]:
    """Log-probabilities in vLLM's form, each lowered by `shift`."""
    return {
        "content": [
            {
                "token": token,
                "logprob": -1.0 - shift,
                "top_logprobs": [
                    {"token": token, "logprob": -1.0 - shift},
                    {"token": "other", "logprob": -2.0 - shift},
                ],
            }
            for token in tokens
        ]
    }
