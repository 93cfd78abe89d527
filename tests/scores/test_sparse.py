"""A schema of many optional slots: what is left out by both sides must not look like success."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_scores import make, record

from llm_lora.example import Answer, Example, Message, make_example
from llm_lora.report.text.answers import judge, part_figures
from llm_lora.scores import Forms, baselines
from llm_lora.scores.figures import Figures
from llm_lora.scores.gates import judge as judge_gates

INTENTS = ("book", "play", "rate")
SLOTS = [f"slot_{number}" for number in range(39)]
SCHEMA = make(
    record(
        intent={"enum": list(INTENTS)},
        slots=record(**{name: {"type": "string", "maxLength": 20} for name in SLOTS}),
    )
)

Value = dict[str, Any]


def references(count: int, seed: int) -> list[Value]:
    """Answers with one to four of the slots."""
    draw = random.Random(seed)
    return [
        {
            "intent": draw.choice(INTENTS),
            "slots": {
                name: f"v{draw.randrange(1000)}"
                for name in sorted(draw.sample(SLOTS, draw.randint(1, 4)))
            },
        }
        for _ in range(count)
    ]


def examples(values: list[Value]) -> list[Example]:
    found = []
    for number, value in enumerate(values):
        said = ", ".join(f"{name} is {text}" for name, text in value["slots"].items())
        prompt = (Message("user", f"{value['intent']} please: {said}"),)
        found.append(make_example(prompt, json.dumps(value), part=None, where=str(number)))
    return found


HELD_OUT = references(150, seed=1)


def keep(share: float) -> Callable[[Value], Value]:
    """The right intent, and each slot with a chance of `share`."""
    draw = random.Random(2)

    def predict(value: Value) -> Value:
        slots = {name: text for name, text in value["slots"].items() if draw.random() < share}
        return value | {"slots": slots}

    return predict


PREDICTORS: dict[str, Callable[[Value], Value]] = {
    "nothing": lambda value: {"intent": "X", "slots": {}},
    "nulls": lambda value: {"intent": None, "slots": dict.fromkeys(SLOTS)},
    "blanks": lambda value: {"intent": "", "slots": dict.fromkeys(SLOTS, "")},
    "right intent": keep(0.0),
    "a quarter": keep(0.25),
    "half": keep(0.5),
    "three quarters": keep(0.75),
    "wrong values": lambda value: value | {"slots": dict.fromkeys(value["slots"], "wrong")},
    "spurious": lambda value: value | {"slots": dict.fromkeys(SLOTS, "x") | value["slots"]},
    "perfect": lambda value: value,
}


def figures(predict: Callable[[Value], Value]) -> Figures:
    answers = [Answer(json.dumps(predict(value)), 1, "stop") for value in HELD_OUT]
    return part_figures(judge(SCHEMA, examples(HELD_OUT), answers)).all


def values(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from values(inner, (*path, key))
    elif value:
        yield path, str(value)


def by_hand(predict: Callable[[Value], Value]) -> tuple[float, float, float]:
    """Precision, recall and F1 over paths and values, without any of the project's code."""
    hits = given = expected = 0
    for value in HELD_OUT:
        wanted, found = Counter(values(value)), Counter(values(predict(value)))
        hits += (wanted & found).total()
        given += found.total()
        expected += wanted.total()
    precision = hits / given if given else 0.0
    recall = hits / expected
    return precision, recall, 2 * hits / (given + expected)


@pytest.mark.parametrize("name", PREDICTORS)
def test_scores_are_those_counted_by_hand(name: str) -> None:
    # A predictor draws anew for each table, so that both see the same answers.
    draw = PREDICTORS[name]
    if name in ("a quarter", "half", "three quarters"):
        share = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75}[name]
        found, expected = figures(keep(share)), by_hand(keep(share))
    else:
        found, expected = figures(draw), by_hand(draw)
    got = (found.precision or 0.0, found.recall, found.field_f1)
    assert got == pytest.approx(expected, abs=1e-6)


def test_scores_rise_with_what_is_right() -> None:
    f1 = {name: figures(predict).field_f1 or 0.0 for name, predict in PREDICTORS.items()}
    assert f1["nothing"] == f1["nulls"] == f1["blanks"] == 0
    rising = ["nothing", "right intent", "a quarter", "half", "three quarters", "perfect"]
    steps = [f1[name] for name in rising]
    assert steps == sorted(steps) and steps[-1] == 1
    # No step between them is more than half of the way.
    assert max(b - a for a, b in itertools.pairwise(steps)) < 0.5
    assert f1["wrong values"] <= f1["right intent"] and f1["spurious"] < 0.2


def test_an_answer_without_any_slot_is_perfect_nowhere() -> None:
    found = figures(PREDICTORS["right intent"])
    slots = {name: field for name, field in found.fields.items() if name.startswith("slots.")}
    assert len(slots) == 39
    assert all(field.f1 == 0 and field.recall == 0 for field in slots.values() if field.support)
    assert all(field.absent == 150 - field.support for field in slots.values())
    assert found.fields["intent"].f1 == 1
    # One field of the 40 is right.
    supported = 1 + sum(field.support > 0 for field in slots.values())
    assert found.macro_f1 == pytest.approx(1 / supported, abs=1e-6)


def test_trivial_baselines_are_answers_that_need_no_model() -> None:
    train = examples(references(200, seed=3))
    found = baselines(SCHEMA, train, examples(HELD_OUT))
    assert list(found) == ["constant", "frequent", "nearest"]
    assert {len(texts) for texts in found.values()} == {150}
    assert len(set(found["constant"])) == len(set(found["frequent"])) == 1
    (intent, _), *_ = Counter(json.loads(one.answer)["intent"] for one in train).most_common()
    assert json.loads(found["frequent"][0]) == {"intent": intent}
    again = baselines(SCHEMA, train, train)
    assert again["nearest"] == [one.answer for one in train]
    assert baselines(SCHEMA, [], train) == {}


def test_free_text_has_the_best_constant_and_the_nearest_answer() -> None:
    train = [
        make_example((Message("user", prompt),), answer, part=None, where=prompt)
        for prompt, answer in [
            ("what is the fee", "the fee is ten"),
            ("when do you open", "we open at ten"),
            ("when do you close", "we close at nine"),
        ]
    ]
    held_out = [make_example((Message("user", "when will you close"),), "x", part=None, where="0")]
    found = baselines(None, train, held_out)
    assert found == {"constant": ["we open at ten"], "nearest": ["we close at nine"]}


@pytest.mark.parametrize(
    ("name", "passes"),
    [("nothing", False), ("nulls", False), ("half", True), ("perfect", True)],
)
def test_an_adapter_must_beat_them(name: str, passes: bool) -> None:
    train = examples(references(200, seed=3))
    held_out = examples(HELD_OUT)
    trivial = {
        baseline: part_figures(judge(SCHEMA, held_out, [Answer(one, 1, "stop") for one in texts]))
        for baseline, texts in baselines(SCHEMA, train, held_out).items()
    }
    answers = [Answer(json.dumps(PREDICTORS[name](value)), 1, "stop") for value in HELD_OUT]
    own = Forms({"unconstrained": part_figures(judge(SCHEMA, held_out, answers))})
    (gate,) = judge_gates(
        {"better_than_baselines": True, "field_f1": None},
        {"adapter": own},
        baselines=trivial,
        constrained=None,
        rival=None,
        latency=None,
    )
    assert gate.passed is passes, (gate, {n: p.all.field_f1 for n, p in trivial.items()})
    assert gate.bound == "more than"
