"""Requests to a model: read strictly, then completed with the adapter's terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic_core import from_json, to_json
from starlette.types import Scope

from llm_lora.files import Json
from llm_lora.schema import AnswerSchema, excerpt, quote
from llm_lora.serving.layer.asgi import header
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.exchange import OnInvalid
from llm_lora.serving.layer.terms import Terms

EXTENSION = "llm_lora"
"""The member of a request that is for the layer; the server never sees it."""

CHAT, COMPLETION, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"

_ON_INVALID: tuple[str, ...] = get_args(OnInvalid)
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a model as the client wrote it; `on_invalid` is None where it is not set."""

    route: str
    fields: Json
    model: str
    stream: bool
    schema_off: bool
    on_invalid: OnInvalid | None


@dataclass(frozen=True, slots=True)
class Completed:
    """The body for the server, and the schema for its answer (None: not judged)."""

    body: bytes
    schema: AnswerSchema | None
    usage_added: bool


def check_type(scope: Scope) -> None:
    """Accept only uncompressed JSON.

    Raises:
        Refused: another content type, or a compressed body (415).
    """
    kinds = header(scope, b"content-type")
    kind = kinds[0].partition(b";")[0].strip().lower() if len(kinds) == 1 else b""
    if kind != b"application/json":
        raise Refused(415, "send JSON, with the header `Content-Type: application/json`")
    if any(value.strip().lower() != b"identity" for value in header(scope, b"content-encoding")):
        raise Refused(415, "send the body uncompressed")


def read_object(body: bytes) -> Json:
    """The JSON object in a body.

    Raises:
        Refused: the body is anything else (400).
    """
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}", code="not_json") from None
    if not isinstance(fields, dict):
        raise Refused(400, "the body is not a JSON object", code="not_json")
    return fields


def read(body: bytes, route: str) -> Request:
    """Read a request; members that the layer does not use are left to the server.

    Raises:
        Refused: the request is invalid (400).
    """
    fields = read_object(body)
    for name, value in fields.items():
        if isinstance(value, int) and abs(value) >= _LARGEST:
            raise _wrong(name, "is a number beyond 64 bits")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "is missing; name an adapter")
    stream = _typed(fields, "stream", bool, "true or false")
    extension = fields.pop(EXTENSION, None)
    schema_off, on_invalid = _read_extension({} if extension is None else extension)
    _refuse_prompt_scores(fields, route)
    _check_penalty(fields.get("repetition_penalty"))
    if route == CHAT or (route == TOKENIZE and "messages" in fields):
        _check_messages(fields.get("messages"))
        _typed(fields, "chat_template_kwargs", dict, "an object")
    _typed(fields, "stream_options", dict, "an object")
    return Request(route, fields, model, bool(stream), schema_off, on_invalid)


def complete(request: Request, served: str, terms: Terms | None) -> Completed:
    """The request for the server: for the model `served`, completed with an adapter's terms.

    Members that the request sets are never changed. `terms` is None for the base.

    Raises:
        Refused: it sets `on_invalid`, but no schema would judge the answer; or it restricts
            the tokens, which the schema does already (400).
    """
    fields = {**request.fields, "model": served}
    schema = None
    constraint = b""
    if terms is not None:
        if request.route != COMPLETION and "messages" in fields:
            fields["messages"] = _with_system(fields["messages"], terms.system)
            _fill_template(fields, terms.template)
        if request.route != TOKENIZE:
            _fill_sampling(fields, request.route, terms)
            if not (request.schema_off or _asks_for_own_form(fields)):
                schema, constraint = terms.schema, terms.constraint
                if fields.get("allowed_token_ids") is not None:
                    raise _wrong(
                        "allowed_token_ids",
                        "is decided by the answer schema; "
                        'switch it off with "llm_lora": {"schema": "off"}',
                    )
    if schema is None and request.on_invalid in ("retry", "error"):
        raise Refused(
            400,
            f'"on_invalid": "{request.on_invalid}" needs an answer schema to judge by, '
            "but none applies to this request",
            param=f"{EXTENSION}.on_invalid",
        )
    usage_added = request.stream and _ask_for_usage(fields)
    return Completed(_write(fields, constraint), schema, usage_added)


def _refuse_prompt_scores(fields: Json, route: str) -> None:
    """Refuse requests for log-probabilities of the prompt, directly or through `echo`.

    In a server with adapters vLLM 0.32 computes them with the wrong number of rows: on a CPU one
    such request beside another kills the engine, and with it every running answer.
    """
    echoed = fields.get("echo") and (route == CHAT or fields.get("logprobs") is not None)
    name = "prompt_logprobs" if fields.get("prompt_logprobs") is not None else "echo"
    if echoed or name == "prompt_logprobs":
        raise _wrong(name, "asks for log-probabilities of the prompt, which are not served")


def _check_penalty(value: object) -> None:
    """Refuse penalties that make the scores of repeated tokens overflow: no token is left then."""
    if isinstance(value, (int, float)) and not 1e-3 <= value <= 1e3:
        raise _wrong("repetition_penalty", "is not between 0.001 and 1000")


def _read_extension(value: object) -> tuple[bool, OnInvalid | None]:
    """Whether the schema is switched off, and what to do with invalid answers."""
    if not isinstance(value, dict):
        raise _wrong(EXTENSION, "is not an object")
    unknown = [key for key in value if key not in ("schema", "on_invalid")]
    if unknown:
        name = f"{EXTENSION}.{unknown[0][:60]}"
        raise _wrong(name, "is unknown; the members are schema and on_invalid")
    schema, on_invalid = value.get("schema", "on"), value.get("on_invalid")
    if schema not in ("on", "off"):
        raise _wrong(f"{EXTENSION}.schema", 'is neither "on" nor "off"')
    if on_invalid is not None and on_invalid not in _ON_INVALID:
        raise _wrong(f"{EXTENSION}.on_invalid", f"is not one of {', '.join(_ON_INVALID)}")
    return schema == "off", on_invalid


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "is not a list of messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _wrong(f"messages[{number}]", "is not an object with a role")


def _with_system(messages: list[Json], system: str | None) -> list[Json]:
    """Messages with the adapter's system prompt, unless they have their own.

    An empty one means no system prompt, as in training data.
    """
    if any(message["role"] in ("system", "developer") for message in messages):
        return [m for m in messages if m["role"] != "system" or m.get("content") != ""]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def _fill_template(fields: Json, options: Mapping[str, object]) -> None:
    if options:
        fields["chat_template_kwargs"] = {**options, **(fields.get("chat_template_kwargs") or {})}


def _fill_sampling(fields: Json, route: str, terms: Terms) -> None:
    for name, value in terms.sampling.items():
        if fields.get(name) is None:
            fields[name] = value
    names = ("max_completion_tokens", "max_tokens") if route == CHAT else ("max_tokens",)
    if terms.max_tokens is not None and all(fields.get(name) is None for name in names):
        fields[names[0]] = terms.max_tokens


def _asks_for_own_form(fields: Json) -> bool:
    """Whether the request sets the form of its answer itself; removes members that are null."""
    for name in ("response_format", "structured_outputs"):
        if fields.get(name) is not None:
            return True
        fields.pop(name, None)
    if fields.get("tools") and fields.get("tool_choice") != "none":
        return True
    # With these the answer contains or continues text of the request.
    return any(fields.get(name) for name in ("echo", "continue_final_message"))


def _ask_for_usage(fields: Json) -> bool:
    """Make a stream end with its token count; returns whether the client had not asked for it."""
    options = fields.get("stream_options") or {}
    if options.get("include_usage") is True:
        return False
    fields["stream_options"] = {**options, "include_usage": True}
    return True


def _write(fields: Json, constraint: bytes) -> bytes:
    text = to_json(fields, inf_nan_mode="constants")
    if b"Infinity" in text and not _finite(fields):
        raise Refused(400, "the body has a number that is too large", code="not_json")
    return text[:-1] + b"," + constraint + b"}" if constraint else text


def _finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _typed(fields: Json, name: str, kind: type, wanted: str) -> Any:
    """A member that is absent, null or of one type."""
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise _wrong(name, f"is not {wanted}")
    return value


def _wrong(name: str, what: str) -> Refused:
    return Refused(400, f"{quote(name)} {excerpt(what, 200)}", param=name[:80])
