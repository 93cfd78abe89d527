"""The decoding constraint: a mask of the tokens that keep the answer within the schema."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import llguidance
import llguidance.hf
import llguidance.torch
import torch
import torch.nn.functional as F
from outlines.backends.llguidance import LLGuidanceLogitsProcessor

from llm_lora.grammar import decoding
from llm_lora.schema import AnswerSchema


@dataclass
class Pace:
    """Seconds spent on constraints: compiling, and masks for all rows over `steps` steps."""

    compile_seconds: float = 0.0
    mask_seconds: float = 0.0
    steps: int = 0

    def to_dict(self) -> dict[str, float]:
        """As in `report.json`; a step masks one token of every row of a batch."""
        each = self.mask_seconds / self.steps if self.steps else 0.0
        return {"compile_seconds": self.compile_seconds, "mask_seconds_per_step": each}


class Constraint(LLGuidanceLogitsProcessor):
    """Outlines' llguidance processor, for batches whose rows finish at different times.

    Outlines feeds the padding of finished rows to their matchers, which fails and warns at every
    token; here a finished row is skipped.
    """

    is_first_token: bool

    def __init__(self, grammar: str, tokenizer: Any, compiled: Any, pace: Pace) -> None:
        super().__init__(grammar, tokenizer, "torch")
        self._matcher, self._pace = compiled, pace

    def _setup(self, batch_size: int) -> None:
        self.ll_matchers = [self._matcher.deep_copy() for _ in range(batch_size)]
        vocabulary = self.llg_tokenizer.vocab_size
        self.bitmask = llguidance.torch.allocate_token_bitmask(batch_size, vocabulary)

    def process_logits(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Mask `logits` [rows, vocabulary] after the tokens `input_ids` [rows, length]."""
        started = time.perf_counter()
        if self.is_first_token:
            self._setup(len(input_ids))
            self.is_first_token = False
        else:
            for matcher, token in zip(self.ll_matchers, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        complete = []
        for row, matcher in enumerate(self.ll_matchers):
            if matcher.is_stopped():
                complete.append(row)
                self.bitmask[row] = 0
            else:
                llguidance.torch.fill_next_token_bitmask(matcher, self.bitmask, row)
        allowed = _unpacked(self.bitmask.to(logits.device), logits.shape[1])
        # After a complete answer only the end token is allowed.
        allowed[complete, self.llg_tokenizer.eos_token] = True
        masked = logits.masked_fill(~allowed, -torch.inf)
        self._pace.mask_seconds += time.perf_counter() - started
        self._pace.steps += 1
        return masked


def _unpacked(bitmask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Bits [rows, words of 32] → booleans [rows, vocabulary].

    llguidance's own function is compiled at its first call, which needs a C++ compiler.
    """
    places = torch.arange(32, device=bitmask.device, dtype=torch.int32)
    bits = (bitmask.unsqueeze(-1) >> places) & 1
    known = bits.flatten(1).bool()[:, :vocabulary]
    # Logits beyond the tokenizer's vocabulary come from padding of the model's output matrix.
    return F.pad(known, (0, vocabulary - known.shape[1]))


class Constraints:
    """Constraints compiled once per schema, for any number of batches; `pace` is their cost."""

    def __init__(self, tokenizer: Any) -> None:
        self.pace = Pace()
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer)
        self._compiled: dict[str, llguidance.LLMatcher] = {}

    def of(self, schema: AnswerSchema) -> Constraint:
        """A fresh logits processor for one batch.

        Raises:
            UserError: the grammar compiler refuses the schema.
        """
        started = time.perf_counter()
        grammar = decoding(schema).grammar
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = llguidance.LLMatcher(self._tokenizer, grammar)
            self._compiled[grammar] = matcher
            self.pace.compile_seconds += time.perf_counter() - started
        return Constraint(grammar, self._tokenizer, matcher, self.pace)
