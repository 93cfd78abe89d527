"""Chat templates, compiled and rendered as transformers does it, without importing transformers.

Everything that depends on how templates are written is here: tags, filters, functions, the tokens
that they name, and the switches that they have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_lora.errors import UserError
from llm_lora.example import Message

# The tokens that transformers passes to a template by name
# (PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES).
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

_CLOCK = "strftime_now"
"""The function by which templates write the date."""


class ChatTemplate:
    """A compiled chat template; `where` names its file in messages."""

    def __init__(self, text: str, *, named_tokens: Mapping[str, str], where: str) -> None:
        self.text = text
        self._named_tokens = named_tokens
        self._where = where
        try:
            self._compiled = _environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"the chat template is broken: {error.message}",
                where=f"{where}:{error.lineno}",
                fix="restore the template of the model",
            ) from None

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads from outside, including its switches."""
        environment = _environment()
        # The clock is a function of ours, but what it says comes from outside.
        del environment.globals[_CLOCK]
        return frozenset(meta.find_undeclared_variables(environment.parse(self.text)))

    @property
    def switches(self) -> list[dict[str, object]]:
        """The arguments with which the template may write the answer directly, the best first."""
        plain: list[dict[str, object]] = [{}]
        if "enable_thinking" in self.variables:
            return [{"enable_thinking": False}, *plain]
        return plain

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        arguments: Mapping[str, object],
    ) -> str:
        """The text of a conversation.

        Raises:
            UserError: the template refuses these messages, for instance a system message.
        """
        try:
            return self._compiled.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._named_tokens,
                **arguments,
            )
        except jinja2.TemplateError as error:
            has_system = any(message.role == "system" for message in messages)
            raise UserError(
                f"the chat template refuses these messages: {error.message}",
                where=self._where,
                fix="remove data.system and the rows' system texts, and put them into the prompt"
                if has_system
                else "choose another base",
            ) from None
        except Exception as error:  # templates run any code: missing keys, wrong types, recursion
            raise UserError(
                f"the chat template fails on these messages: {type(error).__name__}: {error}",
                where=self._where,
                fix="restore the template of the model, or choose another base",
            ) from error


class _Generation(Extension):
    """The `{% generation %}` tag, which marks the assistant's text; it renders its body."""

    tags = {"generation"}  # noqa: RUF012 - the attribute as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja configured as in transformers (utils/chat_template_utils.py)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals[_CLOCK] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
