"""Evaluation with the real engine: token probabilities, gates, and the live version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.commands import Command

from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.engines.text import engine as text
from llm_lora.example import Message
from llm_lora.schema.answer import AnswerSchema

pytestmark = pytest.mark.slow

SCHEMA = AnswerSchema.from_text(
    json.dumps(
        {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green"]}, "wet": {"type": "boolean"}},
            "required": ["colour", "wet"],
            "additionalProperties": False,
        }
    )
)
PROMPTS = [
    (Message("user", "The grass is green and dry."),),
    (Message("user", "A red door."),),
    (Message("user", "It rains on the red roof of the old house behind the church."),),
]


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["free", "constrained"])
def test_probabilities_are_those_of_the_model(schema: AnswerSchema | None) -> None:
    base = bases.resolve("tiny")
    chat = Chat.load(base.path)
    answerer = text.Answerer(base, chat, adapter=None, bits=16, precision="fp32")
    sampling = text.Sampling(max_new_tokens=24, batch_size=2)
    answers = answerer.answer(PROMPTS, sampling, schema=schema, chances=True)
    without = answerer.answer(PROMPTS, sampling, schema=schema)
    # Requesting probabilities does not change answers.
    assert [one.text for one in answers] == [one.text for one in without]
    assert all(one.chances == () for one in without)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        prompt_ids = chat.prompt_ids(prompt)
        assert len(answer.chances) == answer.tokens - (answer.finish == "stop")
        pieces = [answer.text[a:b] for (a, _), (b, _) in zip(answer.chances, answer.chances[1:])]  # noqa: B905
        ids = chat.ids(answer.text)
        if len(ids) != len(answer.chances):
            continue  # The model may write a text in other tokens than the tokenizer does.
        assert [chat.decode([token]) for token in ids[:-1]] == pieces
        with torch.inference_mode():
            row = torch.tensor([prompt_ids + ids])
            logs = answerer._model(input_ids=row).logits[0].log_softmax(-1)
        for place, (token, (_, log)) in enumerate(zip(ids, answer.chances, strict=True)):
            alone = float(logs[len(prompt_ids) + place - 1, token])
            if schema is None:
                assert log == pytest.approx(alone, abs=1e-3)
            else:  # Excluded tokens have no probability, so allowed ones have more.
                assert alone - 1e-3 <= log <= 1e-6
    answerer.close()


def test_a_run_is_compared_with_the_live_version(
    small_run: Path, tmp_path: Path, llm_lora: type[Command]
) -> None:
    store = tmp_path / "store"
    run = tmp_path / "runs" / "small" / "copy"
    shutil.copytree(small_run, run)
    recipe = (run / "recipe.yaml").read_text()
    assert "max_drop: null" in recipe and "max_new_tokens: 48" in recipe

    # Long enough for whole answers, of which probabilities are known.
    recipe = recipe.replace("max_new_tokens: 48", "max_new_tokens: 192")

    def evaluate(check: str) -> tuple[int, dict[str, object]]:
        written = recipe.replace("max_drop: null", f"max_drop: 0.0\n  {check}")
        written = written.replace("  max_latency_ms: null\n", "").replace("  fields: {}\n", "")
        (run / "recipe.yaml").write_text(written)
        code, output = llm_lora("evaluate", run, "--store", store, "--json").finish()
        assert "Traceback" not in output, output
        return code, json.loads(output[output.index("{") :])

    # No version is live, so no drop. The time limit is impossible, so the command fails.
    code, told = evaluate("max_latency_ms: 0.001\n  fields: {severity: 0.0, age: 1.0}")
    gates = {gate["name"]: gate for gate in told["gates"]}  # type: ignore[attr-defined]
    assert code == 1
    assert gates["max_drop"]["reason"].startswith("no version is live yet")
    assert gates["max_latency_ms"]["passed"] is False and gates["max_latency_ms"]["value"] > 1
    assert gates["fields.age"]["passed"] is False
    assert told["published"] == {"label": None, "digest": None}

    publish = ("publish", run, "--store", store, "--as", "small", "--promote", "--force")
    assert llm_lora(*publish).finish()[0] == 0
    code, told = evaluate("fields: {}")
    gates = {gate["name"]: gate for gate in told["gates"]}  # type: ignore[attr-defined]
    # It is compared with itself by new answers, and nothing drops.
    assert told["published"]["label"] == "small@1"  # type: ignore[index]
    scores = told["scores"]
    assert scores["published"] == scores["adapter"]  # type: ignore[index]
    assert gates["max_drop"] == {"name": "max_drop", "threshold": 0.0, "value": 0.0, "passed": True}
    shown = (run / "report.html").read_text()
    assert "unconstrained, against small@1" in shown
    assert told["calibration"]["adapter"]["constrained"]["n"] > 0  # type: ignore[index]
