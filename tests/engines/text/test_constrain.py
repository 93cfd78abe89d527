"""The decoding constraint: answers that fit the schema, and nothing after them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import random_models, schema_zoo
from support.places import ROOT
from transformers import AutoTokenizer, LogitsProcessorList

from llm_lora.base import text as bases
from llm_lora.engines.text.constrain import Constraints
from llm_lora.grammar.lint import lint
from llm_lora.schema.answer import AnswerSchema

SCHEMA = AnswerSchema.from_text(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "colour": {"enum": ["red", "green"]},
                "n": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["colour", "n"],
            "additionalProperties": False,
        }
    )
)


def write(seed: int, rows: int = 4) -> list[str]:
    """Answers of a writer that gives every token the same probability, one row each."""
    tokenizer = AutoTokenizer.from_pretrained(bases.resolve("tiny").path)
    constraint = Constraints(tokenizer).of(SCHEMA)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((rows, 1), 5)
    for _ in range(40):
        logits = constraint(ids, torch.zeros(rows, len(tokenizer)))
        chances = logits.softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], dim=1)
    end = tokenizer.eos_token_id
    answers = []
    for row in ids[:, 1:].tolist():
        assert end in row
        answers.append(tokenizer.decode(row[: row.index(end)]))
        # After a complete answer only the end token is allowed, repeatedly.
        assert set(row[row.index(end) :]) == {end}
    return answers


def test_whatever_the_model_likes_the_answer_fits_and_is_compact() -> None:
    for seed in range(5):
        for answer in write(seed):
            assert SCHEMA.judge(answer).valid, answer
            assert answer == SCHEMA.canonical_text(answer)


def test_it_needs_no_compiler() -> None:
    folders = ["tests", "tests/engines/text"]
    code = f"import sys; sys.path[:0] = {folders}; import test_constrain as t; t.write(0)"
    nowhere = dict.fromkeys(("PATH", "CXX", "CC"), "/nonexistent")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["invoice", "union by name", "tree", "event", "table", "written"])
def test_a_model_of_random_weights_writes_what_lint_promised(name: str, tmp_path: Path) -> None:
    schema = AnswerSchema.from_text(json.dumps(schema_zoo.BY_HAND[name]))
    assert lint(schema).enforceable
    folder = random_models.make_model(tmp_path / "model", max_position_embeddings=512)
    model = random_models.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    constraints = Constraints(tokenizer)
    torch.manual_seed(11)
    ids = torch.full((8, 3), 5)
    end = tokenizer.eos_token_id
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=250,
        do_sample=True,
        logits_processor=LogitsProcessorList([constraints.of(schema)]),
        eos_token_id=end,
        pad_token_id=3,
    )
    rows = [row for row in out[:, 3:].tolist() if end in row]
    answers = [tokenizer.decode(row[: row.index(end)]) for row in rows]
    assert answers and all(schema.judge(answer).valid for answer in answers)
    assert constraints.pace.steps > 0 and constraints.pace.compile_seconds > 0
