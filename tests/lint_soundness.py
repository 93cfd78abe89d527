"""Soundness of lint: schemas of every kind, and random answers under their constraint, judged.

    python tests/lint_soundness.py vllm --made 300
    python tests/lint_soundness.py outlines --made 300

Prints one line of JSON: how many schemas were declared enforceable, refused, or reported as not
enforced; of the answers under the constraint of enforceable ones, how many ended and which did
not fit. With --tokens, every few schemas also write tokens of the embedded base from random
logits, through the logits processor that the engine (or Outlines) uses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import schema_zoo

from llm_lora import base as bases
from llm_lora import grammar
from llm_lora.errors import UserError
from llm_lora.grammar import Backend
from llm_lora.jsontext import dumps
from llm_lora.lint import lint
from llm_lora.probes import Probes
from llm_lora.schema import AnswerSchema

_BYTES, _TOKENS, _ROWS = 800, 160, 4


def measure(
    backend: Backend, made: int, every: int | None = None, answers: int = 25
) -> dict[str, Any]:
    """Counts over the hand-written schemas and `made` random ones; `unsound` lists failures."""
    counts = dict.fromkeys(
        "schemas enforceable refused told answers token_schemas token_answers unended".split(), 0
    )
    unsound: list[str] = []
    zoo = [*schema_zoo.BY_HAND.items(), *((f"made {i}", schema_zoo.made(i)) for i in range(made))]
    write = _token_writer(backend) if every else None
    with tempfile.TemporaryDirectory() as folder:
        probes = Probes(backend, Path(folder) / "probes.json")
        for name, document in zoo:
            try:
                schema = AnswerSchema.from_text(dumps(document))
            except UserError:
                continue  # A random combination of keywords that no draft allows.
            counts["schemas"] += 1
            told = lint(schema, backend, probes=probes)
            if not told.enforceable:
                counts["refused" if told.refused is not None else "told"] += 1
                if told.refused is None and not told.not_enforced():
                    unsound.append(f"{name}: not enforceable, and nothing said")
                continue
            counts["enforceable"] += 1
            texts = _byte_answers(schema, backend, answers)
            counts["unended"] += answers - len(texts)
            counts["answers"] += len(texts)
            if write is not None and every and counts["enforceable"] % every == 0:
                tokens = write(schema)
                counts["token_schemas"] += 1
                counts["token_answers"] += len(tokens)
                texts += tokens
            bad = next((text for text in texts if not schema.judge(text).valid), None)
            if bad is not None:
                unsound.append(f"{name}: {schema.text}: {bad!r}")
    return {"backend": backend, "version": probes.version, **counts, "unsound": unsound}


def _byte_answers(schema: AnswerSchema, backend: Backend, count: int) -> list[str]:
    compiled = grammar.compile_schema(schema, backend)
    source = random.Random(99)
    texts = (grammar.draw(compiled, source, _BYTES) for _ in range(count))
    return [text for text in texts if text is not None]


def _token_writer(backend: Backend) -> Callable[[AnswerSchema], list[str]]:
    """Writes answers with the embedded base's tokenizer from random logits."""
    import torch
    from outlines.backends.outlines_core import OutlinesCoreBackend, OutlinesCoreLogitsProcessor
    from outlines.models.transformers import TransformerTokenizer
    from outlines_core import Index
    from outlines_core.json_schema import build_regex_from_schema
    from transformers import AutoTokenizer

    from llm_lora.engines.constrain import Constraints

    tokenizer = AutoTokenizer.from_pretrained(bases.TINY)
    size, end = len(tokenizer), tokenizer.eos_token_id
    texts = [tokenizer.decode([token]) for token in range(size)]
    closing = torch.tensor([float(bool(set(text) & set('"}]'))) for text in texts])
    closing[end] = 1.0
    if backend == "vllm":
        constraints = Constraints(tokenizer)
    else:
        # As OutlinesCoreBackend does for a transformers model.
        known = TransformerTokenizer(tokenizer)
        vocabulary = OutlinesCoreBackend.create_outlines_core_vocabulary(
            known.get_vocab(), end, tokenizer.eos_token, known.convert_token_to_string
        )

    def write(schema: AnswerSchema) -> list[str]:
        if backend == "vllm":
            process: Any = constraints.of(schema)
        else:
            index = Index(build_regex_from_schema(dumps(schema.document), ""), vocabulary)
            process = OutlinesCoreLogitsProcessor(index, "torch")
        generator = torch.Generator().manual_seed(7)
        ids = torch.full((_ROWS, 1), 5)
        for step in range(_TOKENS):
            noise = 2 * torch.randn(_ROWS, size, generator=generator)
            logits = process.process_logits(ids, noise + closing * (step / 10))
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, chosen], dim=1)
        rows = [row for row in ids[:, 1:].tolist() if end in row]
        return [tokenizer.decode(row[: row.index(end)]) for row in rows]

    return write


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=grammar.BACKENDS)
    parser.add_argument("--made", type=int, default=300, help="schemas made at random")
    parser.add_argument("--tokens", type=int, metavar="N", help="every Nth also writes by tokens")
    parser.add_argument("--answers", type=int, default=25, help="answers of each schema")
    asked = parser.parse_args()
    # A compiler that hangs cannot be stopped and is left running; so few run at a time.
    grammar.COMPILE_SECONDS = 1.0
    print(json.dumps(measure(asked.backend, asked.made, asked.tokens, asked.answers)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
