"""The cost of a constraint with a real tokenizer: compiling it, and one mask per token.

A mask is a bit per token of the vocabulary: set for those that may come next. The matcher walks
the grammar and the tokenizer's trie of tokens together, so that its time depends on the state of
the answer; it is therefore measured along random answers, not once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import llguidance
import numpy as np

from llm_lora import files
from llm_lora.base import Base
from llm_lora.grammar.constraint import decoding
from llm_lora.schema import AnswerSchema

_ANSWERS = 8
_LONGEST = 200


@dataclass(frozen=True)
class Cost:
    """Seconds of compiling, of a mask on average, and of the slowest of `tokens` masks."""

    compile_seconds: float
    mask_seconds: float
    worst_mask_seconds: float
    tokens: int

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)


class Writer:
    """Writes answers that a constraint accepts, one random token after another."""

    def __init__(self, schema: AnswerSchema, base: Base) -> None:
        """Compile the constraint for a base's tokenizer.

        Raises:
            UserError: the decoder refuses the schema, or the base has no tokenizer.json.
        """
        self._tokenizer = llguidance.LLTokenizer(files.read_text(base.path / "tokenizer.json"))
        started = time.perf_counter()
        grammar = decoding(schema).grammar
        self._matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        self.compile_seconds = time.perf_counter() - started
        self.mask_seconds: list[float] = []

    def write(self, source: random.Random, most: int = _LONGEST) -> str | None:
        """The text of an answer; None if it did not end within `most` tokens."""
        self._matcher.reset()
        written: list[int] = []
        for _ in range(most):
            if self._matcher.is_accepting() and source.random() < 0.5:
                return str(self._tokenizer.decode_str(written))
            started = time.perf_counter()
            mask = self._matcher.compute_bitmask()
            self.mask_seconds.append(time.perf_counter() - started)
            bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
            token = int(source.choice(np.flatnonzero(bits)))
            if token == self._tokenizer.eos_token:
                return str(self._tokenizer.decode_str(written))
            self._matcher.consume_token(token)
            written.append(token)
            if self._matcher.is_stopped():
                return str(self._tokenizer.decode_str(written))
        return None

    def cost(self) -> Cost:
        """The cost of compiling and of the masks so far."""
        masks = self.mask_seconds
        mean = sum(masks) / len(masks) if masks else 0.0
        return Cost(self.compile_seconds, mean, max(masks, default=0.0), len(masks))


def cost(schema: AnswerSchema, base: Base) -> Cost:
    """The cost of a schema's constraint with a base's tokenizer, over a few random answers.

    Raises:
        UserError: as `Writer`.
    """
    writer = Writer(schema, base)
    source = random.Random(0)
    for _ in range(_ANSWERS):
        writer.write(source)
    return writer.cost()


def counter(base: Base) -> Callable[[str], int]:
    """A function that counts the tokens of a text with a base's tokenizer.

    Raises:
        UserError: the base has no tokenizer.json.
    """
    tokenizer = llguidance.LLTokenizer(files.read_text(base.path / "tokenizer.json"))
    return lambda text: len(tokenizer.tokenize_str(text))
