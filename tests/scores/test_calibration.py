"""Calibration against cases worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import pytest

from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.example import Answer
from llm_lora.schema.answer import AnswerSchema
from llm_lora.scores.calibration import confidences, reliability
from llm_lora.scores.scoring import FieldScore

SCHEMA = AnswerSchema.from_text(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "level": {"enum": ["low", "high"]},
                "urgent": {"type": "boolean"},
                "name": {"type": "string"},
                "drugs": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"unit": {"enum": ["mg", "g"]}}},
                },
            },
        }
    )
)


def spoken(*tokens: tuple[str, float]) -> Answer:
    """An answer made of tokens with probabilities."""
    text, chances = "", []
    for token, probability in tokens:
        chances.append((len(text), math.log(probability)))
        text += token
    return Answer(text, len(tokens), "stop", tuple(chances))


def test_a_values_probability_is_that_of_its_tokens() -> None:
    answer = spoken(
        *(('{"level', 0.9), ('":', 0.9), ('"lo', 0.5), ("w", 0.8), ('","', 0.7)),
        *(("urgent", 0.9), ('":true', 0.6), (',"name":', 0.1), ('"x"', 0.1), ("}", 0.9)),
    )
    found = confidences(SCHEMA, answer)
    # level: `"lo`, `w` and the closing token; urgent: the token that contains it.
    assert found == {"level": pytest.approx(0.5 * 0.8 * 0.7), "urgent": pytest.approx(0.6)}


def test_tokens_beside_a_value_have_no_part_in_it() -> None:
    answer = spoken(('{"urgent":', 0.1), ("true", 0.25), ("", 0.5), ("}", 0.1))
    assert confidences(SCHEMA, answer) == {"urgent": pytest.approx(0.25)}


@pytest.mark.parametrize(
    "text", ["oh", '{"urgent":tr', '{ "urgent": true }', '{"drugs":[{"unit":"mg"}]}', "{}"]
)
def test_what_cannot_be_told_apart_has_no_probability(text: str) -> None:
    assert confidences(SCHEMA, spoken(*((letter, 0.5) for letter in text))) == {}


def test_without_token_probabilities_there_is_none() -> None:
    assert confidences(SCHEMA, Answer('{"urgent":true}', 5, "stop")) == {}


@dataclass
class Row:
    confidence: dict[str, float]
    right: dict[str, bool] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, FieldScore]:
        return {name: FieldScore("closed", float(hit), 1, 1) for name, hit in self.right.items()}


def test_the_error_is_the_mean_distance_from_the_diagonal() -> None:
    rows = [Row({"a": 0.95}, {"a": hit}) for hit in (True, True, True, False)]
    rows += [Row({"a": 0.55, "b": 1.0}, {"a": False, "b": True})]
    table = reliability(rows)
    assert table is not None
    found = table.to_json()
    assert found is not None
    # Bin 0.5 to 0.6: one value, confidence 0.55, accuracy 0. Bin 0.9 to 1: confidence
    # (4 * 0.95 + 1) / 5 = 0.96, accuracy 4 / 5. ECE: (1 * 0.55 + 5 * 0.16) / 6.
    assert found["bins"] == [
        {"low": 0.5, "high": 0.6, "n": 1, "confidence": 0.55, "accuracy": 0.0},
        {"low": 0.9, "high": 1.0, "n": 5, "confidence": 0.96, "accuracy": 0.8},
    ]
    assert found["ece"] == pytest.approx((0.55 + 5 * 0.16) / 6, abs=1e-6)
    assert (found["n"], found["accuracy"]) == (6, pytest.approx(4 / 6, abs=1e-6))
    # a alone: the upper bin has confidence 0.95 and is right in 3 of 4.
    assert found["fields"]["a"]["ece"] == pytest.approx((0.55 + 4 * 0.2) / 5, abs=1e-6)
    assert found["fields"]["b"] == {"n": 1, "confidence": 1.0, "accuracy": 1.0, "ece": 0.0}


def test_bins_begin_at_their_lower_bound_and_the_last_holds_one() -> None:
    said = [0.0, 0.09, 0.5, 0.59, 0.9, 1.0]
    found = reliability([Row({"a": one}, {"a": True}) for one in said])
    assert found is not None
    assert [(one.low, one.high, one.n) for one in found.bins] == [
        (0.0, 0.1, 2),
        (0.5, 0.6, 2),
        (0.9, 1.0, 2),
    ]


def test_a_value_that_is_partly_right_is_wrong() -> None:
    @dataclass
    class Partly:
        confidence: dict[str, float]
        fields: dict[str, FieldScore]

    found = reliability([Partly({"a": 0.5}, {"a": FieldScore("closed", 0.5, 1, 1)})])
    assert found is not None and found.accuracy == 0.0


def test_rounding_in_an_engine_makes_nobody_more_than_sure() -> None:
    text = '{"urgent":true}'
    answer = Answer(text, 3, "stop", ((0, 0.0), (10, 1e-3), (14, 0.0)))
    assert confidences(SCHEMA, answer) == {"urgent": 1.0}


def test_without_any_probability_there_is_no_table() -> None:
    assert reliability([]) is reliability([Row({})]) is None


def test_tokens_begin_where_the_text_says() -> None:
    chat = Chat.load(bases.resolve("tiny").path)
    text = '{"name":"Zoë 頭痛 🤒","urgent":true}'
    ids = chat.ids(text)
    places = chat.places(ids)
    assert places[0] == 0 and places == sorted(places)
    assert chat.decode(ids) == text
    at = text.index("true")
    first = places.index(at) if at in places else max(i for i, p in enumerate(places) if p <= at)
    # Every token after the emoji starts where the text before it ends.
    for number in range(first, len(ids)):
        assert places[number] == len(chat.decode(ids[:number]))
