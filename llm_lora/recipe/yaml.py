"""YAML 1.2 with positions: plain data, the line of every key, readable error messages.

ruamel.yaml parses the syntax. Whether unquoted text is a number, a truth value or null is decided
here by the core schema of YAML 1.2.2, section 10.3.2, because ruamel also accepts dates and numbers
with underscores, which the core schema does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_lora.errors import Problem, UserError

KeyPath = tuple[str | int, ...]
"""The path to a value: keys of mappings and indices of lists."""

Settings = dict[str, Any]
"""Plain settings under the keys of a YAML file; a block is such a mapping again."""

_MAX_DEPTH = 32
_MAX_VALUES = 10_000  # Nested aliases multiply: nine lines can expand to a billion values.

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN = re.compile(r"\.(?:nan|NaN|NAN)")


@dataclass(frozen=True)
class Source:
    """Plain data read from YAML.

    Attributes:
        data: None, bool, int, float, str, list, dict (keys are always text).
        lines: the line (from 1) of every key and list item; the root is `()`.
        problems: problems other than syntax (duplicate keys, tags); the first value is kept.
    """

    data: Any
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...] = ()


def parse(text: str, name: str) -> Source:
    """Read one YAML document.

    Args:
        text: the document; an empty one gives None.
        name: its name in messages, usually its path.

    Raises:
        UserError: a syntax error ("name:line:column"), several documents or too many values.
    """
    # Imported on use: the import is slow, and --help and most commands read no YAML.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        return _Reader(YAML(typ="safe", pure=True).parse(text), name).read()
    except MarkedYAMLError as error:
        raise _syntax_error(error, text, name) from None
    except ReaderError as error:
        before = text[: error.position]
        line = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1) + 1
        raise UserError(
            f"a control character (U+{error.character:04X}) is not allowed in YAML",
            where=f"{name}:{line}:{column}",
            fix="delete it",
        ) from None
    except YAMLError as error:
        raise UserError(f"not YAML: {error}", where=name) from None


def scalar(text: str) -> bool | int | float | str | None:
    """The value of unquoted text in the core schema of YAML 1.2.

    >>> [scalar(text) for text in ("2e-4", "no", "0o17", "017", "~")]
    [0.0002, 'no', 15, 17, None]
    """
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text if base == 10 else text[2:], base)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INF.fullmatch(text):
        return float(f"{match[1]}inf")
    if _NAN.fullmatch(text):
        return float("nan")
    return text


@dataclass(frozen=True, slots=True)
class _Node:
    """A value with its line; `value` is a scalar, a list of nodes or a dict of key to nodes."""

    line: int
    value: Any


@dataclass
class _Reader:
    """Turns parser events into nodes, then nodes into plain data."""

    events: Iterator[Any]
    name: str
    problems: list[Problem] = field(default_factory=list)
    anchors: dict[str, _Node] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def read(self) -> Source:
        next(self.events)  # the start of the stream
        if not self._next_is_document():
            return Source(None, {(): 1})
        node = self._node(next(self.events), depth=0)
        next(self.events)  # the end of the document
        if second := self._next_is_document():
            raise self._error("a second document starts here", second, "keep one document per file")
        data = self._plain(node, (), 1)
        return Source(data, self.lines, tuple(self.problems))

    def _next_is_document(self) -> Any:
        event = next(self.events)
        return event if type(event).__name__ == "DocumentStartEvent" else None

    def _node(self, event: Any, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            raise self._error(f"nested more than {_MAX_DEPTH} deep", event, "flatten it")
        kind, line = type(event).__name__, event.start_mark.line + 1
        if kind == "AliasEvent":
            if event.anchor in self.anchors:
                return self.anchors[event.anchor]
            raise self._error(
                f"*{event.anchor} is used, but there is no &{event.anchor} above it",
                event,
                "quote the text if it is meant to start with *",
            )
        if event.tag is not None and str(event.tag) != "!":
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self._problem(f"the tag {tag} is not supported", line, "quote text instead")
        if kind == "SequenceStartEvent":
            node = _Node(line, [self._node(item, depth + 1) for item in self._until_end()])
        elif kind == "MappingStartEvent":
            node = _Node(line, self._mapping(depth))
        else:
            is_plain = event.style is None or event.style == ""
            node = _Node(line, scalar(event.value) if is_plain else self._text(event.value, line))
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _text(self, text: str, line: int) -> str:
        r"""Quoted text; an emoji may be a surrogate pair, as in JSON: "\ud83d\ude00"."""
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._problem("half of a surrogate pair", line, "write the character itself")
            return ""

    def _mapping(self, depth: int) -> dict[str, tuple[int, _Node]]:
        entries: dict[str, tuple[int, _Node]] = {}
        for event in self._until_end():
            line = event.start_mark.line + 1
            key = self._node(event, depth + 1).value
            value = self._node(next(self.events), depth + 1)
            if isinstance(key, list | dict):
                self._problem("a key must be plain text", line, "quote text that contains { or [")
                continue
            # A key is always its text, even if that text would be a number or null as a value.
            key = event.value if hasattr(event, "value") else str(key)
            if key in entries:
                first = entries[key][0]
                self._problem(f"{key} is set twice, first in line {first}", line, "keep one")
            else:
                entries[key] = (line, value)
        return entries

    def _until_end(self) -> Iterator[Any]:
        while not type(event := next(self.events)).__name__.endswith("EndEvent"):
            yield event

    def _plain(self, node: _Node, path: KeyPath, line: int) -> Any:
        self.lines[path] = line
        if len(self.lines) > _MAX_VALUES:
            raise UserError(f"holds more than {_MAX_VALUES} values", where=self.name)
        if isinstance(node.value, dict):
            return {
                key: self._plain(value, (*path, key), at) for key, (at, value) in node.value.items()
            }
        if isinstance(node.value, list):
            return [
                self._plain(item, (*path, index), item.line)
                for index, item in enumerate(node.value)
            ]
        return node.value

    def _problem(self, what: str, line: int, fix: str) -> None:
        self.problems.append(Problem(what, f"{self.name}:{line}", fix))

    def _error(self, what: str, event: Any, fix: str) -> UserError:
        mark = event.start_mark
        return UserError(what, where=f"{self.name}:{mark.line + 1}:{mark.column + 1}", fix=fix)


_SAID_PLAINLY = (
    # (ruamel's message, its meaning, what to do); the first match is reported.
    (r"character '\\t'", "there is a tab where YAML needs spaces", "indent with spaces"),
    (
        r"found character '[@`%]'",
        "text must not start with @, ` or %",
        "put the text in quotes",
    ),
    (
        r"mapping values are not allowed",
        'there is a ": " where a key is not allowed',
        'quote text that contains ": ", and align keys with those above',
    ),
    (
        r"could not find expected ':'",
        "this line has no key",
        'write "key: value", with a space after the colon',
    ),
    (r"unexpected end of stream", "a quote is never closed", "close it"),
    (
        r"expected ',' or '[\]}]'",
        "a bracket is never closed",
        "close it, or add a comma",
    ),
    (r"did not find expected '-' indicator", "a list item is missing its dash", 'write "- item"'),
    (
        r"expected <block end>|did not find expected key|expected '<document start>'",
        "the indentation does not match the lines above",
        "align the keys of a block in one column",
    ),
    (
        r"sequence entries are not allowed",
        "a list starts on the line of its key",
        "start a new line",
    ),
    (r"unknown escape character", "unknown escape sequence in double quotes", "double the \\"),
    (
        r"expected alphabetic|expected the node content",
        "a value is missing or malformed",
        "quote it",
    ),
)


def _syntax_error(error: Any, text: str, name: str) -> UserError:
    said = f"{error.problem or ''} {error.context or ''}".strip()
    mark = error.problem_mark or error.context_mark
    unknown = ("", f"not YAML: {said}", "see yaml.org/spec/1.2.2")
    _, what, fix = next((one for one in _SAID_PLAINLY if re.search(one[0], said)), unknown)
    # ruamel notices these late: report the place where the quote, bracket or key began.
    if ("never closed" in what or "no key" in what) and error.context_mark is not None:
        mark = error.context_mark
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    if what.startswith("the indentation") and "\t" in line[: len(line) - len(line.lstrip())]:
        what, fix = "there is a tab where YAML needs spaces", "indent with spaces"
    return UserError(what, where=f"{name}:{mark.line + 1}:{mark.column + 1}", fix=fix)
