"""Batch parsing of JSON texts: the results of `jsontext.parse` at three times its speed.

A fast parser reads what it can. It is laxer than strict JSON in two ways, duplicate keys in an
object and deep nesting, which are checked for all texts together. Doubtful texts are read again by
`jsontext`, which also reports what is wrong.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat

from llm_lora.schema import json_text as jsontext
from llm_lora.schema.json_text import MAX_DEPTH, Flaw, NotJson

_FEW = 64
"""Number of texts up to which importing the fast parser does not pay off."""


@functools.cache
def _fast() -> tuple[Callable[[bytes], object], Callable[[object], bytes], type[Exception]]:
    """The fast parser, its encoder and its exception."""
    import msgspec

    return msgspec.json.Decoder().decode, msgspec.json.Encoder().encode, msgspec.MsgspecError


def parse_all(texts: Sequence[bytes]) -> list[object]:
    """The value of each text, or the `NotJson` that `jsontext.parse` raises for it.

    A text that is not UTF-8 or starts with a byte order mark is not JSON.
    """
    if len(texts) <= _FEW:
        return [_strictly(text) for text in texts]
    decode, _, error = _fast()
    try:
        values = list(map(decode, texts))
    except (error, UnicodeDecodeError, RecursionError):
        return [_parse(text) for text in texts]
    if _alike(texts, values):
        return values
    return [
        value if _alike([text], [value]) else _strictly(text)
        for text, value in zip(texts, values, strict=True)
    ]


def _parse(text: bytes) -> object:
    decode, _, error = _fast()
    try:
        value = decode(text)
    except (error, UnicodeDecodeError, RecursionError):
        return _strictly(text)
    return value if _alike([text], [value]) else _strictly(text)


def _strictly(text: bytes) -> object:
    try:
        return jsontext.parse(text.decode())
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{text[error.start]:02x} at byte {error.start + 1} of the line"
        return NotJson((Flaw("utf8", what, error.start),))
    except NotJson as flaws:
        return flaws


def _alike(texts: Sequence[bytes], values: list[object]) -> bool:
    """Whether the values hold every member of the texts, and no text nests too deep.

    Encoded again, a value has as many colons as its text, inside strings and between keys and
    values alike, unless members were lost to duplicate keys (or a colon was escaped). The number of
    opening brackets is an upper bound of the depth.
    """
    opening = max(map(bytes.count, texts, repeat(b"{")), default=0)
    opening += max(map(bytes.count, texts, repeat(b"[")), default=0)
    if opening > MAX_DEPTH:
        return False
    _, encode, _ = _fast()
    whole = b"".join(texts)
    if b"\\" in whole and b"\\u003" in whole:
        return False
    return whole.count(b":") == encode(values).count(b":")


@contextmanager
def no_collection() -> Iterator[None]:
    """Turn off cyclic garbage collection: JSON values have no cycles, and it takes a third of the
    time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
