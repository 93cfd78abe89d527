"""Repairs: only what is certain, and only by taking away."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lora.schema import json_text as jsontext
from llm_lora.schema.repair import mend

CERTAIN = {
    '```json\n{"a":1}\n```': ('{"a":1}', ("code_fence",)),
    '```\n[1,2]\n```': ("[1,2]", ("code_fence",)),
    'Sure!\n```json\n{"a":1}\n```\nHope this helps.': ('{"a":1}', ("code_fence", "prose")),
    '```json\n{"a":1}': ('{"a":1}', ("code_fence",)),
    'Here is the answer: {"a":{"b":"}"}} Anything else?': ('{"a":{"b":"}"}}', ("prose",)),
    '<think>well</think>{"a":1}': ('{"a":1}', ("prose",)),
    '{"a":[1,2,],"b":{"c":1 , } ,\n}': ('{"a":[1,2],"b":{"c":1  } \n}', ("trailing_comma",)),
    'Yes: {"a":",]",}': ('{"a":",]"}', ("prose", "trailing_comma")),
    '\ufeff{"a":1}': ('{"a":1}', ("byte_order_mark",)),
    '```json\n{"a":"```"}\n```': ('{"a":"```"}', ("prose",)),
    "[1,]": ("[1]", ("trailing_comma",)),
}  # fmt: skip
UNCERTAIN = [
    "", "no", '{"a":1', '{"a":"b', "{'a':1}", '{"a":True}', '{"a":1}{"a":2}', '{"a":1}\n{"a":2}',
    '{"a":1} or [1]', 'use {x}: {"a":1}', '[1]: {"a":1}', '"inner": {"a":1}', '{"a":1}}',
    '{"a":1]}', '[{"a":1}', '{"a":1,,}', "[,]", "{,}", '{"a":,}', '{"a" 1}', '{"a":NaN}',
    '{"a":1,"a":2,}',
    '```json\n{"a":1}\n```\n```json\n{"a":2}\n```', '{"b":2}\n```json\n{"a":1}\n```', "// {}\n{,",
    '{"a":1 /* one */}', "42 is it", '{"a":1,"b":{"c":2,}', "```\nno\n```",
]  # fmt: skip


@pytest.mark.parametrize("text", CERTAIN)
def test_what_is_certain(text: str) -> None:
    mended = mend(text)
    assert mended is not None
    assert (mended.text, mended.removed) == CERTAIN[text]


@pytest.mark.parametrize("text", UNCERTAIN)
def test_what_is_left_as_it_is(text: str) -> None:
    assert mend(text) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text('ab{}[],:"` \n', max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text("a,}", max_size=2), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
objects = st.dictionaries(st.text("ab", max_size=2), values, max_size=3)
PIECES = [
    '{"a":', '"b"', "1", ",", "}", "]", "[", "{", "```json\n", "\n```", " x ", '"', ": ",
]  # fmt: skip
prose = st.text("Ab1.,:!?'\n ", max_size=8)


@settings(max_examples=300, deadline=None)
@given(objects, prose, prose, st.booleans(), st.sampled_from([None, 1]))
def test_an_object_in_words_comes_back_whole(
    value: Any, before: str, after: str, fenced: bool, indent: int | None
) -> None:
    written = json.dumps(value, indent=indent)
    if fenced and "```" not in written:
        written = f"```json\n{written}\n```"
    mended = mend(f"{before}\n{written}\n{after}")
    if mended is not None:
        assert jsontext.parse(mended.text) == value
    else:
        assert "```" in written or not (before + after).strip()


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_nothing_is_ever_made_up(text: str) -> None:
    mended = mend(text)
    if mended is None:
        return
    assert mended.removed
    jsontext.parse(mended.text)
    rest = iter(text)
    assert all(character in rest for character in mended.text), "not a part of the text"
    inside = [part for part in mended.text if part not in ", \n"]
    assert "".join(inside) in "".join(part for part in text if part not in ", \n")
