"""Loss weights of answer tokens, and the tokens that the grammar allows in their place.

There are three kinds of tokens: those in closed values (`fields.closed_spans`), those that the
grammar forces, which constrained decoding writes whatever the model predicts, and all others, with
weight 1. Finally all weights are scaled to a mean of 1, so that the loss keeps its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import llguidance
import numpy as np
import numpy.typing as npt

from llm_lora.base import Chat, Encoded
from llm_lora.errors import UserError
from llm_lora.example import Example
from llm_lora.grammar import decoding
from llm_lora.schema import AnswerSchema
from llm_lora.scores import closed_spans

Flags = npt.NDArray[np.bool_]


class Course:
    """The tokens that a schema's constraint allows along an answer, token by token."""

    def __init__(self, schema: AnswerSchema, chat: Chat) -> None:
        """Compile the constraint that decoding uses, for the chat's tokenizer.

        Raises:
            UserError: the decoder refuses the schema.
        """
        self._end = chat.eos_ids[0]
        tokenizer = llguidance.LLTokenizer(chat.tokenizer_json, eos_token=self._end)
        self._size: int = tokenizer.vocab_size
        self._matcher = llguidance.LLMatcher(tokenizer, decoding(schema).grammar, log_level=0)

    def allowed(self, answer: Sequence[int]) -> Flags:
        """The tokens allowed at each position of an answer, [tokens, vocabulary].

        The last token is one of the end-of-turn tokens. The answer's own token always counts as
        allowed. From the first token on that the grammar refuses, all tokens do, because the
        grammar then has no state that the rest of the answer could be checked against.
        """
        rows = np.ones((len(answer), self._size), dtype=bool)
        self._matcher.reset()
        for row, token in zip(rows, answer[:-1], strict=False):
            mask = self._mask()
            if not self._matcher.try_consume_tokens([token]):
                return rows
            row[:] = mask
            row[token] = True
        mask = self._mask()
        # The grammar knows only one end token; the answer may end with another of the base's.
        if mask[self._end]:
            mask[self._end] = False
            mask[answer[-1]] = True
            rows[-1] = mask
        return rows

    def begins(self, answer: Sequence[int]) -> bool:
        """Whether the constraint allows the first token of an answer."""
        self._matcher.reset()
        return bool(self._mask()[answer[0]])

    def forced(self, answer: Sequence[int]) -> list[bool]:
        """For each token of an answer, whether it is the only one that the constraint allows."""
        forced: list[bool] = (np.count_nonzero(self.allowed(answer), axis=1) == 1).tolist()
        return forced

    def _mask(self) -> Flags:
        """Flags of the tokens that may come next, [vocabulary]."""
        if self._matcher.is_stopped():
            mask = np.zeros(self._size, dtype=bool)
            mask[self._end] = True
            return mask
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._size, bitorder="little").astype(bool)


def weigh(
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    chat: Chat,
    schema: AnswerSchema,
    *,
    closed: float,
    forced: float,
) -> list[list[float]]:
    """The weights of all tokens of each example; their mean over answer tokens is 1.

    Args:
        examples, encoded: the examples and their token ids.
        chat: the tokenizer that made the ids.
        schema: defines the closed values and the forced tokens.
        closed: the weight of a token in a closed value.
        forced: the weight of a token that the grammar forces; it overrides `closed`.

    Raises:
        UserError: the decoder refuses the schema, or no token has any weight.
    """
    course = Course(schema, chat) if forced != 1 else None
    rows = []
    for example, one in zip(examples, encoded, strict=True):
        spans = closed_spans(schema, example.answer) if closed != 1 else []
        weights = [closed if any(a <= at < b for a, b in spans) else 1.0 for at in one.starts]
        if course is not None:
            answer = one.input_ids[one.prompt_tokens :][: one.answer_tokens]
            flags = course.forced(answer)
            weights = [
                forced if flag else weight for flag, weight in zip(flags, weights, strict=True)
            ]
        rows.append(weights)
    total = sum(map(sum, rows))
    if total == 0:
        raise UserError(
            "the schema forces every token of every answer, so nothing is left to learn",
            where="train.forced_weight",
            fix="set it above 0",
        )
    mean = total / sum(map(len, rows))
    whole = []
    for one, weights in zip(encoded, rows, strict=True):
        before = one.prompt_tokens
        after = len(one.mask) - before - len(weights)
        scaled = [weight / mean for weight in weights]
        whole.append([0.0] * before + scaled + [0.0] * after)
    return whole
