"""Conversion of rows in any supported format to `Example`, with a reason for each row set aside.

Formats (JSON Lines, or one JSON array; UTF-8):

    prompt-response   {"prompt": "…", "response": "…" or an object, "part": "…"?, "system": "…"?}
                      also question/answer, input/output, prompt/completion
    alpaca            {"instruction": "…", "input": "…"?, "output": "…"}
    messages          {"messages": [{"role": "user", "content": "…"}, …]}
    sharegpt          {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", …}, …]}

A conversation of several turns becomes one example: earlier turns belong to the prompt, and only
the last assistant turn is trained on. An answer that is not a string is read as JSON. A row's own
system text overrides the recipe's; an empty one (`"system": ""`) means none.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from llm_lora.data import rows
from llm_lora.data.rows import Row
from llm_lora.errors import UserError
from llm_lora.example import RAW_LIMIT, Example, Message, Rejected, Role, make_example
from llm_lora.schema import json_text as jsontext

Shape = Literal["prompt-response", "alpaca", "messages", "sharegpt"]


_PROMPT_KEYS = ("prompt", "question", "input")
_ANSWER_KEYS = ("response", "answer", "output", "completion")
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_DETECT_ROWS = 20

_Fields = Mapping[str, object]
"""A row that is a JSON object."""


class _Unusable(Exception):
    """Raised with the reason why a row cannot become an example."""


def detect(path: Path) -> Shape:
    """The most common format among a file's first rows.

    Raises:
        UserError: as for `read`.
    """
    return _detect(path, list(islice(rows.read(path), _DETECT_ROWS)))


def read(
    path: Path, *, format: Literal["auto"] | Shape = "auto", system: str | None = None
) -> Iterator[Example | Rejected]:
    """Every row of a file in order, as an example or with the reason why it is not one.

    Args:
        path: JSON Lines, or one JSON array of objects.
        format: the format of the rows; "auto" uses the one that `detect` finds.
        system: system text for rows without one of their own.

    Raises:
        UserError: the file cannot be read, is empty, is not UTF-8 text or has no known format.
    """
    lines: Iterator[Row] = rows.read(path)
    if format == "auto":
        first = list(islice(lines, _DETECT_ROWS))
        lines, format = chain(first, lines), _detect(path, first)
    return (found for _, found in _examples(path, lines, format, system))


def read_rows(path: Path) -> tuple[Shape, Iterator[tuple[Row, Example | Rejected]]]:
    """A file's format, and the results of `read`, each with its source row.

    Raises:
        UserError: as for `read`.
    """
    lines = rows.read(path)
    first = list(islice(lines, _DETECT_ROWS))
    shape = _detect(path, first)
    return shape, _examples(path, chain(first, lines), shape, None)


def with_answer(row: dict[str, Any], shape: Shape, answer: str) -> dict[str, Any]:
    """A copy of a row in the given format with another answer, a JSON text.

    An answer that was JSON rather than text stays JSON if that does not change it.
    """
    if turns := _FORMS[shape].conversation:
        last = row[turns][-1]
        key = "content" if "content" in last else "value"
        return row | {turns: [*row[turns][:-1], last | {key: _in_form_of(last[key], answer)}]}
    key = _one_of(row, _ANSWER_KEYS, "response")
    return row | {key: _in_form_of(row[key], answer)}


def _in_form_of(before: object, answer: str) -> object:
    if isinstance(before, dict):
        value = jsontext.parse(answer)
        if jsontext.parse_verbatim(jsontext.dumps(value)) == jsontext.parse_verbatim(answer):
            return value
    return answer


def _examples(
    path: Path, lines: Iterable[Row], shape: Shape, system: str | None
) -> Iterator[tuple[Row, Example | Rejected]]:
    name = _printable(path)
    for row in lines:
        where = f"{name}:{row.line}"
        try:
            if row.problem is not None:
                raise _Unusable(row.problem)
            found: Example | Rejected = _example(row.value, shape, system, where)
        except _Unusable as error:
            found = Rejected(where, str(error), row.raw[:RAW_LIMIT])
        yield row, found


def _printable(path: Path) -> str:
    """A file name as valid UTF-8 text, whatever bytes it consists of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# Shapes


def _detect(path: Path, first: Sequence[Row]) -> Shape:
    if not first:
        raise UserError("the array is empty", where=str(path), fix="add JSON objects to it")
    shapes = (_shape(row.value) for row in first if isinstance(row.value, dict))
    votes = Counter(shape for shape in shapes if shape is not None)
    if votes:
        return votes.most_common(1)[0][0]
    line, _, value, problem = first[0]
    keys = f"keys found: {_names(value)}" if isinstance(value, dict) else f"found {_kind(value)}"
    found = problem or keys
    raise UserError(
        f"the first rows have no known format ({found})",
        where=f"{path}:{line}",
        fix="write one JSON object per line, with prompt and response (or question and answer, "
        "input and output), instruction and output, messages, or conversations",
    )


def _shape(row: _Fields) -> Shape | None:
    return next((shape for shape, form in _FORMS.items() if row.keys() & form.keys), None)


_Turn = tuple[Role, object]


def _prompt_response(row: _Fields) -> list[_Turn]:
    return [
        ("user", row[_one_of(row, _PROMPT_KEYS, "prompt")]),
        ("assistant", _as_text(row[_one_of(row, _ANSWER_KEYS, "response")])),
    ]


def _alpaca(row: _Fields) -> list[_Turn]:
    if row.get("history"):
        raise _Unusable("'history' is not supported: write the turns as messages")
    task = _text(row[_one_of(row, ("instruction",), "instruction")], "the instruction")
    more = "" if row.get("input") is None else _text(row["input"], "the input")
    answer = _as_text(row[_one_of(row, _ANSWER_KEYS, "output")])
    return [("user", f"{task}\n\n{more}" if more else task), ("assistant", answer)]


def _messages(row: _Fields) -> list[_Turn]:
    return _turns(row[_one_of(row, ("messages",), "messages")])


def _sharegpt(row: _Fields) -> list[_Turn]:
    return _turns(row[_one_of(row, ("conversations",), "conversations")])


def _turns(items: object) -> list[_Turn]:
    if not isinstance(items, list) or not items:
        raise _Unusable("no messages: expected a list with at least one")
    turns: list[_Turn] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise _Unusable(f"message {number} is {_kind(item)}, expected an object")
        name = item.get("role", item.get("from"))
        role = _ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            known = ", ".join(_ROLES)
            raise _Unusable(f"unknown role: message {number} has {name!r}; known are {known}")
        if item.get("tool_calls"):
            raise _Unusable(f"message {number} calls tools, which is not supported")
        content = item.get("content", item.get("value"))
        if role == "assistant" and isinstance(content, dict):
            content = _as_text(content)
        turns.append((role, content))
    return turns


@dataclass(frozen=True)
class _Form:
    """A format of rows.

    Attributes:
        keys: a row with one of them has this format, unless an earlier one fits.
        turns: reads a row.
        conversation: the key of the list of turns, if there is one.
    """

    keys: frozenset[str]
    turns: Callable[[_Fields], list[_Turn]]
    conversation: str | None = None


_FORMS: dict[Shape, _Form] = {
    "messages": _Form(frozenset({"messages"}), _messages, "messages"),
    "sharegpt": _Form(frozenset({"conversations"}), _sharegpt, "conversations"),
    "alpaca": _Form(frozenset({"instruction"}), _alpaca),
    "prompt-response": _Form(frozenset({*_PROMPT_KEYS, *_ANSWER_KEYS}), _prompt_response),
}
"""Every format, in the order in which rows are tried."""


def _as_text(answer: object) -> object:
    """An answer that is not a string, as JSON; the schema's canonical form is applied later."""
    if answer is None or isinstance(answer, str):
        return answer
    return json.dumps(answer, ensure_ascii=False)


def _one_of(row: _Fields, keys: tuple[str, ...], what: str) -> str:
    found = [key for key in keys if key in row]
    if not found:
        raise _Unusable(f"no {what}: expected {' or '.join(keys)}; keys found: {_names(row)}")
    if len(found) > 1:
        raise _Unusable(f"more than one {what}: {' and '.join(found)}; keep one")
    return found[0]


# Rows → examples


def _example(row: object, shape: Shape, system: str | None, where: str) -> Example:
    if not isinstance(row, dict):
        raise _Unusable(f"the row is {_kind(row)}, expected an object")
    turns = _FORMS[shape].turns(row)
    own = row.get("system")
    if own is not None:
        system = _text(own, "the system text")
    if turns[0][0] == "system":
        first = _text(turns.pop(0)[1], "the system text")
        if own is not None and first != system:
            raise _Unusable("two different system texts: in 'system' and in the first message")
        system = first
    part = row.get("part")
    if not isinstance(part, str | None):
        raise _Unusable(f"the part is {_kind(part)}, expected text")
    _require_alternation(turns)
    prompt = [Message(role, _filled(content, role)) for role, content in turns[:-1]]
    answer = turns[-1][1]
    if answer is None:
        raise _Unusable("the response is null")
    if system:
        prompt.insert(0, Message("system", system))
    return make_example(tuple(prompt), _filled(answer, "assistant"), part=part, where=where)


def _require_alternation(turns: list[_Turn]) -> None:
    for number, (role, _) in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise _Unusable(
                f"wrong order of roles: turn {number + 1} is from the {role}, "
                f"expected the {expected}"
            )
    if len(turns) % 2 or not turns:
        raise _Unusable("no response: the last message is not from the assistant")


def _filled(content: object, role: Role) -> str:
    what = "the response" if role == "assistant" else "the prompt"
    text = _text(content, what)
    if not text.strip():
        raise _Unusable(f"{what} is empty")
    return text


def _text(content: object, what: str) -> str:
    """The text, or the joined text parts of OpenAI's list form."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        parts = [p.get("text") if isinstance(p, dict) else None for p in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    raise _Unusable(f"{what} is {_kind(content)}, expected text")


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"


def _names(row: _Fields) -> str:
    return ", ".join(islice(row, 8)) or "none"
