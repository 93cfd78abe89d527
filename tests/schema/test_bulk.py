"""Reading many JSON texts at once comes to the same as reading them one by one."""

from __future__ import annotations

import gc
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lora.schema import bulk
from llm_lora.schema import json_text as jsontext
from llm_lora.schema.json_text import NotJson

TRICKY = [
    b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b'[{"a":1},{"a":1}]', b'{"\\u0061":1,"a":2}',
    b'{"a":":","b":"::"}', b'{"a:":1,"a:":2}', b'{"a":"\\u003a","a":"::"}', b'{"a":"\\u003A"}',
    b'{"a":1,"a":"\\u003a"}',
    b"NaN", b"[Infinity]", b"1e400", b"-1e400", b"9" * 4300, b"9" * 4301, b"9" * 400 + b".0",
    b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\udc00\\ud800"', b"-0", b"-0.0", b"1E5", b"01", b"1.",
    b'"\x01"', b'"\t"', b"\xef\xbb\xbf{}", b" {} \r", b"{}x", b'"\xff"', b'"\xed\xa0\x80"', b"[1,]",
    b"tru", b"", b" ", b"\x0c{}", b"{}\x00", b"\xc2\xa0{}", b"1e-400", b"18446744073709551616",
    b"123456789012345678901234567890.5", b"2.2250738585072011e-308", b'"\\/\\u0000"', b"'a'",
    b"[" * 128 + b"]" * 128, b"[" * 129 + b"]" * 129, b'{"a":' * 129 + b"1" + b"}" * 129,
    b"[" * 250 + b"]" * 250, b"[" * 100_000, json.dumps("[" * 500).encode(), b"[{}]" * 2,
    b"[" + b"[]," * 200 + b"[]]",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def fast_from_the_first() -> Iterator[None]:
    """A few texts are read by jsontext; here the fast parser reads them, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "_FEW", 0)
        yield


def expected(text: bytes) -> object:
    """What jsontext makes of a text."""
    try:
        return jsontext.parse(text.decode())
    except UnicodeDecodeError:
        return "not UTF-8"
    except NotJson as error:
        return [str(flaw) for flaw in error.flaws]


def found(value: object) -> object:
    if not isinstance(value, NotJson):
        return value
    flaws = [str(flaw) for flaw in value.flaws]
    return "not UTF-8" if value.flaws[0].keyword == "utf8" else flaws


def same(one: Any, other: Any) -> bool:
    """Equal down to types and the bits of numbers."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return (
        struct.pack("d", one) == struct.pack("d", other) if isinstance(one, float) else one == other
    )


@pytest.mark.parametrize("text", TRICKY, ids=lambda text: repr(text[:24]))
def test_tricky_texts_alone_and_among_others(text: bytes) -> None:
    company = [b'{"a":[1,2.5,"x"]}', text, b"[null,true]"]
    for texts in ([text], company):
        for one, value in zip(texts, bulk.parse_all(texts), strict=True):
            assert same(found(value), expected(one)), one[:40]


def test_all_tricky_texts_together() -> None:
    assert all(map(same, map(found, bulk.parse_all(TRICKY)), map(expected, TRICKY)))
    assert bulk.parse_all([]) == []


pieces = st.sampled_from(
    ['{', '}', '[', ']', ',', ':', '"', '"a"', '"a":', '"b":', '1', '-', '0.5', 'e5', '1e999',
     'null', 'true', 'NaN', ' ', '\\', '\\u003a', '\\ud83d', '\\n', 'é', '\n', '::']
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
written = st.tuples(values, st.booleans(), st.sampled_from([None, 1])).map(
    lambda drawn: json.dumps(drawn[0], ensure_ascii=drawn[1], indent=drawn[2])
)


@settings(max_examples=400, deadline=None)
@given(st.lists(written | st.lists(pieces, max_size=8).map("".join), min_size=1, max_size=4))
def test_any_texts(texts: list[str]) -> None:
    encoded = [text.encode() for text in texts]
    for text, value in zip(encoded, bulk.parse_all(encoded), strict=True):
        assert same(found(value), expected(text)), text


def test_a_changed_byte_anywhere() -> None:
    whole = b'{"name":"a:b","n":[1,-2.5e3,null],"name2":{"x":"\\u00e9\\n","y":true}}'
    dice = random.Random(1)
    texts = []
    for _ in range(4000):
        at = dice.randrange(len(whole))
        texts.append(whole[:at] + bytes([dice.choice(b'{}[],:"\\ae0 \xc3')]) + whole[at + 1 :])
    for text, value in zip(texts, bulk.parse_all(texts), strict=True):
        assert same(found(value), expected(text)), text


def test_the_search_for_cycles_goes_on_afterwards() -> None:
    with pytest.raises(ValueError), bulk.no_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
