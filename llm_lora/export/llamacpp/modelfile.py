"""Modelfiles for Ollama: the chat template in Go, sampling as in training, end tokens."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

from llm_lora.adapter import Manifest
from llm_lora.base import Chat
from llm_lora.errors import UserError
from llm_lora.example import Message

_CONTEXT = 8192
"""Most tokens of context: Ollama reserves memory for all of them."""

_SYSTEM, _USER, _ANSWER = "sYsTeM-tExT", "uSeR-tExT", "aNsWeR-tExT"


@dataclass(frozen=True)
class Turns:
    """A chat template in parts: the text that it writes around each message.

    `opening` stands before a conversation without a system message, `reply` before the answer.
    """

    opening: str
    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]
    reply: str

    @classmethod
    def of(cls, chat: Chat, begin: str, where: str) -> Turns:
        """Split a template by rendering it, and verify the parts on other conversations.

        Args:
            chat: the template.
            begin: the token that the server puts before every prompt, left out here; or "".
            where: the template's path, for errors.

        Raises:
            UserError: the template does more than write text around each message.
        """
        system, user = Message("system", _SYSTEM), Message("user", _USER)
        answer = Message("assistant", _ANSWER)
        single = chat.render([user], add_generation_prompt=False)
        long = chat.render([system, user, answer, user], add_generation_prompt=False)
        first, _, after_user = single.removeprefix(begin).partition(_USER)
        before_system, _, rest = long.removeprefix(begin).partition(_SYSTEM)
        from_system, _, rest = rest.partition(_USER)
        to_answer, _, rest = rest.partition(_ANSWER)
        from_answer = rest.partition(_USER)[0]
        # Text between two messages may belong to either; it must fit in every order of messages.
        before_user = _whole(_common_end([first, from_system, from_answer]), chat.special_tokens)
        turns = cls(
            opening=first.removesuffix(before_user),
            system=(before_system, from_system.removesuffix(before_user)),
            user=(before_user, after_user),
            answer=(to_answer.removeprefix(after_user), from_answer.removesuffix(before_user)),
            reply=chat.render([user], add_generation_prompt=True).removeprefix(single),
        )
        other = Message("user", 'a\n{b} "c"')
        for messages in (
            [other],
            [system, other],
            [other, answer, other],
            [system, user, answer, other, answer, other],
        ):
            wanted = chat.render(messages, add_generation_prompt=True).removeprefix(begin)
            if turns.write(messages) != wanted:
                raise UserError(
                    "its chat template cannot be converted for Ollama",
                    where=where,
                    fix="serve the file with llama.cpp, which reads the template itself: --gguf",
                )
        return turns

    def write(self, messages: Sequence[Message]) -> str:
        """A conversation up to the start of the answer."""
        parts = {"system": self.system, "user": self.user, "assistant": self.answer}
        text = self.opening if messages[0].role != "system" else ""
        for message in messages:
            before, after = parts[message.role]
            text += before + message.content + after
        return text + self.reply

    def in_go(self) -> str:
        """The template in Go."""
        return (
            "{{ range $i, $m := .Messages }}"
            '{{ if and (eq $i 0) (ne $m.Role "system") }}' + _text(self.opening) + "{{ end }}"
            '{{ if eq $m.Role "system" }}' + _around(*self.system) + "{{ end }}"
            '{{ if eq $m.Role "user" }}' + _around(*self.user) + "{{ end }}"
            '{{ if eq $m.Role "assistant" }}' + _around(*self.answer) + "{{ end }}"
            "{{ end }}" + _text(self.reply)
        )


def _common_end(texts: Sequence[str]) -> str:
    """The longest text that all of them end with."""
    return commonprefix([text[::-1] for text in texts])[::-1]  # noqa: RUF071 - of characters


def _whole(text: str, tokens: Collection[str]) -> str:
    """A text without the tail of a token that begins before it."""
    starts = [text.find(token) for token in tokens if token in text]
    return text[min(starts, default=0) :]


def _around(before: str, after: str) -> str:
    return _text(before) + "{{ $m.Content }}" + _text(after)


def _text(text: str) -> str:
    """Text as a Go string: line breaks and braces survive the parser of the file.

    Go reads JSON's escapes as JSON does, except for surrogate pairs.
    """
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def write(
    *,
    model: str,
    adapter: str | None,
    turns: Turns,
    ends: Sequence[str],
    manifest: Manifest,
    context: int,
    where: Path,
) -> str:
    """The text of a Modelfile.

    Args:
        model, adapter: GGUF files, named as seen from the Modelfile.
        turns: the chat template.
        ends: texts of the tokens that end an answer.
        manifest: the adapter's manifest, for system prompt and sampling.
        context: the most tokens that the model reads and writes.
        where: the adapter's folder, for errors.

    Raises:
        UserError: the system prompt cannot be written.
    """
    sampling = manifest.sampling
    settings = {
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "top_k": 0,
        "min_p": 0,
        "repeat_penalty": 1,
        "num_predict": sampling["max_new_tokens"],
        "num_ctx": min(context, _CONTEXT),
    }
    lines = [f"FROM ./{model}"]
    lines += [f"ADAPTER ./{adapter}"] if adapter else []
    lines += [f'TEMPLATE """{turns.in_go()}"""']
    system = manifest.system
    if system:
        if '"""' in system:
            raise UserError(
                'the system prompt contains """, which a Modelfile cannot express',
                where=str(where),
                fix="change data.system and train again",
            )
        lines += [f'SYSTEM """{system}"""']
    lines += [f"PARAMETER {key} {value}" for key, value in settings.items()]
    lines += [f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends]
    return "\n".join(lines) + "\n"
