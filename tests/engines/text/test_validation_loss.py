"""The validation loss under the schema's constraint is that of the engine that decodes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from support.places import TEMPLATE
from transformers import AutoTokenizer
from trl import SFTConfig

from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.data.text.weighing import Course
from llm_lora.engines.shared import loading
from llm_lora.engines.text import batches
from llm_lora.engines.text import engine as text
from llm_lora.engines.text.constrain import Constraints
from llm_lora.engines.text.trainer import PlannedTrainer
from llm_lora.example import Message, make_example
from llm_lora.recipe.loading import load
from llm_lora.run import Run
from llm_lora.schema.answer import AnswerSchema

pytestmark = pytest.mark.slow

BASE = bases.resolve("tiny")
CHAT = Chat.load(BASE.path)
SCHEMA = AnswerSchema.load(TEMPLATE / "answer.schema.json")
EXAMPLES = [
    make_example((Message("user", row["prompt"]),), row["response"], part=None, where="here")
    for row in map(json.loads, (TEMPLATE / "train.jsonl").read_text().splitlines()[:3])
]
ENCODED = [CHAT.encode(example) for example in EXAMPLES]


def trainer(tmp_path: Path, *, concatenated: bool, course: Course | None) -> PlannedTrainer:
    rows = [text._row(one) for one in ENCODED]
    return PlannedTrainer(
        order=[[0, 1, 2]],
        pad_id=CHAT.pad_id,
        concatenated=concatenated,
        course=course,
        model=loading.load_base(BASE, bits=16, precision="fp32").model,
        args=SFTConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            max_length=None,
            report_to=[],
            per_device_eval_batch_size=3,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(BASE.path),
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def by_the_engine(model: Any) -> float:
    """The mean surprise of the answers' tokens among those that decoding would let through."""
    constraints = Constraints(AutoTokenizer.from_pretrained(BASE.path))
    surprises = []
    for one in ENCODED:
        ids = torch.tensor([one.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        mask = constraints.of(SCHEMA)
        start = one.prompt_tokens
        for at in range(start, start + one.answer_tokens):
            allowed = mask.process_logits(ids[:, :at], logits[:, at - 1].float())
            surprises.append(-float(allowed.log_softmax(-1)[0, ids[0, at]]))
    return sum(surprises) / len(surprises)


@pytest.mark.parametrize("concatenated", [False, True], ids=["padded", "concatenated"])
def test_it_is_the_loss_of_decoding_under_the_constraint(
    concatenated: bool, tmp_path: Path
) -> None:
    constrained = trainer(tmp_path, concatenated=concatenated, course=Course(SCHEMA, CHAT))
    loss = constrained.evaluate()["eval_loss"]
    assert loss == pytest.approx(by_the_engine(constrained.model.eval()), rel=1e-4)
    free = trainer(tmp_path, concatenated=concatenated, course=None).evaluate()["eval_loss"]
    assert loss < 0.8 * free


def test_training_itself_is_not_constrained(tmp_path: Path) -> None:
    constrained = trainer(tmp_path, concatenated=False, course=Course(SCHEMA, CHAT))
    batch = batches.pad([text._row(one) for one in ENCODED], CHAT.pad_id)
    constrained.model.train()
    with torch.no_grad():
        training = float(constrained.compute_loss(constrained.model, dict(batch)))
        constrained.model.eval()
        validation = float(constrained.compute_loss(constrained.model, dict(batch)))
    assert training > validation


def test_fitting_measures_it_where_the_recipe_says_so(small_recipe: Path, tmp_path: Path) -> None:
    losses: dict[str, Any] = {}
    for kind in ("free", "constrained"):
        settings = ["train.max_steps=1", "train.evaluate_every=1", "train.forced_weight=0.5"]
        fit = text.fit(
            load(small_recipe, overrides=[*settings, f"train.validation_loss={kind}"]),
            EXAMPLES,
            EXAMPLES[:2],
            BASE,
            CHAT,
            Run(tmp_path / kind).places,
            schema=SCHEMA,
        )
        losses[kind] = fit.best_validation_loss
    assert 0 < losses["constrained"] < 0.9 * losses["free"]
