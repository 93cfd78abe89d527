"""Benchmark of constraint backends: compile and mask times, with the embedded base's tokens.

    python benchmarks/constrain.py

For each schema and backend: seconds until the first mask, then the mean and the slowest mask of
random answers. xgrammar and outlines-core are called in the same way as by Outlines.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llm_lora.base import text as bases
from llm_lora.grammar.constraint import decoding
from llm_lora.schema.answer import AnswerSchema
from llm_lora.schema.json_text import dumps

Bits = np.ndarray[Any, np.dtype[np.uint8]]
Parts = tuple[Callable[[], Bits], Callable[[int], Any], Callable[[], bool], Callable[[], Any]]
"""Of one answer: its next mask, taking a token, whether it is complete, and starting over."""
Make = Callable[[AnswerSchema], Parts]

_ANSWERS, _TOKENS = 20, 120
_TEMPLATE = Path(__file__).parent.parent / "data_templates/medical_qa/answer.schema.json"
_SHORT = {
    "type": "object", "required": ["kind", "urgent"], "additionalProperties": False,
    "properties": {"kind": {"enum": ["bug", "bill", "other"]}, "urgent": {"type": "boolean"}},
}  # fmt: skip


def _llguidance(tokenizer: Any) -> Make:
    import llguidance

    known = llguidance.LLTokenizer((bases.TINY / "tokenizer.json").read_text())

    def make(schema: AnswerSchema) -> Parts:
        matcher = llguidance.LLMatcher(known, decoding(schema).grammar, log_level=0)

        def mask() -> Bits:
            return np.frombuffer(matcher.compute_bitmask(), np.uint8)

        return mask, matcher.consume_token, matcher.is_stopped, matcher.reset

    return make


def _xgrammar(tokenizer: Any) -> Make:
    import xgrammar

    known = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))

    def make(schema: AnswerSchema) -> Parts:
        compiled = xgrammar.GrammarCompiler(known).compile_json_schema(
            dumps(schema.document), any_whitespace=False
        )
        matcher = xgrammar.GrammarMatcher(compiled)
        held = xgrammar.allocate_token_bitmask(1, known.vocab_size)

        def mask() -> Bits:
            matcher.fill_next_token_bitmask(held)
            return np.asarray(held.numpy().view(np.uint8)[0])

        return mask, matcher.accept_token, matcher.is_terminated, matcher.reset

    return make


def _outlines(tokenizer: Any) -> Make:
    import outlines_core
    from outlines.backends.outlines_core import OutlinesCoreBackend
    from outlines.models.transformers import TransformerTokenizer
    from outlines_core.json_schema import build_regex_from_schema

    wrapped = TransformerTokenizer(tokenizer)
    known = OutlinesCoreBackend.create_outlines_core_vocabulary(
        wrapped.get_vocab(), tokenizer.eos_token_id, tokenizer.eos_token,
        wrapped.convert_token_to_string,
    )  # fmt: skip

    def make(schema: AnswerSchema) -> Parts:
        index = outlines_core.Index(build_regex_from_schema(dumps(schema.document), ""), known)
        guide = outlines_core.Guide(index)
        held = np.zeros((len(tokenizer) + 31) // 32, np.int32)

        def mask() -> Bits:
            guide.write_mask_into(held.ctypes.data, held.size, held.itemsize)
            return held.view(np.uint8)

        return mask, lambda token: guide.advance(token, False), guide.is_finished, guide.reset

    return make


def main() -> None:
    """Measure and print one line for each backend and schema."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases.TINY)
    backends = {one.__name__[1:]: one(tokenizer) for one in (_llguidance, _xgrammar, _outlines)}
    schemas = {"short": AnswerSchema.from_text(json.dumps(_SHORT))}
    schemas["medical_qa"] = AnswerSchema.load(_TEMPLATE)
    for name, schema in schemas.items():
        for backend, make in backends.items():
            print(f"{name:<12}{backend:<12}{_measure(make, schema, tokenizer.eos_token_id)}")


def _measure(make: Make, schema: AnswerSchema, end: int) -> str:
    source = random.Random(1)
    started = time.perf_counter()
    mask, push, stopped, reset = make(schema)
    mask()
    first = time.perf_counter() - started
    masks: list[float] = []
    for _ in range(_ANSWERS):
        reset()
        for _ in range(_TOKENS):
            started = time.perf_counter()
            allowed = mask()
            masks.append(time.perf_counter() - started)
            tokens = np.flatnonzero(np.unpackbits(allowed, bitorder="little"))
            token = int(source.choice(tokens))
            if token == end:
                break
            push(token)
            if stopped():
                break
    mean, worst = sum(masks) / len(masks) * 1e6, max(masks) * 1e6
    return f"first mask {first * 1e3:9.1f} ms   mean {mean:7.1f} µs   slowest {worst:9.1f} µs"


if __name__ == "__main__":
    main()
