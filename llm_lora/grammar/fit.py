"""A check of answers against the serving grammar, with a repair for each refused one.

Training on an answer that the decoder cannot write is wasted: the model could never produce it.
Either the decoder accepts another form of the answer (then the data is to be corrected, without
changing the value), or it accepts no form of it (then the schema is).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from llm_lora.errors import UserError
from llm_lora.grammar.features import used
from llm_lora.grammar.matching import END, Grammar, Refused, Stop, compile_schema, stop
from llm_lora.schema import (
    LARGEST,
    MOST_CHARACTERS,
    MOST_ITEMS,
    AnswerSchema,
    NotJson,
    Place,
    Schema,
    dumps,
    format_path,
    narrowed,
    parse_verbatim,
    path_at,
    quote,
)
from llm_lora.schema import Literal as Number

_SHOWN = 8
_BEFORE = 20
_SEARCHES = 20
"""Number of answers for which a schema change is searched; a search compiles many schemas."""

# Keywords that restrict the values of a kind; the others say what kind of value it is.
_LOOSENED = frozenset(
    "format pattern minLength maxLength minimum maximum exclusiveMinimum exclusiveMaximum "
    "multipleOf minItems maxItems minProperties maxProperties additionalProperties enum const "
    "anyOf allOf oneOf".split()
)


@dataclass(frozen=True)
class Loosened:
    """A schema change that makes an answer acceptable: a keyword set, or removed (None)."""

    place: Place
    keyword: str
    value: Any = None

    def __str__(self) -> str:
        where = format_path(self.place) or "the schema"
        if self.value is not None:
            return f"set {self.keyword} to {dumps(self.value)} in {where}"
        return f"remove {self.keyword} from {where}"

    def apply(self, document: Schema) -> Schema:
        """A copy of the schema with the change applied."""
        changed = copy.deepcopy(document)
        node: Any = changed
        for key in self.place:
            node = node[key]
        if self.value is None:
            del node[self.keyword]
        else:
            node[self.keyword] = self.value
        return changed


@dataclass(frozen=True)
class Refusal:
    """The reason why the decoder would not write an answer.

    `at` is the byte, `path` the value that contains it. If `side` is `data`, `mended` is the same
    value in a form that the decoder accepts; if it is `schema`, `loosened` is a single schema
    change that would make the answer acceptable, if there is one.
    """

    at: int
    path: str
    reason: str
    side: Literal["data", "schema"]
    mended: str | None = None
    loosened: Loosened | None = None

    def __str__(self) -> str:
        place = f" in {self.path}" if self.path else ""
        return f"byte {self.at}{place}: {self.reason}; {self.fix}"

    @property
    def fix(self) -> str:
        """What to do about it."""
        if self.mended is not None:
            return f"correct the data: write {quote(self.mended)}"
        if self.loosened is not None:
            return f"correct the schema: {self.loosened}"
        return "correct the schema: the decoder accepts no form of this value"


class Fit:
    """Runs answers through the grammar of a schema, byte by byte."""

    def __init__(self, schema: AnswerSchema) -> None:
        """Compile the grammar.

        Raises:
            UserError: the decoder refuses the schema.
        """
        self._schema = schema
        self._changes: dict[str, tuple[Loosened, AnswerSchema, Grammar]] = {}
        self._searches = 0
        try:
            self._grammar = compile_schema(schema)
        except Refused as error:
            raise UserError(
                f"the decoder cannot enforce this schema: {error}",
                where=schema.where,
                fix=f"llm-lora schema lint {schema.where} shows which keywords; --fix repairs some",
            ) from None

    def check(self, answer: str) -> Refusal | None:
        """The reason why the decoder would not write a valid answer; None if it would."""
        stopped = stop(self._grammar, answer)
        if stopped is None:
            return None
        before = answer.encode()[: stopped.at].decode(errors="ignore")
        at = len(before)
        path = format_path(path_at(answer, at))
        reason = _reason(answer, at, stopped)
        for form in _forms(self._schema, answer):
            if stop(self._grammar, form) is None:
                return Refusal(stopped.at, path, reason, "data", mended=form)
        loosened = self._loosened(answer)
        return Refusal(stopped.at, path, reason, "schema", loosened=loosened)

    def _loosened(self, answer: str) -> Loosened | None:
        """A single schema change that makes an answer acceptable, if there is one."""
        for change, schema, grammar in self._changes.values():
            if self._takes(schema, grammar, answer):
                return change  # Other answers usually need the same change.
        if self._searches >= _SEARCHES:
            return None
        self._searches += 1
        for change in _changes(self._schema, answer):
            document = change.apply(self._schema.document)
            try:
                schema = AnswerSchema.from_text(dumps(document))
                grammar = compile_schema(schema)
            except (Refused, UserError):
                continue
            if self._takes(schema, grammar, answer):
                self._changes[str(change)] = change, schema, grammar
                return change
        return None

    @staticmethod
    def _takes(schema: AnswerSchema, grammar: Grammar, answer: str) -> bool:
        return any(stop(grammar, form) is None for form in (answer, *_forms(schema, answer)))


def _reason(answer: str, at: int, stopped: Stop) -> str:
    got = "the end of the answer" if at >= len(answer) else quote(answer[at : at + 1])
    return f"after {quote(answer[max(0, at - _BEFORE) : at])} {_expected(stopped)}, got {got}"


def _expected(stopped: Stop) -> str:
    if not stopped.allowed:
        return "nothing is possible"
    shown = [quote(chr(byte)) for byte in stopped.allowed if 32 <= byte < 127]
    others = len(stopped.allowed) - len(shown) - (END in stopped.allowed)
    if END in stopped.allowed:
        shown.insert(0, "the end")
    if len(shown) + others > _SHOWN:
        return f"one of {len(shown) + others} other bytes was possible"
    return f"only {' or '.join(shown)} was possible"


def _forms(schema: AnswerSchema, answer: str) -> Iterator[str]:
    """Other texts for the value of an answer: canonical, and with plainly written numbers."""
    try:
        value = parse_verbatim(answer)
    except NotJson:
        return
    yield schema.canonical_text(answer)
    for whole in (False, True):
        yield schema.canonical_text(_write(value, whole=whole))


def _write(value: Any, *, whole: bool) -> str:
    if isinstance(value, Number):
        return _plain(value, whole=whole)
    if isinstance(value, dict):
        members = (f"{dumps(key)}:{_write(part, whole=whole)}" for key, part in value.items())
        return f"{{{','.join(members)}}}"
    if isinstance(value, list):
        return f"[{','.join(_write(part, whole=whole) for part in value)}]"
    return dumps(value)


def _plain(literal: str, *, whole: bool) -> str:
    """A number without exponent; `whole` writes 1.0 as 1. The value stays, except minus zero."""
    number = Decimal(literal)
    if abs(number.adjusted()) > len(str(LARGEST)):
        return literal
    if number == 0:
        return "0"
    if whole or "e" in literal.lower():
        return f"{number.normalize():f}"
    return literal


def _changes(schema: AnswerSchema, answer: str) -> Iterator[Loosened]:
    """Schema changes worth trying: first wider bounds than the defaults, then removed keywords."""
    uses = used(schema.parts)
    bounds = {"maxLength": len(answer), "maxItems": answer.count(",") + 1}
    usual = {"maxLength": MOST_CHARACTERS, "maxItems": MOST_ITEMS}
    for use in uses:
        implied = narrowed(use.node.schema).keys() - use.node.schema.keys()
        for keyword in sorted(implied & bounds.keys()):
            if bounds[keyword] > usual[keyword]:
                yield Loosened(use.node.place, keyword, 2 * bounds[keyword])
        if implied & {"minimum", "maximum"}:
            edge = max((abs(number) for number in _numbers(answer)), default=0)
            if edge > LARGEST:
                for keyword, sign in (("minimum", -1), ("maximum", 1)):
                    if keyword in implied:
                        yield Loosened(use.node.place, keyword, sign * edge)
    for use in uses:
        for keyword in use.node.schema:
            if keyword in _LOOSENED:
                yield Loosened(use.node.place, keyword)


def _numbers(answer: str) -> Iterator[int]:
    def visit(value: Any) -> Iterator[int]:
        if isinstance(value, Number):
            if Decimal(value).adjusted() <= 300:
                yield int(Decimal(value))
        elif isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from visit(part)

    yield from visit(parse_verbatim(answer))
