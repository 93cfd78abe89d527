"""Probes of the installed decoder: the features of a schema that it really enforces.

A probe compiles a small schema as it would be served, and runs texts through the grammar that the
judge has judged. A feature that lets through a text that does not fit is left to judging; one that
refuses a text that fits is narrower than the schema. Keywords are probed alone and in pairs, since
a decoder may ignore one next to another. Outcomes are cached by the library's version.
"""

from __future__ import annotations

import json
import os
import random
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.grammar.features import FRAGMENTS, fragment
from llm_lora.grammar.matching import (
    LIBRARY,
    Backend,
    Refused,
    compile_schema,
    draw,
    stop,
    text_for,
)
from llm_lora.schema import AnswerSchema, Schema, dumps

State = Literal["enforced", "afterwards", "refused"]

_FORMATS = {
    "date": ["2026-11-21", "2024-02-29", "2023-02-29", "2026-11-31", "26-11-21", "2026-1-1",
             "2100-02-29", "2000-02-29"],
    "time": ["10:00:00Z", "10:00:60Z", "23:59:60Z", "10:00:00", "24:00:00Z", "10:00:00+01:00"],
    "date-time": [
        "2026-11-21T10:00:00Z", "2026-11-21T10:00:60Z", "2026-02-30T10:00:00Z",
        "2026-11-21 10:00:00Z", "2026-11-21T10:00:00", "2026-11-21T10:00:00.5+01:00",
        "2023-02-29T10:00:00Z", "2024-02-29T10:00:00Z",
    ],
    "duration": ["P1Y2M3DT4H5M6S", "P1W", "P", "PT", "P1S", "1Y"],
    "email": ["a@b.example", "a", "@b", "a b@c.example", "a..b@c.example", "a" * 65 + "@b.example"],
    "hostname": ["a.example", "-a.example", "a_b.example", "a" * 64 + ".example", "a."],
    "ipv4": ["127.0.0.1", "256.0.0.1", "127.0.0.01", "127.0.0"],
    "ipv6": ["::1", "::ffff:1.2.3.4", "1::2::3", "g::", "1:2:3:4:5:6:7:8", "::1%eth0"],
    "uri": ["https://a.example/b?c#d", "a/b", "http://[::1", "http://a b", "urn:a:b", "1:a"],
    "uuid": ["2eb8aa08-aa98-11ea-b4aa-73b441d16380", "2eb8aa08aa9811eab4aa73b441d16380", "2eb8"],
}  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 4, 5, 6, 7, 10, 15, -1, -5, 2.5, 4.5, 5.5, -0.5, 10**20,
    "", "a", "b", "ab", "abc", "abcd", "aab", "bb", "xbx", "a c", "a1c", "a-c", "aéc", "a😀c",
    "a\u0085c", "a\ufeffc", "a\u2028c", "a\rc", "a\nc", "a٣c", "ac", "é", "😀😀", "😀😀😀😀",
    'a"b\\', "é.*\n", "AB", "a" * 40,
    [], [1], [2], [5], [1, 1], [1, 2], [5, 5], [5, 1], ["a"], [1, "a"], [1, None], [1.5], [[1]],
    [1, 2, 3], [5, 5, 5], [None],
    {}, {"a": 1}, {"a": 3}, {"a": 5}, {"b": 1}, {"a": 1, "b": 1}, {"a": 5, "b": 1}, {"a": "x"},
    {"a": 1, "x": 1}, {"x": 1}, {"b": "x"}, {"bb": 1}, {"a": [1]}, {"a": 1, "b": {"a": 1}},
    {"a": 1, "b": {"a": "x"}}, {"a": 1, "b": {"a": 1, "x": 1}}, {'é"\n.*': 1}, {'é"\n.*': "x"},
    {"": 1}, {"a": 1, "b": None}, {"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 3},
]  # fmt: skip
# Spellings that are not the canonical JSON of any value above, some of them not JSON at all.
_SPELLINGS = [
    "1.0", "5.0", "-0", "1e2", "5e0", "1E400", "[1E400]", "01", "+1", "1.", ".5", "NaN",
    '{"a":1,"a":1}', '{"a":1,"x":1,"x":2}', '{"b":1,"b":2}', '{"x":1,"x":1}', '{"a":1E400}',
    '{"\\ud800":1}', '"\\ud800"', '"\\u0061b"', '{"b":1,"a":1}', '{"a": 1}', "[1, 2]", " 1", "1 ",
    '"a\nb"', '"ab', '"a"b"', '{"a":1}{"b":1}', "tru", "",
]  # fmt: skip
_DRAWS = 24


@dataclass(frozen=True)
class Outcome:
    """The outcome of a probe: `example` is a text that shows it, `reason` why it was refused.

    `narrower` is a text that fits the schema but that the decoder would not write.
    """

    state: State
    example: str | None = None
    reason: str | None = None
    narrower: str | None = None


class Probes:
    """The probes of one decoder, cached in memory and on disk."""

    def __init__(self, backend: Backend, store: Path | None = None) -> None:
        self.backend: Backend = backend
        self.version = f"{LIBRARY[backend]} {metadata.version(LIBRARY[backend])}"
        self._path = store if store is not None else _store()
        self._known = _read(self._path)
        self._new = False

    def feature(self, feature: str, *, beside: bool = False) -> Outcome:
        """How the decoder handles a feature by itself.

        `beside` is whether the document has a `oneOf` somewhere, and so is not narrowed.
        """
        outcome = self._probe([feature], beside=beside)
        if feature == "oneOf" and outcome.state == "refused":
            # Overlapping alternatives are always refused; disjoint ones may be enforced.
            return self._probe(["oneOf:apart"], beside=beside)
        return outcome

    def pair(self, first: str, second: str, *, beside: bool = False) -> Outcome:
        """How the decoder handles two features of one value, one of `pairs`."""
        return self._probe([first, second], beside=beside)

    def save(self) -> None:
        """Save new outcomes to the cache; if it is not writable, they are lost."""
        if self._new:
            with suppress(UserError, OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                known = {key: asdict(outcome) for key, outcome in self._known.items()}
                files.write_json(self._path, known)
            self._new = False

    def _probe(self, features: list[str], *, beside: bool) -> Outcome:
        document = _held(_merged(features))
        if beside:
            document["$defs"] = {**document.get("$defs", {}), "beside": fragment("oneOf:apart")}
        schema = AnswerSchema.from_text(dumps(document))
        key = files.sha256(
            f"{self.version}\n{text_for(schema, self.backend)}\n{schema.text}\n{_pool_digest()}"
        )[:32]
        if key not in self._known:
            self._known[key] = _try(schema, self.backend)
            self._new = True
        return self._known[key]


def table(probes: Probes) -> dict[str, Outcome]:
    """Every known feature with its outcome, formats after the keywords."""
    names = [name for name in FRAGMENTS if name != "oneOf:apart"]
    names += [f"format:{name}" for name in _FORMATS]
    return {name: probes.feature(name) for name in names}


def _try(schema: AnswerSchema, backend: Backend) -> Outcome:
    try:
        grammar = compile_schema(schema, backend)
        grammar.restart()
    except Refused as error:
        if "unsatisfiable" in str(error).lower():
            return Outcome("enforced")  # The two features exclude each other: nothing fits.
        return Outcome("refused", reason=str(error))
    narrower = None
    for text in _pool():
        fits = schema.judge(text).valid
        taken = stop(grammar, text) is None
        if taken and not fits:
            return Outcome("afterwards", example=text)
        # A refused spelling counts only if it is canonical: answers are always written so.
        if fits and not taken and narrower is None and text == schema.canonical_text(text):
            narrower = text
    source = random.Random(1)
    for _ in range(_DRAWS):
        drawn = draw(grammar, source, 200)
        if drawn is not None and not schema.judge(drawn).valid:
            return Outcome("afterwards", example=drawn)
    return Outcome("enforced", narrower=narrower)


def _held(fragment: Schema) -> Schema:
    """A fragment as the schema of a property, the usual case; decoders treat the root specially."""
    inner = {key: value for key, value in fragment.items() if key not in ("$schema", "$defs")}
    outer = {key: fragment[key] for key in ("$schema", "$defs") if key in fragment}
    return Schema({
        **outer, "type": "object", "properties": {"v": inner}, "required": ["v"],
        "additionalProperties": False,
    })  # fmt: skip


def _merged(names: list[str]) -> Schema:
    """One schema made of the fragments of features that share no keyword except their types."""
    document = Schema({})
    kinds: list[str] = []
    for part in map(fragment, names):
        kind = part.get("type")
        if isinstance(kind, str) and kind not in kinds:
            kinds.append(kind)
        document |= part
    if kinds:
        document["type"] = kinds[0] if len(kinds) == 1 else kinds
    return document


def pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """The pairs of features of one subschema to probe.

    `enum` and `const` are left out unless one of their values clashes with the other keywords:
    values that fit those cannot conflict with them.
    """
    probed = [name for name in names if "clash" in names or not name.startswith(("enum", "const"))]
    return [(one, other) for one, other in combinations(probed, 2) if _meet(one, other)]


def _meet(first: str, second: str) -> bool:
    """Whether one schema can have both features, each as in its fragment."""
    one, other = fragment(first), fragment(second)
    shared = (one.keys() & other.keys()) - {"type"}
    if one == other or any(one[keyword] != other[keyword] for keyword in shared):
        return False
    # A type next to another type forms a list; keywords of different types never apply together.
    typed = first.startswith("type:") or second.startswith("type:")
    return typed or one.get("type", "") == other.get("type", "") or not one.keys() & other.keys()


@cache
def _pool() -> tuple[str, ...]:
    texts = [dumps(value) for value in _VALUES]
    texts += [dumps(text) for examples in _FORMATS.values() for text in examples]
    return tuple(f'{{"v":{text}}}' for text in dict.fromkeys([*texts, *_SPELLINGS]))


@cache
def _pool_digest() -> str:
    return files.sha256("\n".join(_pool()))


def _store() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "llm-lora" / "probes.json"


def _read(path: Path) -> dict[str, Outcome]:
    """The cached outcomes; empty if the cache cannot be read, since probes can be run again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = set(Outcome.__dataclass_fields__)
    if not isinstance(found, dict):
        return {}
    return {
        key: Outcome(**row)
        for key, row in found.items()
        if isinstance(row, dict) and set(row) == names
    }
