"""The decoding constraint: at every token, only what keeps the answer within the schema."""

from __future__ import annotations

from typing import Any

import llguidance
import llguidance.hf
import llguidance.torch
import torch
import torch.nn.functional as F
from outlines.backends.llguidance import LLGuidanceLogitsProcessor

from llm_lora.errors import UserError
from llm_lora.schema import AnswerSchema


class Constraint(LLGuidanceLogitsProcessor):
    """Outlines' llguidance processor for a batch whose rows finish at different times.

    Outlines feeds the padding of finished rows to their matchers, which fails and warns at every
    token; here a finished row is left alone.
    """

    is_first_token: bool

    def process_logits(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Mask `logits` [rows, vocabulary] after the tokens `input_ids` [rows, length]."""
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
        # A complete answer can only end; nothing may follow it.
        allowed[complete, self.llg_tokenizer.eos_token] = True
        return logits.masked_fill(~allowed, -torch.inf)


def _unpacked(bitmask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Bits [rows, words of 32] → booleans [rows, vocabulary].

    llguidance's own function is compiled at its first call, which needs a C++ compiler.
    """
    places = torch.arange(32, device=bitmask.device, dtype=torch.int32)
    bits = (bitmask.unsqueeze(-1) >> places) & 1
    known = bits.flatten(1).bool()[:, :vocabulary]
    # Logits beyond the tokenizer's vocabulary are padding of the model's matrix.
    return F.pad(known, (0, vocabulary - known.shape[1]))


class Constraints:
    """Compiled once for a schema, used for any number of batches."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer)
        self._grammars: dict[str, str] = {}

    def of(self, schema: AnswerSchema) -> Constraint:
        """A fresh logits processor for one batch.

        Raises:
            UserError: the grammar compiler refuses the schema (llguidance refuses rather than
                accept what it cannot enforce).
        """
        grammar = self._grammars.get(schema.digest)
        if grammar is None:
            grammar = llguidance.grammar_from("json_schema", schema.constraint)
            error = llguidance.LLMatcher.validate_grammar(grammar, self._tokenizer)
            if error:
                raise UserError(
                    f"the decoder cannot enforce this schema: {error.splitlines()[0]}",
                    where=schema.where,
                    fix="simplify the keyword it names",
                )
            self._grammars[schema.digest] = grammar
        return Constraint(grammar, self._tokenizer, "torch")
