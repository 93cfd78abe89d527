"""What tokens count in the loss: closed values more, what the grammar forces less."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from support.places import ROOT, TEMPLATE

from llm_lora.base import text as bases
from llm_lora.base.chat import Chat, Encoded
from llm_lora.data.text.dataset import prepare
from llm_lora.data.text.weighing import Course, weigh
from llm_lora.errors import UserError
from llm_lora.example import Example, Message, make_example
from llm_lora.recipe.loading import load
from llm_lora.schema.answer import AnswerSchema

CHAT = Chat.load(bases.resolve("tiny").path)


def schema(properties: dict[str, Any], required: Sequence[str] | None = None) -> AnswerSchema:
    return AnswerSchema.from_text(
        json.dumps(
            {
                "type": "object",
                "properties": properties,
                "required": list(properties) if required is None else required,
                "additionalProperties": False,
            }
        )
    )


def example(answer: str) -> Example:
    return make_example((Message("user", "hello"),), answer, part=None, where="here")


def split(found: AnswerSchema, answer: str) -> tuple[list[str], list[str], bool]:
    """The texts of forced and of other tokens, and whether the end of the turn is forced."""
    encoded = CHAT.encode(example(answer))
    ids = encoded.input_ids[encoded.prompt_tokens :][: encoded.answer_tokens]
    flags = Course(found, CHAT).forced(ids)
    assert len(flags) == len(ids)
    pairs = list(zip(ids[:-1], flags, strict=False))
    forced = [CHAT.decode([token]) for token, flag in pairs if flag]
    free = [CHAT.decode([token]) for token, flag in pairs if not flag]
    return forced, free, flags[-1]


def test_keys_and_punctuation_are_forced_and_values_are_not() -> None:
    found = schema(
        {"severity": {"enum": ["mild", "moderate", "severe"]}, "age": {"type": "integer"}}
    )
    forced, free, end = split(found, '{"severity":"moderate","age":41}')
    assert "severity" not in "".join(free) and "age" not in "".join(free)
    assert "".join(free).startswith("mod") and "41" in "".join(free)
    # "mo" can only go on to moderate.
    assert "erate" in "".join(forced)
    assert end


def test_the_key_is_a_choice_where_properties_are_optional() -> None:
    properties = {"dose": {"type": "boolean"}, "name": {"type": "boolean"}}
    forced, _, _ = split(schema(properties), '{"dose":true,"name":true}')
    assert "dose" in "".join(forced)
    _, free, end = split(schema(properties, []), '{"dose":true}')
    assert "d" in "".join(free) and "true" in "".join(free)
    assert end


def test_the_end_is_a_choice_where_the_answer_could_go_on() -> None:
    number = AnswerSchema.from_text('{"type": "integer", "minimum": 0}')
    _, free, end = split(number, "7")
    assert free == ["7"] and not end


def test_nothing_is_forced_behind_what_the_grammar_refuses() -> None:
    found = schema({"age": {"type": "integer"}, "sex": {"enum": ["f", "m"]}})
    forced, free, end = split(found, '{"age":"old","sex":"f"}')
    assert "age" in "".join(forced)
    assert "sex" in "".join(free) and not end


def trained(answer: str) -> list[int]:
    encoded = CHAT.encode(example(answer))
    return encoded.input_ids[encoded.prompt_tokens :][: encoded.answer_tokens]


def test_a_course_allows_what_the_grammar_does_and_the_answers_own_token() -> None:
    course = Course(schema({"ok": {"type": "boolean"}}), CHAT)
    ids = trained('{"ok":true}')
    allowed = course.allowed(ids)
    assert allowed.dtype == bool and len(allowed) == len(ids)
    assert all(row[token] for row, token in zip(allowed, ids, strict=True))
    true = next(at for at, token in enumerate(ids) if "t" in CHAT.decode([token]))
    begins = {CHAT.decode([int(token)])[:2].strip('":')[:1] for token in allowed[true].nonzero()[0]}
    assert begins == {"t", "f"}
    # It begins anew with every answer, whatever became of the one before.
    assert not course.allowed(trained('{"no":true}'))[0].all()
    assert (course.allowed(ids) == allowed).all()


def test_where_an_answer_must_end_its_own_end_token_stands_alone() -> None:
    course = Course(schema({"ok": {"type": "boolean"}}), CHAT)
    *ids, end = trained('{"ok":true}')
    for last in (end, end + 5):
        (found,) = course.allowed([*ids, last])[-1].nonzero()
        assert found.tolist() == [last]


def test_from_what_the_grammar_refuses_on_anything_may_stand() -> None:
    course = Course(schema({"age": {"type": "integer"}, "sex": {"enum": ["f", "m"]}}), CHAT)
    ids = trained('{"age":"old","sex":"f"}')
    everything = [bool(row.all()) for row in course.allowed(ids)]
    refused = everything.index(True)
    assert everything == [False] * refused + [True] * (len(ids) - refused)
    # The first token that is refused begins the string.
    assert CHAT.decode(ids[: refused + 1]) == '{"age":"'


def test_every_forced_token_of_the_medical_data_is_the_one_that_training_has() -> None:
    recipe = load(ROOT / "recipes" / "medical_qa.yaml", profile="cpu")
    found = AnswerSchema.load(TEMPLATE / "answer.schema.json")
    dataset = prepare(recipe, found, CHAT)
    course = Course(found, CHAT)
    shares = []
    for one in dataset.train[:100]:
        encoded = CHAT.encode(one)
        flags = course.forced(encoded.input_ids[encoded.prompt_tokens :][: encoded.answer_tokens])
        # All keys are required, so the end is always forced; it is not if anything was refused.
        assert flags[-1], one.answer
        shares.append(sum(flags) / len(flags))
    assert 0.35 < sum(shares) / len(shares) < 0.5


MIXED = schema(
    {
        "ok": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 30},
        "level": {"enum": ["low", "high"]},
    },
    required=["ok", "note"],
)
ANSWERS = ('{"ok":true,"note":"a true word","level":"low"}', '{"ok":false,"note":""}')


def weighed(closed: float, forced: float) -> tuple[list[Encoded], list[list[float]]]:
    examples = [example(answer) for answer in ANSWERS]
    encoded = [CHAT.encode(one) for one in examples]
    return encoded, weigh(examples, encoded, CHAT, MIXED, closed=closed, forced=forced)


@pytest.mark.parametrize(("closed", "forced"), [(4.0, 1.0), (1.0, 0.25), (1.0, 0.0), (5.0, 0.3)])
def test_the_mean_weight_of_answers_is_one_and_prompts_have_none(
    closed: float, forced: float
) -> None:
    encoded, rows = weighed(closed, forced)
    for one, weights in zip(encoded, rows, strict=True):
        assert len(weights) == len(one.input_ids)
        assert not any(w for w, scored in zip(weights, one.mask, strict=True) if not scored)
    total = sum(map(sum, rows))
    assert total == pytest.approx(sum(one.answer_tokens for one in encoded))


def marked(encoded: Encoded, weights: list[float], weight: float) -> str:
    ids = zip(encoded.input_ids, weights, strict=True)
    return CHAT.decode([token for token, one in ids if one == pytest.approx(weight)])


def test_closed_values_weigh_more() -> None:
    encoded, rows = weighed(4.0, 1.0)
    light, heavy = sorted({round(w, 9) for row in rows for w in row if w})
    assert heavy == pytest.approx(4 * light)
    text = marked(encoded[0], rows[0], heavy)
    assert "true" in text and "word" not in text and "note" not in text


def test_exactly_the_tokens_that_begin_in_a_closed_value_weigh_more() -> None:
    encoded, rows = weighed(4.0, 1.0)
    heavy = max(weight for row in rows for weight in row)
    values = {ANSWERS[0]: ("true,", '"low"}'), ANSWERS[1]: ("false,",)}
    for answer, one, weights in zip(ANSWERS, encoded, rows, strict=True):
        spans = [
            (answer.index(text), answer.index(text) + len(text) - 1) for text in values[answer]
        ]
        inside = [any(start <= at < end for start, end in spans) for at in one.starts]
        own = weights[one.prompt_tokens :][: one.answer_tokens]
        assert [weight == heavy for weight in own] == inside
        # The note's "true" is no value of its own, and the comma behind one is none either.
        assert 0 < sum(inside) < len(inside)


def test_weights_of_one_leave_every_token_at_one() -> None:
    encoded, rows = weighed(1.0, 1.0)
    assert rows == [[float(scored) for scored in one.mask] for one in encoded]


def test_forced_tokens_weigh_less_also_within_closed_values() -> None:
    encoded, rows = weighed(4.0, 0.5)
    low, plain, heavy = sorted({round(w, 9) for row in rows for w in row if w})
    assert [plain / low, heavy / plain] == pytest.approx([2, 4])
    assert "note" in marked(encoded[0], rows[0], low)
    assert "word" in marked(encoded[0], rows[0], plain)
    assert "true" in marked(encoded[0], rows[0], heavy)


def test_masked_tokens_have_no_weight_at_all() -> None:
    encoded, rows = weighed(1.0, 0.0)
    answer = slice(encoded[0].prompt_tokens, encoded[0].prompt_tokens + encoded[0].answer_tokens)
    assert 0.0 in rows[0][answer]
    assert len({round(w, 9) for w in rows[0][answer]}) == 2


def test_a_schema_that_leaves_nothing_to_learn_is_refused() -> None:
    constant = schema({"ok": {"const": True}})
    one = example('{"ok":true}')
    with pytest.raises(UserError, match="forces every token") as caught:
        weigh([one], [CHAT.encode(one)], CHAT, constant, closed=1, forced=0)
    assert "train.forced_weight" in str(caught.value)
