"""Adapters in prompts: what is read, what is left, and how mistakes are told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lora.errors import UserError
from llm_lora.lora_prompt import Pick, parse, without


@pytest.mark.parametrize(
    ("prompt", "text", "picks"),
    [
        ("a cat", "a cat", []),
        ("a  cat ,, (x:1.2)", "a  cat ,, (x:1.2)", []),
        ("<lora:ink:0.8>", "", [Pick("ink", 0.8, 0.8)]),
        ("<lora:ink>", "", [Pick("ink")]),
        ("a cat, <lora:ink:0.8>", "a cat", [Pick("ink", 0.8, 0.8)]),
        ("<lora:ink:1>, a cat", "a cat", [Pick("ink")]),
        ("a cat, <lora:ink:1>, a dog", "a cat, a dog", [Pick("ink")]),
        ("a cat <lora:ink:.5> a dog", "a cat a dog", [Pick("ink", 0.5, 0.5)]),
        ("a cat,<lora:ink:1>a dog", "a cat, a dog", [Pick("ink")]),
        ("wo<lora:ink:1>rd", "word", [Pick("ink")]),
        ("a, <lora:x:0.6> <lora:y:-0.4:1>", "a", [Pick("x", 0.6, 0.6), Pick("y", 1, -0.4)]),
        ("(a cat, <lora:ink:1>:1.2), sea", "(a cat:1.2), sea", [Pick("ink")]),
        ("(<lora:ink:1>, a cat:1.2)", "(a cat:1.2)", [Pick("ink")]),
        ("sea, (<lora:ink:1>:1.3), sky", "sea, sky", [Pick("ink")]),
        ("sea, [(<lora:ink:1>)] sky", "sea, sky", [Pick("ink")]),
        (r"sea \(<lora:ink:1>\) sky", r"sea \(\) sky", [Pick("ink")]),
        ("a < b, <lora:ink:1>", "a < b", [Pick("ink")]),
        ("A < LoRA : my style v2 : 1 > b", "A b", [Pick("my style v2")]),
    ],
)
def test_what_is_read_and_what_is_left(prompt: str, text: str, picks: list[Pick]) -> None:
    assert parse(prompt) == (text, tuple(picks))


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a, <lora:ink:0.8", "prompt, character 4: <lora: without >"),
        ("<lora:ink <lora:b:1>", "prompt, character 1: <lora: without >"),
        ("<lora:>", "without a name"),
        ("<lora::1>", "without a name"),
        ("<lora:ink:strong>", "'strong' is not a valid strength for ink"),
        ("<lora:ink:>", "'nothing' is not a valid strength for ink"),
        ("<lora:ink:nan>", "'nan' is not a valid strength for ink"),
        ("<lora:ink:1e9>", "'1e9' is not a valid strength for ink"),
        ("<lora:ink:101>", "'101' is not a valid strength for ink"),
        ("<lora:ink:1:1:1>", "ink has 3 strengths"),
        ("<lora:ink:1>, <lora:ink:2>", "prompt, character 15: ink is named twice"),
        ("a city, lora:my_style:0.8", "prompt, character 9: lora:my_style:0.8 without < and >"),
    ],
)
def test_mistakes_name_their_place(prompt: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        parse(prompt)
    assert told in str(error.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        parse("<lora:>, lora:a:1, <lora:b:x>")
    assert [problem.where for problem in error.value.problems] == [
        "prompt, character 1",
        "prompt, character 20",
        "prompt, character 10",
    ]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a red fox", "a red fox"),
        ("a  cat ,, (x:1.2)", "a  cat ,, (x:1.2)"),
        ("a red fox, <lora:detail:0.6>", "a red fox"),
        ("a fox lora:detail:0.6, at night", "a fox, at night"),
        ("<lora:a:x:y:z>, a fox, <LoRA : b", "a fox"),
        ("<lora:a:1>", ""),
        ("a fox <lo<lora:a:1>ra:b:1>", "a fox"),
    ],
)
def test_names_are_left_out_of_captions(text: str, left: str) -> None:
    assert without(text) == left


@settings(deadline=None)
@given(st.text("lora:<> ,1a()", max_size=40) | st.text(max_size=40))
def test_what_is_left_of_a_caption_names_nothing(text: str) -> None:
    left = without(text)
    assert parse(left) == (left, ())


names = st.text("abcXYZ019_- .", min_size=1, max_size=8).map(str.strip).filter(bool)
weights = st.floats(-2, 2).map(lambda number: round(number, 3))
picks = st.builds(Pick, names, weights, weights)
words = st.text("ab ,()[]:12\\", max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(words, picks), max_size=4, unique_by=lambda pair: pair[1].name), words)
def test_names_are_found_and_nothing_else_is_lost(parts: list[tuple[str, Pick]], last: str) -> None:
    prompt = "".join(before + str(pick) for before, pick in parts) + last
    plain = "".join(before for before, _ in parts) + last
    text, found = parse(prompt)
    assert found == tuple(pick for _, pick in parts)
    assert "<lora" not in text

    def content(some: str) -> str:
        """The words: weights of attention and punctuation may go with an empty group."""
        return re.sub(r"[^ab]", "", some)

    assert content(text) == content(plain)
    if not parts:
        assert text == plain


balanced = st.recursive(
    st.sampled_from(["a", "b b", "a, b", "<lora:x:1>", "a <lora:x:1>", "a, <lora:x:1>, b"]),
    lambda inner: st.one_of(
        st.builds("({})".format, inner),
        st.builds("({}:1.2)".format, inner),
        st.builds("[{}]".format, inner),
        st.builds("{}, {}".format, inner, inner),
    ),
    max_leaves=6,
).filter(lambda prompt: prompt.count("<") == 1)


@settings(deadline=None)
@given(balanced)
def test_attention_syntax_stays_whole(prompt: str) -> None:
    text, _ = parse(prompt)
    depth = 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        assert depth >= 0
    assert depth == 0
    assert not re.search(r",\s*,|\(\s*[,):]|\[\s*[,\]]|,\s*[)\]:]|^\s*,|,\s*$|  ", text), text


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(prompt: str) -> None:
    try:
        text, found = parse(prompt)
    except UserError:
        return
    if not found:
        assert text == prompt
