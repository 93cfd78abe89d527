"""The answer schema: loading with precise errors, judging answers, writing the canonical form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from os import PathLike
from pathlib import Path

import jsonschema_rs

from llm_lora import files
from llm_lora.errors import Problem, UserError
from llm_lora.schema import bundle
from llm_lora.schema import json_text as jsontext
from llm_lora.schema.canonical import Canonical
from llm_lora.schema.json_text import NotJson, dumps, format_path, line_column, locate, quote
from llm_lora.schema.keywords import NOTES, RULES, Schema
from llm_lora.schema.narrowing import narrowed
from llm_lora.schema.subschemas import Subschemas
from llm_lora.schema.verdict import VALID, Reason, Verdict, not_json, reasons

__all__ = ["AnswerSchema", "Reason", "Verdict"]

DEFAULT_DRAFT = "https://json-schema.org/draft/2020-12/schema"
# Drafts that jsonschema-rs 0.60 supports, by $schema without its empty fragment; true if keywords
# next to a $ref take effect.
_DRAFTS = {
    DEFAULT_DRAFT: True,
    "https://json-schema.org/draft/2019-09/schema": True,
    "http://json-schema.org/draft-07/schema": False,
    "http://json-schema.org/draft-06/schema": False,
    "http://json-schema.org/draft-04/schema": False,
}

# Keys under which OpenAI's, Anthropic's and MCP's tool definitions and requests hold a schema.
_WRAPPERS = ("schema", "json_schema", "parameters", "input_schema", "inputSchema")
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
"""The canonical form of training targets. Free white space would let a weak model ramble."""


@dataclass(frozen=True, eq=False)
class AnswerSchema:
    """A JSON Schema that answers must fit; made by `load` or `from_text`, so always valid.

    `document` is the parsed schema, `text` its source as written, `where` the file it came from.
    """

    document: Schema
    text: str
    where: str
    parts: Subschemas = field(repr=False)
    _validator: jsonschema_rs.Validator = field(repr=False)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> AnswerSchema:
        """Read an answer schema from a file and inline the neighbouring files it refers to.

        Raises:
            UserError: the file cannot be read, is not JSON (with line and column), or is not a
                valid schema (every mistake, with its place in the file).
        """
        path = Path(path)
        text = files.read_text(path)
        try:
            parsed = jsontext.parse(text)
        except NotJson:
            parsed = None  # from_text reports it, with the places
        document = Schema(parsed) if isinstance(parsed, dict) else None
        draft = _draft(document) if document is not None else None
        if document is not None and draft in _DRAFTS:
            text = bundle.bundled(
                path,
                text,
                document,
                siblings=_DRAFTS[draft],
                check=lambda *neighbour: _metaschema_problems(neighbour[0], draft, *neighbour[1:]),
            )
        return cls.from_text(text, str(path))

    @classmethod
    def from_text(cls, text: str, where: str = "schema") -> AnswerSchema:
        """Make an answer schema from its JSON text; `where` names it in messages.

        Draft 2020-12 unless `$schema` names another. Formats are asserted. References must stay
        within the document; nothing is ever fetched.

        Raises:
            UserError: as `load`.
        """
        try:
            parsed = jsontext.parse(text)
        except NotJson as error:
            raise UserError(_problem(text, where, flaw.message, flaw.position)
                            for flaw in error.flaws) from None  # fmt: skip
        if not isinstance(parsed, dict):
            raise UserError(
                "an answer schema must be a JSON object",
                where=where,
                fix='begin with {"type": "object", "properties": …}',
            )
        document = Schema(parsed)
        _refuse_no_schema(document, where)
        draft = _draft(document)
        if draft not in _DRAFTS:
            at = locate(text, ["$schema"])
            fix = f"use one of {', '.join(_DRAFTS)}"
            what = f"unknown $schema {quote(draft)}"
            raise UserError([_problem(text, where, what, at, fix)])
        problems = _metaschema_problems(document, draft, text, where)
        if problems:
            raise UserError(problems)
        parts = Subschemas(document, siblings=_DRAFTS[draft])
        problems = _reference_problems(parts, text, where)
        if problems:
            raise UserError(problems)
        try:
            validator = jsonschema_rs.validator_for(document, validate_formats=True, offline=True)
        except (jsonschema_rs.ValidationError, ValueError) as error:
            place = list(getattr(error, "instance_path", []))
            message = getattr(error, "message", str(error))
            what = f"{format_path(place)}: {message}" if place else message
            raise UserError([_problem(text, where, what, locate(text, place))]) from None
        return cls(document, text, where, parts, validator)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 digest of the schema as written."""
        return files.sha256(self.text)

    @cached_property
    def constraint(self) -> str:
        """The schema as llguidance compiles it, the same for reports and for the server."""
        return dumps({**narrowed(self.document), "x-guidance": COMPACT})

    def judge(self, answer: str) -> Verdict:
        """Judge the text of an answer."""
        try:
            value = jsontext.parse(answer)
        except NotJson as error:
            return not_json(error)
        return self.judge_value(value)

    def judge_value(self, value: object) -> Verdict:
        """Judge an answer that is already parsed; `value` must be a JSON value."""
        if self._validator.is_valid(value):
            return Verdict("valid", (), value)
        return Verdict("invalid", reasons(self._validator.iter_errors(value)), value)

    def judge_all(self, values: Sequence[object]) -> list[Verdict]:
        """Judge many parsed answers; the verdicts leave out the values."""
        fits = list(map(self._validator.is_valid, values))
        verdicts = [VALID] * len(fits)
        for index, fit in enumerate(fits):
            if not fit:
                verdicts[index] = self._refusal(values[index])
        return verdicts

    def _refusal(self, value: object) -> Verdict:
        return Verdict("invalid", reasons(self._validator.iter_errors(value)))

    def canonical(self, value: object) -> str:
        """The form of training targets, which is also the form that constrained decoding writes.

        Properties in the schema's order, then unknown ones in the order of the value; compact
        separators; Unicode unescaped. For the text of an answer use `canonical_text`, which also
        keeps numbers as written (`38.50` stays `38.50`).

        Raises:
            UserError: the value is not JSON (NaN, half a surrogate pair, nested too deeply).
        """
        try:
            return self.canonical_text(dumps(value))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"not a JSON value: {error}") from None

    def canonical_text(self, answer: str) -> str:
        """The canonical form of an answer's text; strings and numbers stay as they are.

        Raises:
            UserError: the answer is not JSON.
        """
        try:
            value, verbatim = jsontext.parse(answer), jsontext.parse_verbatim(answer)
        except NotJson as error:
            raise UserError(f"not JSON: {error}") from None
        return self._canonical.write(value, verbatim)

    @cached_property
    def _canonical(self) -> Canonical:
        return Canonical(self.document, self.parts)


def _refuse_no_schema(document: Schema, where: str) -> None:
    """Refuse a document that is not a schema and would therefore accept every answer.

    Raises:
        UserError: it wraps a schema, or has no keyword at all.
    """
    kind = document.get("type")  # requests have this key too, with the value "json_schema"
    if document.keys() & (RULES - {"type"}) or isinstance(kind, list) or kind in _TYPES:
        return
    held = next((key for key in _WRAPPERS if isinstance(document.get(key), dict)), None)
    if held is not None:
        inner = document[held].get("schema")
        place = f"{held}.schema" if isinstance(inner, dict) else held
        what = f"this is not a schema, but contains one under {place}"
        raise UserError(what, where=where, fix=f"use only the object under {place}")
    known = document.keys() & NOTES or any(key.startswith(("$", "x-")) for key in document)
    if document and not known and "type" not in document:
        keys = ", ".join(quote(key) for key in list(document)[:5])
        what = f"this is not a schema: it has no JSON Schema keyword, only {keys}"
        fix = 'begin with {"type": "object", "properties": …}'
        raise UserError(what, where=where, fix=fix)


def _draft(document: Schema) -> str:
    return str(document.get("$schema", DEFAULT_DRAFT)).removesuffix("#")


def _problem(text: str, where: str, what: str, at: int, fix: str | None = None) -> Problem:
    line, column = line_column(text, at)
    return Problem(what, f"{where}:{line}:{column}", fix)


@cache
def _metaschema(draft: str) -> jsonschema_rs.Validator:
    meta = {"$schema": draft, "$ref": draft}
    return jsonschema_rs.validator_for(meta, offline=True, validate_formats=True)


def _metaschema_problems(document: Schema, draft: str, text: str, where: str) -> list[Problem]:
    found = (
        _problem(text, where, f"not a valid schema: {reason}", locate(text, error.instance_path))
        for error in _metaschema(draft).iter_errors(document)
        for reason in reasons([error])
    )
    return list(dict.fromkeys(found))


def _reference_problems(parts: Subschemas, text: str, where: str) -> list[Problem]:
    problems = []
    for node, reference, remote in parts.unresolved():
        what = f"{format_path([*node.place, '$ref'])}: {quote(reference)} does not exist"
        fix = "correct the reference"
        if remote:
            what = f"{format_path([*node.place, '$ref'])}: {quote(reference)} is another document"
            fix = "copy it into $defs or a file next to the schema; nothing is ever fetched"
        problems.append(_problem(text, where, what, locate(text, [*node.place, "$ref"]), fix))
    if not problems and (looping := parts.endless()) is not None:
        what = f"{format_path(looping.place) or 'the schema'} refers to itself endlessly"
        problems.append(_problem(text, where, what, locate(text, looping.place)))
    return problems
