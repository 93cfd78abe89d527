"""Records: frozen dataclasses that are written as JSON objects and read back from them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from llm_lora.errors import UserError


@dataclasses.dataclass(frozen=True)
class Key:
    """Annotates a field whose key is not its name."""

    name: str


OMITTED = object()
"""Annotates a field whose key is left out while it has its default."""

INLINE = object()
"""Annotates a mapping whose keys are keys of the object itself: all that no other field has."""


class OtherVersion(UserError):
    """Raised for a file that another version of llm-lora wrote."""


class Record:
    """The base of a frozen dataclass whose fields are the keys of a JSON object, in their order.

    A field may be a scalar, a record, a tuple (a JSON array) or a mapping of these, or None. Its
    key is its name, unless it is annotated with `Key`, `OMITTED` or `INLINE`.
    """

    ORDER: ClassVar[tuple[str, ...]] = ()
    """The fields in the order of their keys, where it is not that of the class."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        found: dict[str, Any] = {}
        kind: Any = type(self)
        for field in _fields(kind):
            value = getattr(self, field.name)
            if field.inline:
                found |= _plain(value)
            elif not (field.omitted and value == field.default):
                found[field.key] = _plain(value)
        return found

    @classmethod
    def from_json(cls, value: object, where: str | Path, fix: str) -> Self:
        """The record that `to_json` wrote.

        Args:
            value: the JSON object; unknown keys are ignored.
            where: the file that it was read from, for messages.
            fix: advice on how to write it anew.

        Raises:
            OtherVersion: a key is missing or has a value of another type (names its place).
        """
        try:
            return cast(Self, _record(cls, value, ""))
        except _Unlike as error:
            raise OtherVersion(
                "written by another version of llm-lora",
                where=f"{where}: {error}" if str(error) else str(where),
                fix=fix,
            ) from None


class _Unlike(Exception):
    """A value that no record of this version has; the message is its place."""


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    key: str
    type: Any
    default: Any
    omitted: bool
    inline: bool


@cache
def _fields(record: Any) -> tuple[_Field, ...]:
    hints = get_type_hints(record, include_extras=True)
    found = {}
    for field in dataclasses.fields(record):
        kind = hints[field.name]
        notes = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
        found[field.name] = _Field(
            field.name,
            next((note.name for note in notes if isinstance(note, Key)), field.name),
            get_args(kind)[0] if notes else kind,
            field.default,
            omitted=OMITTED in notes,
            inline=INLINE in notes,
        )
    return tuple(found[name] for name in record.ORDER or found)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _record(kind: Any, value: object, at: str) -> object:
    if not isinstance(value, dict):
        raise _Unlike(at)
    fields = _fields(kind)
    own = {field.key for field in fields if not field.inline}
    found = {}
    for field in fields:
        if field.inline:
            rest = {name: item for name, item in value.items() if name not in own}
            found[field.name] = _read(field.type, rest, at)
        elif field.key in value:
            found[field.name] = _read(field.type, value[field.key], _below(at, field.key))
        elif not field.omitted:
            raise _Unlike(_below(at, field.key))
    return kind(**found)


def _read(kind: Any, value: Any, at: str) -> Any:
    """A value of the type that a field has."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, Union):
        if value is None and types.NoneType in parts:
            return None
        others = [part for part in parts if part is not types.NoneType]
        if len(others) == 1:
            return _read(others[0], value, at)
        return _scalar(tuple(others), value, at)
    if origin is Literal:
        if value not in parts:
            raise _Unlike(at)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _Unlike(at)
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(each) != len(value):
            raise _Unlike(at)
        items = enumerate(zip(each, value, strict=True))
        return tuple(_read(part, item, f"{at}[{i}]") for i, (part, item) in items)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _Unlike(at)
        return {name: _read(parts[1], item, _below(at, name)) for name, item in value.items()}
    if issubclass(kind, Record):
        return _record(kind, value, at)
    return _scalar((kind,), value, at)


def _scalar(kinds: tuple[type[Any], ...], value: Any, at: str) -> Any:
    # JSON writes a whole number without a point, and in Python a boolean is an integer.
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        raise _Unlike(at)
    return value


def _below(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
