"""Conversion of messages to token ids and a loss mask; nothing else does it.

It renders like transformers' `apply_chat_template` (`template`) and encodes like `AutoTokenizer(…,
add_special_tokens=False)`, without importing transformers; tests compare the two token for token.
Serving builds its prompt from the same template, so training and serving use the same ids:

    prompt ids   the messages with the generation prompt, as the server feeds them to the model
    input ids    the prompt ids, the answer, its end-of-turn token and the rest of the template;
                 the ids of the whole text, unless they would not begin with the prompt ids
    mask         1 on the answer and on its end-of-turn token, 0 elsewhere
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lora import files
from llm_lora.base import text as base
from llm_lora.base.template import NAMED_TOKENS, ChatTemplate
from llm_lora.errors import UserError
from llm_lora.example import Example, Message, make_example

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

GENERATION_CONFIG = "generation_config.json"

_PROBE = make_example(
    (Message("user", "What is two plus two?"),), '{"sum": 4}', part=None, where="probe"
)


class Unencodable(ValueError):
    """Raised with the reason why an example cannot be encoded faithfully."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example; `mask` is 1 where the loss counts.

    `starts` holds, for each token that counts, the character of the answer that it starts at; the
    end-of-turn token starts after the last one.
    """

    input_ids: list[int]
    mask: list[int]
    starts: list[int] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens before the answer, which the server feeds to the model."""
        return self.mask.index(1)

    @property
    def answer_tokens(self) -> int:
        """Number of tokens in the answer, including its end-of-turn token."""
        return sum(self.mask)


class Chat:
    """A base's tokenizer with its chat template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        *,
        named_tokens: dict[str, str],
        eos_ids: tuple[int, ...],
        pad_id: int,
        context_length: int | None,
        where: str,
    ) -> None:
        self.template = template
        self.template_digest = files.sha256(template)
        self.eos_ids = eos_ids
        self.pad_id = pad_id
        self.context_length = context_length
        self.template_kwargs: dict[str, object] = {}
        self._tokenizer = tokenizer
        self._where = where
        self._template = ChatTemplate(template, named_tokens=named_tokens, where=where)
        self._choose_switches()

    @classmethod
    def load(cls, folder: Path) -> Chat:
        """Read tokenizer.json, tokenizer_config.json and the chat template of a model folder.

        Raises:
            UserError: a file is missing or broken, or the template is unsuitable for training.
        """
        from tokenizers import Tokenizer

        path = folder / base.TOKENIZER
        try:
            tokenizer: Tokenizer = Tokenizer.from_str(files.read_text(path))
        except UserError:
            raise
        except Exception as error:  # tokenizers raises nothing more specific
            raise UserError(
                f"not a tokenizer: {error}", where=str(path), fix="restore the file"
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        settings = _optional(folder / base.TOKENIZER_CONFIG)
        if "added_tokens_decoder" not in settings:
            settings |= _optional(folder / "special_tokens_map.json")
        config = base.ModelConfig.read(folder)
        named = {name: _content(settings[name]) for name in NAMED_TOKENS if settings.get(name)}
        eos_ids = _eos_ids(folder, config.eos_token_id, tokenizer, named.get("eos_token"))
        pad_id = tokenizer.token_to_id(named["pad_token"]) if "pad_token" in named else None
        template, where = base.chat_template(folder)
        return cls(
            tokenizer,
            template,
            named_tokens=named,
            eos_ids=eos_ids,
            # Padding is always masked out, so an end token serves as well.
            pad_id=eos_ids[0] if pad_id is None else pad_id,
            context_length=config.context_length,
            where=str(where),
        )

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """Texts that the tokenizer always turns into control tokens."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    @cached_property
    def tokenizer_json(self) -> str:
        """The tokenizer as text, for libraries that load it themselves."""
        return self._tokenizer.to_str()

    @property
    def variables(self) -> frozenset[str]:
        """Names that the template reads from outside, including its switches."""
        return self._template.variables

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation as rendered by the template.

        Raises:
            UserError: the template refuses these messages, for instance a system message.
        """
        return self._template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            arguments=self.template_kwargs,
        )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids that the model is given for these messages; the server builds the same.

        Raises:
            UserError: as `render`.
        """
        return self.ids(self.render(messages, add_generation_prompt=True))

    def encode(self, example: Example) -> Encoded:
        """Token ids and loss mask of an example, without truncation.

        The prompt alone and the whole conversation are rendered separately. The mask can only be
        placed if the one is a prefix of the other and the answer follows it literally, so anything
        else is refused.

        Raises:
            Unencodable: its texts contain a special token, or the template drops or changes them.
            UserError: as `render`.
        """
        answer = Message("assistant", example.answer)
        self._require_plain((*example.prompt, answer))
        before = self.render(example.prompt, add_generation_prompt=True)
        whole = self.render((*example.prompt, answer), add_generation_prompt=False)
        for message in example.prompt:
            # Earlier answers are exempt, because templates remove thinking from them.
            if message.role != "assistant" and message.content.strip() not in before:
                raise Unencodable(f"the chat template drops or changes the {message.role} message")
        text = example.answer.strip()
        after = whole[len(before) :].lstrip()
        if not whole.startswith(before) or not after.startswith(text):
            written = _continuation(whole, before)
            raise Unencodable(f"the chat template changes the answer: it writes {written!r}")
        rest = after[len(text) :].lstrip()
        if not rest.startswith(self._end_texts):
            raise Unencodable(
                f"no end token follows the answer: the template writes {rest!r}, "
                f"but this base stops at {' or '.join(self._end_texts)}"
            )
        prompt, encoding = self.ids(before), self._encode(whole)
        ids, offsets, answer_at = encoding.ids, encoding.offsets, len(whole) - len(after)
        if ids[: len(prompt)] != prompt:
            # The tokenizer merges the prompt's last characters with the answer's first. In serving
            # that cannot happen, because the model continues from the prompt's own ids. So prompt
            # and answer are encoded separately, as in serving, if the text stays the same.
            encoding = self._encode(whole[len(before) :])
            apart = prompt + encoding.ids
            offsets = [(0, 0)] * len(prompt) + encoding.offsets
            answer_at -= len(before)
            if self.decode(apart, skip_special=False) != self.decode(ids, skip_special=False):
                raise Unencodable(
                    "the tokenizer merges the start of the answer with the end of the prompt"
                )
            ids = apart
        # The loss counts from the answer's first token to the first end token after it.
        end = next(i for i in range(len(prompt), len(ids)) if ids[i] in self.eos_ids)
        mask = [0] * len(prompt) + [1] * (end + 1 - len(prompt)) + [0] * (len(ids) - end - 1)
        starts = [max(0, start - answer_at) for start, _ in offsets[len(prompt) : end + 1]]
        return Encoded(ids, mask, starts)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids, by default without control tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def places(self, ids: Sequence[int]) -> list[int]:
        """The character of `decode(ids)` at which each token starts.

        Tokens of single bytes can spell a character and then, by one more byte, an invalid run, in
        which byte-fallback decoders replace that character too. Streams cannot take back what they
        wrote, and raise; the places are then read from the text up to each token.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        found, length = [], 0
        try:
            for token in ids:
                found.append(length)
                length += len(stream.step(self._tokenizer, token) or "")
        except Exception:  # tokenizers raises nothing more specific
            # An unfinished character is written as U+FFFD: its bytes share the place it starts at.
            found = [len(self.decode(ids[:i]).rstrip("\ufffd")) for i in range(len(ids))]
        return found

    def ids(self, text: str) -> list[int]:
        """The token ids of a rendered text."""
        return self._encode(text).ids

    def token(self, number: int) -> str | None:
        """A token as its vocabulary writes it, for messages; None if there is none."""
        return self._tokenizer.id_to_token(number)

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        # An empty alternation would match everywhere; (?!) matches nowhere.
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def _end_texts(self) -> tuple[str, ...]:
        return tuple(self.decode([i], skip_special=False) for i in self.eos_ids)

    def _require_plain(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if found := self._special.search(message.content):
                raise Unencodable(
                    f"the {message.role} message contains the control token {found[0]}"
                )

    def _choose_switches(self) -> None:
        """Set `template_kwargs` so that the answer directly follows the prompt.

        Thinking is turned off if the template has a switch for it, because an answer must fit the
        schema from its first token. Serving must pass the same arguments.
        """
        reasons = []
        for choice in self._template.switches:
            self.template_kwargs = choice
            try:
                self.encode(_PROBE)
                return
            except Unencodable as error:
                reasons.append(str(error))
        raise UserError(
            f"this chat template is unsuitable for training: {reasons[0]}",
            where=self._where,
            fix="choose an instruct base that answers without thinking"
            if "end token" not in reasons[0]
            else f"add that token's id to eos_token_id in {GENERATION_CONFIG}",
        )


def _continuation(whole: str, before: str) -> str:
    """The text of `whole` from where it and `before` differ, shortened for messages."""
    parts = next((i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), None)
    start = len(before) if parts is None else parts
    return whole[start : start + 60]


def _optional(path: Path) -> dict[str, Any]:
    return files.read_object(path) if path.is_file() else {}


def _content(token: object) -> str:
    """The text of a token, which may be given as an object with options."""
    return str(token["content"] if isinstance(token, dict) else token)


def _eos_ids(
    folder: Path, eos_token_id: object, tokenizer: Tokenizer, eos_token: str | None
) -> tuple[int, ...]:
    """The ids that end generation in transformers and vLLM, from the model and its tokenizer."""
    generation = _optional(folder / GENERATION_CONFIG)
    ids = generation.get("eos_token_id", eos_token_id)
    found = [] if ids is None else list(ids) if isinstance(ids, list) else [ids]
    if eos_token is not None:
        own = tokenizer.token_to_id(eos_token)
        if own is None:
            raise UserError(
                f"eos_token {eos_token!r} is not in {base.TOKENIZER}",
                where=str(folder / base.TOKENIZER_CONFIG),
                fix="restore the files of the model",
            )
        found.insert(0, own)
    if not found:
        raise UserError(
            "no end token: neither eos_token nor eos_token_id",
            where=str(folder),
            fix=f"add eos_token to {base.TOKENIZER_CONFIG}",
        )
    return tuple(dict.fromkeys(int(i) for i in found))
