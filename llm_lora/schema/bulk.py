"""Many JSON texts read at once: what `jsontext.parse` makes of each, at three times its speed.

A fast parser reads what it can. It differs from strict JSON in two things, which are checked for
all texts together: it takes a key twice in one object, and deeper nesting. Whatever is in doubt is
read again by `jsontext`, which also says what is wrong.
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
"""Texts that are read sooner than the fast parser is imported."""


@functools.cache
def _fast() -> tuple[Callable[[bytes], object], Callable[[object], bytes], type[Exception]]:
    """The fast parser, its writer, and what it raises."""
    import msgspec

    return msgspec.json.Decoder().decode, msgspec.json.Encoder().encode, msgspec.MsgspecError


def parse_all(texts: Sequence[bytes]) -> list[object]:
    """The value of each text, or the `NotJson` that `jsontext.parse` raises for it.

    A text that is not UTF-8 is not JSON either, nor is one that begins with a byte order mark.
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
    """Whether the values hold every member of the texts, and none of the texts nests too deep.

    Written again, a value has as many colons as its text, inside strings and between keys and
    values alike, unless members were lost because their key came twice (or a colon was escaped).
    The number of opening brackets bounds the depth.
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
    """Spare the search for cycles, which JSON values do not have; it takes a third of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
