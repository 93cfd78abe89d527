"""Rewards and preference pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_lora.errors import UserError
from llm_lora.example import Answer, Example, Message, make_example
from llm_lora.recipe.loading import load
from llm_lora.schema.answer import AnswerSchema
from llm_lora.scores.preference import Pair, pairs, reward, some

SCHEMA = AnswerSchema.from_text(
    json.dumps(
        {
            "type": "object",
            "properties": {"level": {"enum": ["low", "high"]}, "age": {"type": "integer"}},
            "required": ["level", "age"],
            "additionalProperties": False,
        }
    )
)
TARGET = '{"level":"low","age":4}'
HALF = '{"level":"low","age":5}'
WRONG = '{"level":"high","age":5}'
SHAPELESS = '{"level":"low"}'
BROKEN = '{"level":"low","a'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(TARGET, 2.0), (HALF, 1.5), (WRONG, 1.0), (SHAPELESS, 2 / 3), (BROKEN, 0.0), ("", 0.0)],
)
def test_the_reward_is_validity_plus_the_f1_of_the_values(answer: str, expected: float) -> None:
    assert reward(SCHEMA, TARGET, answer) == expected


def example(text: str = "hello") -> Example:
    return make_example((Message("user", text),), TARGET, part=None, where="here")


def drawn(*texts: str, finish: str = "stop") -> list[Answer]:
    return [Answer(text, tokens=9, finish=finish) for text in texts]  # type: ignore[arg-type]


def made(*texts: str, chosen: str = "target", margin: float = 0.1) -> list[Pair]:
    return pairs(SCHEMA, [example()], [drawn(*texts)], chosen=chosen, margin=margin)  # type: ignore[arg-type]


def test_the_worst_answer_loses_against_the_target() -> None:
    (pair,) = made(HALF, SHAPELESS, WRONG)
    assert (pair.chosen, pair.rejected) == (TARGET, SHAPELESS)
    assert (pair.chosen_reward, pair.rejected_reward) == (2.0, 2 / 3)
    assert pair.example == example().id and pair.ended


def test_the_worst_answer_loses_against_the_best_drawn() -> None:
    (pair,) = made(WRONG, HALF, chosen="best")
    assert (pair.chosen, pair.rejected) == (HALF, WRONG)


def test_what_was_cut_off_can_lose_but_never_win() -> None:
    (pair,) = pairs(
        SCHEMA,
        [example()],
        [drawn(WRONG) + drawn(HALF, BROKEN, finish="length")],
        chosen="best",
        margin=0,
    )
    assert (pair.chosen, pair.rejected, pair.ended) == (WRONG, BROKEN, False)
    cut = drawn(HALF, BROKEN, finish="length")
    assert pairs(SCHEMA, [example()], [cut], chosen="best", margin=0) == []


def test_answers_that_hardly_differ_make_no_pair() -> None:
    assert made(HALF, margin=0.6) == []
    assert len(made(HALF, margin=0.5)) == 1
    assert made(TARGET, margin=0) == []
    assert made(WRONG, WRONG, chosen="best", margin=0) == []


def test_pairs_are_read_as_they_were_written() -> None:
    (pair,) = made(HALF)
    assert Pair.from_dict(json.loads(json.dumps(pair.to_dict()))) == pair


def test_some_examples_are_drawn_by_the_seed_and_keep_their_order() -> None:
    rows = [example(f"row {number}") for number in range(20)]
    first = some(rows, 5, seed=1)
    assert first == some(rows, 5, seed=1) != some(rows, 5, seed=2)
    assert [rows.index(row) for row in first] == sorted(rows.index(row) for row in first)
    assert some(rows, 20, seed=1) == some(rows, 99, seed=1) == rows


RECIPE = """\
task: text
base: tiny
data:
  train: train.jsonl
  held_out: held.jsonl
{schema}
train:
  method: grpo
  batch_size: 8
  forced_weight: {forced}
prefer:
  samples: {samples}
  constrained: {constrained}
"""


def said(folder: Path, *, schema: str, samples: int, constrained: str, forced: float = 1) -> str:
    path = folder / "x.yaml"
    path.write_text(
        RECIPE.format(schema=schema, samples=samples, constrained=constrained, forced=forced)
    )
    with pytest.raises(UserError) as caught:
        load(path)
    return str(caught.value)


def test_what_the_methods_need_is_asked_for(tmp_path: Path) -> None:
    text = said(tmp_path, schema="", samples=4, constrained="false", forced=0.5)
    assert "x.yaml:8: train.method needs data.schema, which answers are judged by" in text
    assert (
        "x.yaml:10: train.forced_weight needs data.schema, which defines the forced tokens" in text
    )
    text = said(tmp_path, schema="  schema: s.json", samples=3, constrained="true")
    assert "x.yaml:12: prefer.samples 3 does not divide the 8 answers of a step" in text
    assert "x.yaml:13: prefer.constrained is for dpo" in text
    text = said(tmp_path, schema="  schema: s.json", samples=4, constrained="false", forced=0)
    assert "x.yaml:10: with train.forced_weight 0 the tokens that the schema forces are not" in text


def test_settings_without_effect_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("task: text\nbase: tiny\ndata: {train: t.jsonl}\nprefer: {beta: 0.2}\n")
    assert "prefer has no effect while train.method is sft" in load(path).warnings()
