"""Repair of answers where only one repair is possible.

Repairs only remove characters: a byte order mark, a code fence, text around the one object, commas
before a closing bracket. An answer that is cut off or holds two objects is left as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_lora.schema import json_text as jsontext

_FENCED = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],]', re.DOTALL)
_BRACKETS = re.compile(r"[{}\[\]]")
_KEY = re.compile(r'"\s*:\s*\Z')


@dataclass(frozen=True)
class Mended:
    """A repaired text, now JSON, and the keywords of the flaws that were removed."""

    text: str
    removed: tuple[str, ...]


def mend(text: str) -> Mended | None:
    """The JSON in a text that is not JSON; None unless exactly one repair is possible."""
    removed: list[str] = []
    body = text.strip()
    if body.startswith("\ufeff"):
        body = body[1:].strip()
        removed.append("byte_order_mark")
    fenced = _unfenced(body)
    if fenced is not None:
        around, body = fenced
        removed.append("code_fence")
        if around.strip():
            removed.append("prose")
    if not _is_json(_without(body, _useless_commas(body))):
        alone = _object(body)
        if alone is None:
            return None
        body = alone
        removed.append("prose")
    commas = _useless_commas(body)
    if commas:
        body = _without(body, commas)
        removed.append("trailing_comma")
    return Mended(body, tuple(dict.fromkeys(removed))) if removed and _is_json(body) else None


def _is_json(text: str) -> bool:
    try:
        jsontext.parse(text)
    except jsontext.NotJson:
        return False
    return True


def _unfenced(text: str) -> tuple[str, str] | None:
    """The text around the only code fence of a text, and the text inside it."""
    found = _FENCED.search(text)
    if found is None or text.count("```") > 2:
        return None
    around = text[: found.start()] + text[found.end() :]
    # Brackets outside may be another answer.
    return None if _BRACKETS.search(around) else (around, found[1].strip())


def _object(text: str) -> str | None:
    """The only object in a text, if it is complete."""
    start = text.find("{")
    depth, end = 0, -1
    for token in _TOKEN.finditer(text, max(start, 0)):
        if token[0] in "{[":
            depth += 1
        elif token[0] in "}]":
            depth -= 1
            if depth == 0:
                end = token.end()
                break
    if start < 0 or end < 0:
        return None
    before, after = text[:start], text[end:]
    # An object that follows a key is part of one whose beginning is missing.
    part = _KEY.search(before) or _BRACKETS.search(before + after)
    return None if part else text[start:end]


def _useless_commas(text: str) -> list[int]:
    """Positions of commas between a value and a closing bracket."""
    tokens = [(token[0], token.start(), token.end()) for token in _TOKEN.finditer(text)]
    found = []
    for index, (token, start, end) in enumerate(tokens[:-1]):
        following = tokens[index + 1]
        closes = following[0] in "}]" and not text[end : following[1]].strip()
        if token == "," and closes and text[:start].rstrip()[-1:] not in ("", ",", "[", "{", ":"):
            found.append(start)
    return found


def _without(text: str, places: list[int]) -> str:
    starts = [0, *(place + 1 for place in places)]
    return "".join(text[start:end] for start, end in zip(starts, [*places, len(text)], strict=True))
