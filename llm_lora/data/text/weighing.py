"""What each token of an answer counts in the loss, and what else could stand in its place.

Three kinds of tokens are told apart: those of closed values (`fields.closed_spans`), those that the
grammar forces, so that decoding under the constraint writes them whatever the model thinks, and all
others, which count 1 before the whole is scaled to a mean of 1.
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
    """What the constraint of a schema lets through along an answer, token by token."""

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
        """For each token of an answer: what may stand in its place, [tokens, vocabulary].

        The last token is the end-of-turn token, whichever of them. The answer's own token may
        always stand where it stands; from the first one on that the grammar refuses, all may.
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
        if mask[self._end]:
            mask[self._end] = False
            mask[answer[-1]] = True
            rows[-1] = mask
        return rows

    def forced(self, answer: Sequence[int]) -> list[bool]:
        """For each token of an answer: is it the only one that the constraint lets through?"""
        forced: list[bool] = (np.count_nonzero(self.allowed(answer), axis=1) == 1).tolist()
        return forced

    def _mask(self) -> Flags:
        """Which tokens may come next, [vocabulary]."""
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
    """The weights of all tokens of each example; over the tokens of answers their mean is 1.

    Args:
        examples, encoded: the examples and their token ids.
        chat: the tokenizer that made the ids.
        schema: tells the closed values, and what is forced.
        closed: the weight of a token of a closed value.
        forced: the weight of a token that the grammar forces; it goes before `closed`.

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
