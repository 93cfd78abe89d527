"""Adapter names in prompts, in the syntax of WebUIs: `<lora:NAME:WEIGHT>`.

    a harbour, <lora:ink_style:0.8>            at strength 0.8
    a harbour, <lora:ink_style>                at strength 1
    a harbour, <lora:ink_style:0.5:0.9>        text encoder at 0.5, UNet at 0.9

The syntax is that of AUTOMATIC1111's extra networks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llm_lora.errors import Problem, UserError

_START = re.compile(r"<\s*lora\s*:", re.IGNORECASE)
_END = re.compile(r"[<>]")
_BARE = re.compile(r"(?<![\w<])lora:[\w-]+:\d+(?:\.\d+)?", re.IGNORECASE)
_ANY = re.compile(rf"{_START.pattern}[^<>]*>?|{_BARE.pattern}", re.IGNORECASE)
_WEIGHT = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)\s*")
_FORM = "write it like <lora:my_style:0.8>"
LARGEST = 100.0
"""Maximum absolute value of a strength."""

# Remains of a group whose only content was removed: "(:1.2)", "()" and "[]".
_EMPTY = {"(": re.compile(r"\s*(?::\s*[\d.]+\s*)?\)"), "[": re.compile(r"\s*\]")}


@dataclass(frozen=True)
class Pick:
    """An adapter named in a prompt, with its strengths in the UNet and in the text encoders."""

    name: str
    unet: float = 1.0
    text: float = 1.0

    def __str__(self) -> str:
        if self.unet == self.text:
            return f"<lora:{self.name}:{self.unet:g}>"
        return f"<lora:{self.name}:{self.text:g}:{self.unet:g}>"


def parse(prompt: str) -> tuple[str, tuple[Pick, ...]]:
    """The prompt without adapter names, and the named adapters in order.

    The text around a name is kept, except for remains such as doubled commas and spaces, and empty
    groups of attention syntax. A prompt without names is returned unchanged.

    Raises:
        UserError: every malformed name, with its position in the prompt (from 1).
    """
    picks: list[Pick] = []
    problems: list[Problem] = []
    text, at = "", 0
    while (start := _START.search(prompt, at)) is not None:
        text = (
            _join(text, prompt[at : start.start()])
            if picks or problems
            else prompt[: start.start()]
        )
        end = _END.search(prompt, start.end())
        where = f"prompt, character {start.start() + 1}"
        if end is None or end[0] == "<":
            problems.append(Problem("<lora: without >", where, _FORM))
            at = end.start() if end else len(prompt)
            continue
        at = end.end()
        try:
            pick = _pick(prompt[start.end() : end.start()])
        except ValueError as error:
            problems.append(Problem(str(error), where, _FORM))
            continue
        if any(pick.name == other.name for other in picks):
            problems.append(Problem(f"{pick.name} is named twice", where, "name it once"))
        picks.append(pick)
    rest = prompt[at:]
    text = _join(text, rest) if picks or problems else rest
    for bare in _BARE.finditer(_blank(prompt)):
        where = f"prompt, character {bare.start() + 1}"
        problems.append(Problem(f"{bare[0]} without < and >", where, f"write <{bare[0]}>"))
    if problems:
        raise UserError(problems)
    return text, tuple(picks)


def without(text: str) -> str:
    """A text without anything that looks like an adapter name, well-formed or not.

    For captions, which training reads as plain text.
    """
    while (found := _ANY.search(text)) is not None:
        text = _join(text[: found.start()], text[found.end() :])
    return text


def _pick(inner: str) -> Pick:
    """Parse the text between `<lora:` and `>`.

    Raises:
        ValueError: it is malformed; the message says how.
    """
    name, *weights = inner.split(":")
    name = name.strip()
    if not name:
        raise ValueError("<lora:…> without a name")
    if len(weights) > 2:
        raise ValueError(
            f"{name} has {len(weights)} strengths; give one, or two for text encoder and UNet"
        )
    numbers = []
    for weight in weights:
        number = float(weight) if _WEIGHT.fullmatch(weight) else math.nan
        if not abs(number) <= LARGEST:
            raise ValueError(f"{weight.strip() or 'nothing'!r} is not a valid strength for {name}")
        numbers.append(number)
    text, unet = (numbers * 2)[:2] if numbers else (1.0, 1.0)
    return Pick(name, unet=unet, text=text)


def _blank(prompt: str) -> str:
    """The prompt with its well-formed names replaced by spaces, keeping all positions."""
    return re.sub(r"<[^<>]*>", lambda match: " " * len(match[0]), prompt)


def _join(left: str, right: str) -> str:
    """Join the texts on both sides of a removed name."""
    spaced = left[-1:].isspace() or right[:1].isspace()
    while True:
        left, right = left.rstrip(), right.lstrip()
        empty = _EMPTY.get(left[-1:])
        hollow = (
            empty.match(right) if empty is not None and not left.endswith(f"\\{left[-1]}") else None
        )
        if hollow is None:
            break
        left, right = left[:-1], right[hollow.end() :]
        spaced = True
    opened = not left or (left[-1] in "([" and not left.endswith(f"\\{left[-1]}"))
    closed = not right or right[0] in ")]:"
    if right.startswith(",") and (opened or left.endswith(",")):
        right = right[1:].lstrip()
        closed = not right or right[0] in ")]:"
    if left.endswith(",") and closed:
        left = left[:-1].rstrip()
    if not left or not right or opened or closed or right[0] == ",":
        return left + right
    return f"{left} {right}" if spaced or left.endswith(",") else left + right
