"""Comparison of the token ids that training builds with those that the server will build.

`Chat` reads tokenizer.json as it is. vLLM (0.32, `tokenizers/registry.py`) loads the folder with
transformers' `AutoTokenizer`, which in transformers 5 rebuilds the tokenizer from the vocabulary by
the rules of its class. If the class does not fit the file, the server builds other ids than
those that were trained on, and nothing else tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from transformers import AutoTokenizer
from transformers import logging as transformers_logging

from llm_lora.base import Base, Chat, Encoded
from llm_lora.data.text import Course
from llm_lora.errors import UserError
from llm_lora.example import Example, Message
from llm_lora.schema import AnswerSchema

_CONVERSATIONS = 16
"""Examples to compare: classes differ in rules, which show in any of them."""

# Each part is treated differently by some class: runs of spaces and line breaks, digits, accents,
# characters outside the vocabulary, brackets after a space and after a line break.
_PROBE = (
    Message(
        "user", "  Two  spaces,\n\n\ta tab; 1234.5 kg, don't!\r\nCaf\u00e9 \u4f60\u597d \U0001f9ea"
    ),
    Message("assistant", '{"a": [1, 23.5, null], "b": "\u00e9\\n \U0001f9ea x"}'),
)


def require_served_ids(base: Base, chat: Chat, examples: Sequence[Example]) -> None:
    """Compare the ids of a probe and of some examples, with and without their answers.

    Raises:
        UserError: the server would build other ids, or cannot load the tokenizer.
    """
    tokenizer = _as_served(base)
    every = max(1, -(-len(examples) // _CONVERSATIONS))
    chosen = [(*one.prompt, Message("assistant", one.answer)) for one in examples[::every]]
    for messages in (_PROBE, *chosen):
        _compare(base, chat, tokenizer, messages[:-1], add_generation_prompt=True)
        _compare(base, chat, tokenizer, messages, add_generation_prompt=False)


def require_allowed_start(
    chat: Chat,
    schema: AnswerSchema,
    encoded: Sequence[Encoded],
    tell: Callable[[str], None],
    *,
    forced_weight: float,
    validation_loss: str,
) -> None:
    """Check that the constraint allows the first token of the answers as they are trained.

    Some tokenizers join the space before an answer to its first character, and the constraint
    allows no space there. Weights and losses under the constraint then have no place to start from
    (`Course.allowed`), and would silently be those without it.

    Raises:
        UserError: the recipe asks for such a weight or loss.
    """
    course = Course(schema, chat)
    answers = [one.input_ids[one.prompt_tokens :] for one in encoded]
    found = [answer[0] for answer in answers if not course.begins(answer)]
    if not found:
        return
    reason = (
        f"{len(found)} of {len(answers)} answers begin with the token {chat.token(found[0])!r}, "
        "which the answer schema's constraint does not allow"
    )
    if forced_weight != 1:
        raise UserError(
            f"{reason}, so forced tokens cannot be told from others",
            where="train.forced_weight",
            fix="set it to 1, or choose a base whose tokenizer starts an answer without a space",
        )
    if validation_loss == "constrained":
        raise UserError(
            f"{reason}, so there is no loss under the constraint",
            where="train.validation_loss",
            fix="set it to free, or choose a base whose tokenizer starts an answer without a space",
        )
    tell(f"{reason}: constrained answers will begin with another token than was trained")


def _as_served(base: Base) -> Any:
    """The tokenizer as vLLM loads it (`CachedHfTokenizer.from_pretrained`)."""
    transformers_logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(
            base.path, local_files_only=True, trust_remote_code=False, mistral_format=False
        )
    except Exception as error:  # classes raise anything about files that do not fit them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the server could not load this tokenizer: {reason}",
            where=str(base.path),
            fix=_FIX,
        ) from error


def _compare(
    base: Base,
    chat: Chat,
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
) -> None:
    text = chat.render(messages, add_generation_prompt=add_generation_prompt)
    served = text
    # A template that reads the clock may write another time on each call.
    if "strftime_now" not in chat.variables:
        served = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=chat.template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **chat.template_kwargs,
        )
    trained_ids = chat.ids(text)
    served_ids = tokenizer.encode(served, add_special_tokens=False)
    if trained_ids == served_ids:
        return
    pairs = enumerate(zip_longest(trained_ids, served_ids))
    at, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    before = chat.decode(trained_ids[max(0, at - 8) : at], skip_special=False)
    raise UserError(
        f"the server would build other token ids than training: {len(served_ids)} instead of "
        f"{len(trained_ids)} for one conversation; after {before!r}, token {at + 1} is "
        f"{_named(tokenizer, theirs)} instead of {_token(chat, ours)}, "
        f"because transformers loads the tokenizer as {type(tokenizer).__name__}",
        where=str(base.path),
        fix=_FIX,
    )


_FIX = (
    'set "tokenizer_class": "PreTrainedTokenizerFast" in the tokenizer_config.json of a copy of '
    "the base, and train and serve that copy: its tokenizer.json is then used as it is"
)


def _token(chat: Chat, number: int | None) -> str:
    return "the end" if number is None else f"{number} ({chat.token(number)!r})"


def _named(tokenizer: Any, number: int | None) -> str:
    if number is None:
        return "the end"
    return f"{number} ({tokenizer.convert_ids_to_tokens(number)!r})"
