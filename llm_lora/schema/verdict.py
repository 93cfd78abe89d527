"""The verdict on one answer, with reasons that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from jsonschema_rs import ValidationError

from llm_lora.schema.json_text import NotJson, dumps, excerpt, format_path, quote

_TYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "the boolean"),
    (str, "the string"),
    ((int, float), "the number"),
    (list, "an array"),
    (dict, "an object"),
)
_EXPECTED = {
    "array": "an array",
    "boolean": "a boolean",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
_FORMATS = {
    "date": "a date such as 2026-11-21",
    "date-time": "a time such as 2026-11-21T10:00:00Z",
    "email": "an e-mail address",
    "regex": "a regular expression",
    "time": "a time of day such as 10:00:00Z",
    "uri": "a URI",
    "uuid": "a UUID",
}

_UNKNOWN = ("additionalProperties", "unevaluatedProperties")
_Facts = dict[str, Any]
"""What an error of jsonschema-rs says about itself; its keys depend on the keyword."""

_Said = str | tuple[str, str] | tuple[str, str, str]
"""A whole message, or what was expected, what the answer has, and a hint."""


class ReasonRow(TypedDict):
    """A reason as JSON."""

    path: str
    keyword: str
    message: str
    expected: NotRequired[str]
    got: NotRequired[str]
    position: NotRequired[int]


class VerdictRow(TypedDict):
    """A verdict as JSON, without the value."""

    kind: KindName
    reasons: list[ReasonRow]


@dataclass(frozen=True)
class Reason:
    """One reason why an answer is not valid.

    `path` is the place in the answer (`medications[0].dose`, empty for the whole answer),
    `keyword` the schema keyword or the kind of flaw in the JSON, `message` what was expected and
    what the answer has, `position` the character (from 0) at which parsing failed. `expected` and
    `got` are the two halves of such a message for programs, empty if it has none.
    """

    path: str
    keyword: str
    message: str
    position: int | None = None
    expected: str = field(default="", repr=False)
    got: str = field(default="", repr=False)
    field: str = field(default="", repr=False)
    """The path without indices and without property names that the model made up, for counting."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def to_dict(self) -> ReasonRow:
        """For JSON output."""
        row: ReasonRow = {"path": self.path, "keyword": self.keyword, "message": self.message}
        if self.expected:
            row["expected"], row["got"] = self.expected, self.got
        if self.position is not None:
            row["position"] = self.position
        return row


@dataclass(frozen=True)
class Kind:
    """A kind of verdict.

    `title` says it of one answer, `counted` after a number of answers; `parsed` tells whether such
    an answer is JSON.
    """

    title: str
    counted: str
    parsed: bool = True


KindName = Literal["valid", "invalid", "not_json"]

KINDS: dict[KindName, Kind] = {
    "valid": Kind("fits the schema", "valid"),
    "invalid": Kind("does not fit the schema", "not fitting the schema"),
    "not_json": Kind("not JSON", "not JSON", parsed=False),
}
"""Every kind of verdict, from best to worst."""


@dataclass(frozen=True)
class Verdict:
    """A judged answer; `value` is the parsed answer, None if it is not JSON."""

    kind: KindName
    reasons: tuple[Reason, ...] = ()
    value: object = None

    @property
    def valid(self) -> bool:
        return self.kind == "valid"

    @property
    def parsed(self) -> bool:
        return KINDS[self.kind].parsed

    def to_dict(self) -> VerdictRow:
        """For JSON output: kind and reasons, without the value."""
        return {"kind": self.kind, "reasons": [reason.to_dict() for reason in self.reasons]}

    def __str__(self) -> str:
        return "; ".join(map(str, self.reasons)) or "valid"

    @property
    def title(self) -> str:
        """Its kind in words."""
        return KINDS[self.kind].title


VALID = Verdict("valid")
"""The verdict on a valid answer whose value is not needed."""


def not_json(error: NotJson) -> Verdict:
    """The verdict on a text that is not JSON."""
    return Verdict(
        "not_json",
        tuple(Reason("", flaw.keyword, str(flaw), flaw.position) for flaw in error.flaws),
    )


def reasons(errors: Iterable[ValidationError]) -> tuple[Reason, ...]:
    """The errors of jsonschema-rs as plain sentences, without duplicates."""
    return tuple(dict.fromkeys(found for error in errors for found in _explain(error)))


def show(value: object) -> str:
    """A value as short JSON."""
    if isinstance(value, str):
        return quote(value)
    try:
        return excerpt(dumps(value))
    except (ValueError, TypeError):
        return excerpt(str(value))


def _got(value: object) -> str:
    """The value that the answer has, with its type if the value alone does not show it."""
    if value is None:
        return "null"
    for types, name in _TYPES:
        if isinstance(value, types):
            return name if isinstance(value, list | dict) else f"{name} {show(value)}"
    return show(value)


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _explain(error: ValidationError) -> Iterator[Reason]:
    keyword = error.kind.name
    path = list(error.instance_path)
    facts: _Facts = error.kind.as_dict()
    value: Any = error.instance
    if keyword == "required":
        said = ("a value", "nothing")
        yield _reason([*path, facts["property"]], keyword, "missing, but required", said)
    elif keyword in _UNKNOWN:
        for key in facts["unexpected"]:
            message = "unknown property, which the schema does not allow"
            said = ("no such property", _got(value.get(key)))
            yield _reason([*path, key], keyword, message, said, counted=path)
    elif keyword in ("anyOf", "oneOf"):
        yield from _alternatives(path, keyword, facts.get("context", []), value)
    else:
        sentence = _SENTENCES.get(keyword)
        yield _reason(
            path, keyword, *(_worded(sentence(facts, value)) if sentence else (error.message,))
        )


def _worded(said: _Said) -> tuple[str, tuple[str, str]]:
    """A message, and its two halves for programs."""
    if isinstance(said, str):
        return said, ("", "")
    expected, got, *hint = said
    return f"expected {expected}, got {got}{''.join(hint)}", (expected, got)


def _reason(
    path: list[str | int],
    keyword: str,
    message: str,
    said: tuple[str, str] = ("", ""),
    counted: list[str | int] | None = None,
) -> Reason:
    indexed = path if counted is None else counted
    name = format_path([0 if isinstance(part, int) else part for part in indexed])
    expected, got = said
    return Reason(
        format_path(path),
        keyword,
        message,
        field=name.replace("[0]", "[]"),
        expected=expected,
        got=got,
    )


def _alternatives(
    path: list[str | int], keyword: str, context: list[list[ValidationError]], value: object
) -> Iterator[Reason]:
    """The reasons of the closest alternative, or what all alternatives expected."""
    if any(not errors for errors in context):
        yield _reason(path, keyword, f"fits several alternatives, not exactly one: {_got(value)}")
        return
    # An alternative that already refuses the value itself cannot be the intended one.
    near = [errors for errors in context if not any(_refused(error, path) for error in errors)]
    if near:
        fewest = min(len(errors) for errors in near)
        yield from reasons(next(errors for errors in near if len(errors) == fewest))
        return
    refusals = [next(e for e in errors if _refused(e, path)) for errors in context]
    # If objects carry a `const` that names their kind, that name is what to correct.
    labels = [error for error in refusals if len(error.instance_path) > len(path)]
    chosen = [e for e in refusals if e.instance_path == (labels or refusals)[0].instance_path]
    wanted = list(dict.fromkeys(name for error in chosen for name in _wanted(error)))
    simple = all(error.kind.name == "type" for error in chosen)
    message, said = _worded((_either(wanted), _got(chosen[0].instance)))
    yield _reason(list(chosen[0].instance_path), "type" if simple else keyword, message, said)


def _wanted(error: ValidationError) -> list[str]:
    """What an alternative would have accepted, as far as its first error shows."""
    facts: _Facts = error.kind.as_dict()
    if error.kind.name == "type":
        return [_EXPECTED[name] for name in sorted(facts["types"])]
    if error.kind.name == "const":
        return [show(facts["expected_value"])]
    return [show(option) for option in facts["options"][:12]]


def _refused(error: ValidationError, path: list[str | int]) -> bool:
    """Whether an error says that the value at `path` is of a different kind altogether."""
    itself = error.instance_path == path and error.kind.name in ("type", "enum", "const")
    # An object that names a different kind (`{"kind": {"const": …}}`) counts the same.
    label = len(error.instance_path) == len(path) + 1 and error.kind.name == "const"
    return itself or label


def _closest(value: object, options: Sequence[object]) -> str:
    """A hint naming the option that was probably meant."""
    from difflib import get_close_matches

    words = [option for option in options if isinstance(option, str)]
    if not isinstance(value, str) or value in words:
        return ""
    folded = {word.casefold(): word for word in words}
    close = get_close_matches(value.casefold().strip(), folded, n=1, cutoff=0.75)
    return f"; did you mean {json.dumps(folded[close[0]], ensure_ascii=False)}?" if close else ""


def _enum(facts: _Facts, value: object) -> _Said:
    options = facts["options"]
    shown = [show(option) for option in options[:12]]
    wanted = ", ".join([*shown, "…"]) if len(options) > len(shown) else _either(shown)
    return wanted, show(value), _closest(value, options)


def _many(count: int, noun: str) -> str:
    plural = {"property": "properties"}.get(noun, f"{noun}s")
    return f"{count} {noun if count == 1 else plural}"


def _twins(_: _Facts, value: list[object]) -> str:
    seen: set[str] = set()
    for item in value:
        text = json.dumps(item, sort_keys=True)
        if text in seen:
            return f"expected unique items, but {show(item)} occurs more than once"
        seen.add(text)
    return "expected unique items"


_SENTENCES: dict[str, Callable[[_Facts, Any], _Said]] = {
    "type": lambda facts, value: (
        _either([_EXPECTED.get(name, name) for name in sorted(facts["types"])]),
        _got(value),
    ),
    "enum": _enum,
    "const": lambda facts, value: (show(facts["expected_value"]), show(value)),
    "minimum": lambda facts, value: (f"at least {facts['limit']}", show(value)),
    "maximum": lambda facts, value: (f"at most {facts['limit']}", show(value)),
    "exclusiveMinimum": lambda facts, value: (f"more than {facts['limit']}", show(value)),
    "exclusiveMaximum": lambda facts, value: (f"less than {facts['limit']}", show(value)),
    "multipleOf": lambda facts, value: (f"a multiple of {facts['multiple_of']}", show(value)),
    "minLength": lambda facts, value: (
        f"at least {_many(facts['limit'], 'character')}",
        f"{len(value)}: {show(value)}",
    ),
    "maxLength": lambda facts, value: (
        f"at most {_many(facts['limit'], 'character')}",
        f"{len(value)}: {show(value)}",
    ),
    "pattern": lambda facts, value: (f"text that matches {facts['pattern']}", show(value)),
    "format": lambda facts, value: (
        _FORMATS.get(facts["format"], f"the format {facts['format']}"),
        show(value),
    ),
    "minItems": lambda facts, value: (f"at least {_many(facts['limit'], 'item')}", str(len(value))),
    "maxItems": lambda facts, value: (f"at most {_many(facts['limit'], 'item')}", str(len(value))),
    "additionalItems": lambda facts, value: (
        f"at most {_many(facts['limit'], 'item')}",
        str(len(value)),
    ),
    "unevaluatedItems": lambda facts, value: "more items than the schema describes",
    "uniqueItems": _twins,
    "contains": lambda facts, value: "too few or too many items that match contains",
    "minProperties": lambda facts, value: (
        f"at least {_many(facts['limit'], 'property')}",
        str(len(value)),
    ),
    "maxProperties": lambda facts, value: (
        f"at most {_many(facts['limit'], 'property')}",
        str(len(value)),
    ),
    "propertyNames": lambda facts, value: f"a property name does not fit: {facts['error'].message}",
    "not": lambda facts, value: f"the schema rules out this value: {_got(value)}",
    "falseSchema": lambda facts, value: f"the schema allows nothing here, got {_got(value)}",
}
