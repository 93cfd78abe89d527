"""Strict JSON: parsing, diagnosis of errors, and positions in a text.

Strict means RFC 8259 without anything that parsers treat differently: no NaN, no duplicate key in
an object, no half of a surrogate pair, no number outside the range of a double, no nesting beyond
`MAX_DEPTH`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_DEPTH = 128
"""Maximum nesting depth; the limit of serde_json, which the servers' parsers use."""

PathParts = Sequence[str | int]


@dataclass(frozen=True)
class Flaw:
    """One reason why a text is not JSON.

    `position` counts characters from 0; `place` gives line and column where that helps.
    """

    keyword: str
    message: str
    position: int
    place: str = ""

    def __str__(self) -> str:
        return f"{self.message} {self.place}".rstrip()


class NotJson(ValueError):
    """Raised for a text that is not JSON; carries every flaw found."""

    def __init__(self, flaws: tuple[Flaw, ...]) -> None:
        super().__init__("; ".join(map(str, flaws)))
        self.flaws = flaws


class Literal(str):
    """A number as written in the source."""

    __slots__ = ()


class _Found(ValueError):
    """Raised by the decoder's hooks, which know the error but not its position."""

    def __init__(self, keyword: str, what: str, search: str) -> None:
        super().__init__(what)
        self.keyword, self.search = keyword, search


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise _Found(
            "duplicate_key", f"the key {quote(twice)} occurs twice in one object", json.dumps(twice)
        )
    return found


def _constant(name: str) -> NoReturn:
    raise _Found("not_a_number", f"{name} is not a JSON number; expected a number or null", name)


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise _Found("number_range", f"the number {excerpt(literal)} is out of range", literal)
    return number


_FAST = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)
_CAREFUL = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
)
_VERBATIM = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_constant, parse_float=Literal, parse_int=Literal
)
# Numbers out of range and halves of surrogate pairs are rare, so a quick scan decides which texts
# need a closer check.
_HUGE = re.compile(r"[0-9](?:[eE]\+?[0-9]{3}|[0-9]{308})")
_HALF = re.compile("[\ud800-\udfff]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]|-?[A-Za-z]+|-?\d[\d.eE+-]*', re.DOTALL)


def parse(text: str) -> object:
    """The value of a JSON text.

    Raises:
        NotJson: with every flaw found.
    """
    decoder = _CAREFUL if _HUGE.search(text) else _FAST
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise NotJson(_diagnose(text, error)) from None
    if not text.isascii() or "\\u" in text:
        half = _HALF.search(text) or ("\\u" in text and _HALF.search(dumps(value)))
        if half:
            what = f"half of a surrogate pair (\\u{ord(half[0]):04x}) is not a character"
            raise NotJson((Flaw("surrogate", what, 0),))
    if text.count("[") + text.count("{") > MAX_DEPTH and depth(text) > MAX_DEPTH:
        raise NotJson((_too_deep(),))
    return value


def parse_verbatim(text: str) -> object:
    """Like `parse`, but every number is a `Literal`: its own source text.

    Raises:
        NotJson: as `parse`.
    """
    parse(text)
    return _VERBATIM.decode(text)


def dumps(value: object) -> str:
    """Compact JSON with unescaped Unicode and no NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def depth(text: str) -> int:
    """The nesting depth of the brackets in a text, ignoring strings."""
    deepest = level = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            level += 1
            deepest = max(deepest, level)
        elif token[0] in "]}":
            level -= 1
    return deepest


def quote(text: str, limit: int = 60) -> str:
    """A text in double quotes, on one line, cut to `limit` characters."""
    return json.dumps(text if len(text) <= limit else text[: limit - 1] + "…", ensure_ascii=False)


def excerpt(text: str, limit: int = 60) -> str:
    """A text on one line, cut to `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def format_path(parts: PathParts) -> str:
    """A readable path to a place in a value: `medications[0].dose`; empty for the whole value."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif re.fullmatch(r"[^\s.\[\]\"']+", part):
            path += f".{part}" if path else part
        else:
            path += f"[{json.dumps(part, ensure_ascii=False)}]"
    return path


def line_column(text: str, position: int) -> tuple[int, int]:
    """Line and column, both from 1, of a character."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def locate(text: str, parts: PathParts) -> int:
    """The start of the value at a path in a JSON text, following the path as far as it exists."""
    at = _skip(text, 0)
    for part in parts:
        starts = (start for key, start in _members(text, at) if key == part)
        inner = next(starts, None)
        if inner is None:
            return at
        at = inner
    return at


def path_at(text: str, position: int) -> list[str | int]:
    """The path of the innermost value in a JSON text that contains or precedes a character."""
    path: list[str | int] = []
    at = _skip(text, 0)
    while True:
        before = [(key, start) for key, start in _members(text, at) if start <= position]
        if not before:
            return path
        key, at = before[-1]
        path.append(key)


def _members(text: str, at: int) -> Iterator[tuple[str | int, int]]:
    """Key and start of each member of the object or array at `at`."""
    if text[at] not in "[{" or text[_skip(text, at + 1)] in "]}":
        return
    index, is_object = 0, text[at] == "{"
    while text[at] not in "]}":
        at = _skip(text, at + 1)
        key: str | int = index
        if is_object:
            key, at = _FAST.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        end = _FAST.raw_decode(text, at)[1]
        yield key, at
        at, index = _skip(text, end), index + 1


def _skip(text: str, at: int) -> int:
    """The first position from `at` on that is not white space."""
    while text[at] in " \t\n\r":
        at += 1
    return at


# --- diagnosis ------------------------------------------------------------------------------------


def _diagnose(text: str, error: Exception) -> tuple[Flaw, ...]:
    """Why a text is not JSON: first text around the JSON, then errors inside it."""
    if not text.strip():
        return (Flaw("empty", "expected JSON, got nothing", 0),)
    if isinstance(error, RecursionError):
        return (_too_deep(),)
    if type(error) is ValueError:
        return (_too_long(text),)
    if text.lstrip().startswith("\ufeff"):
        return (Flaw("byte_order_mark", "a byte order mark precedes the JSON", 0),)
    start, end = _inner(text)
    if start is None:
        if isinstance(error, _Found):
            return (_inside(text, 0, error),)
        return (Flaw("prose", f"no JSON in the text: {excerpt(text)}", 0),)
    flaws = _around(text, start, end)
    if end is None:
        try:
            _CAREFUL.raw_decode(text, start)
        except (ValueError, RecursionError) as inner:
            flaws.append(_inside(text, start, inner))
    if not flaws and (space := _OTHER_SPACE.search(text)):
        what = f"white space that JSON does not allow: U+{ord(space[0]):04X}"
        flaws.append(Flaw("white_space", what, space.start(), _place(text, space.start())))
    return tuple(flaws)


def _inner(text: str) -> tuple[int | None, int | None]:
    """Start and end of the longest JSON value in a text; no end if none is complete."""
    first = len(text) - len(text.lstrip())
    # A text with more candidates than this is not an answer with words around it.
    brackets = [match.start() for match in re.finditer(r"[{\[]", text)][:50]
    best: tuple[int, int] | None = None
    for start in [first, *brackets]:
        if best and start < best[1]:
            continue
        try:
            end = _CAREFUL.raw_decode(text, start)[1]
        except (ValueError, RecursionError):
            if start == first and text[start] in "{[":
                return start, None
            continue
        if start == first and text[start] in "{[":
            return start, end
        if best is None or end - start > best[1] - best[0]:
            best = start, end
    if best:
        return best
    return (brackets[0], None) if brackets else (None, None)


def _around(text: str, start: int, end: int | None) -> list[Flaw]:
    """Flaws for text before the JSON at `start` and after its `end`."""
    before = text[:start].strip()
    after = text[end:].strip() if end is not None else ""
    if "```" in before or "```" in after:
        return [Flaw("code_fence", "the JSON is wrapped in a code fence (```)", 0)]
    flaws = []
    if before:
        flaws.append(Flaw("prose", f"text before the JSON: {excerpt(before)}", 0))
    if after and end is not None:
        place = _place(text, end)
        keyword = "prose" if re.search(r"\w", after) and after[0] not in "{[" else "extra"
        what = f"text after the JSON, which ends {place}: {excerpt(after)}"
        flaws.append(Flaw(keyword, what, end))
    return flaws


_OTHER_SPACE = re.compile(r"[^\S \t\n\r]")
_LITERAL_CUT = re.compile(r"(?:t|tr|tru|f|fa|fal|fals|n|nu|nul|-|\.|[eE][+-]?|u[\da-fA-F]{0,4})?$")
_PYTHON = re.compile(r"True\b|False\b|None\b|undefined\b")
_TRAILING = re.compile(r"\s*,?\s*[}\]]")


def _inside(text: str, start: int, error: Exception) -> Flaw:
    """The error in the JSON that starts at `start`."""
    if isinstance(error, _Found):
        at = _search(text, error.search, start)
        return Flaw(error.keyword, str(error), at, _place(text, at))
    if not isinstance(error, json.JSONDecodeError):
        return _too_deep() if isinstance(error, RecursionError) else _too_long(text)
    at = error.pos
    rest = text[at:]
    place = f"{_place(text, at)}, near {excerpt(text[max(start, at - 20) : at + 20])}"
    if error.msg.startswith("Unterminated string") or _LITERAL_CUT.match(rest.rstrip()):
        end = len(text.rstrip())
        what = f"the JSON is cut off after {end} characters: {excerpt(_tail(text[start:end]))}"
        return Flaw("truncated", what, end)
    keyword, what = _mistake(error.msg, text[start:at].rstrip(), rest)
    return Flaw(keyword, what, at, place)


def _mistake(message: str, before: str, rest: str) -> tuple[str, str]:
    """Keyword and message for the decoder's error at the start of `rest`."""
    if before.endswith(",") and rest[0] in "}]":
        return "trailing_comma", f"a comma before the closing {rest[0]}"
    if rest[0] == "," and _TRAILING.match(rest[1:]):  # where Python 3.13 and later point
        return "trailing_comma", "a comma before a closing bracket"
    if rest[0] == "'":
        return "single_quotes", "single quotes; expected double quotes"
    if word := _PYTHON.match(rest):
        proper = {"True": "true", "False": "false"}.get(word[0], "null")
        return "python_literal", f"{word[0]}; expected {proper}"
    if rest.startswith(("//", "/*", "#")):
        return "comment", "a comment, which JSON does not allow"
    if message.startswith("Invalid control character"):
        return "control_character", f"a raw {_name(rest[0])} inside a string"
    if message.startswith("Invalid \\"):
        return "escape", f"an unknown escape sequence \\{rest.lstrip(chr(92))[:1]}"
    return "syntax", _expected(message)


def _tail(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else "…" + text[-limit:]


def _expected(message: str) -> str:
    if message.startswith("Expecting property name"):
        return "expected a property name in double quotes"
    if message.startswith("Expecting ':'"):
        return "expected : after the property name"
    if message.startswith("Expecting ','"):
        return "expected , or a closing bracket"
    return "expected a value"


def _name(character: str) -> str:
    names = {"\n": "line break (write \\n)", "\t": "tab (write \\t)"}
    return names.get(character, f"control character \\u{ord(character):04x}")


def _search(text: str, token: str, start: int) -> int:
    """The position of a token in a text, or `start` if it is not found.

    Of a quoted key the last occurrence counts, because a duplicate is the later one.
    """
    places = [found.start() for found in _TOKEN.finditer(text, start) if found[0] == token]
    return places[-1 if token.startswith('"') else 0] if places else start


def _place(text: str, position: int) -> str:
    line, column = line_column(text, position)
    return f"at line {line}, column {column}"


def _too_deep() -> Flaw:
    return Flaw("depth", f"brackets nest deeper than {MAX_DEPTH}", 0)


def _too_long(text: str) -> Flaw:
    """The flaw of an integer beyond Python's limit of 4,300 digits, the only other decoding
    error.
    """
    found = re.search(r"\d{4301}", text)
    at = found.start() if found else 0
    return Flaw("number_range", "an integer with more digits than can be read", at)
