"""Lint of a schema: the parts that a decoder enforces, and those that will cause problems.

`enforceable` is a promise: every complete answer under the constraint fits the schema. It is made
only if the decoder accepts the schema, enforces each of its features in probes, alone and in pairs,
and if answers drawn from the schema's own grammar fit as well.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_lora.grammar.extent import Extent, Measure, extent
from llm_lora.grammar.features import Use, used
from llm_lora.grammar.habits import Remark, remarks
from llm_lora.grammar.matching import Backend, Refused, compile_schema, draw
from llm_lora.grammar.probes import Outcome, Probes, State, pairs
from llm_lora.schema import AnswerSchema, format_path, quote

_DRAWS = 12
_LONGEST_DRAW = 800


@dataclass(frozen=True)
class Keyword:
    """How a decoder treats a feature at a place in the schema; `why` gives an example."""

    where: str
    name: str
    state: State
    why: str | None = None


@dataclass(frozen=True)
class Lint:
    """The outcome of lint; `refused` is the decoder's message if it refuses the schema.

    `seconds` is the time of compiling, `unit` the unit of the extent.
    """

    backend: Backend
    version: str
    enforceable: bool
    refused: str | None
    keywords: tuple[Keyword, ...]
    remarks: tuple[Remark, ...]
    extent: Extent
    unit: str
    seconds: float

    def not_enforced(self) -> tuple[Keyword, ...]:
        """The keywords that are left to judging, or refused."""
        return tuple(one for one in self.keywords if one.state != "enforced")

    def to_dict(self) -> dict[str, Any]:
        """As JSON; an infinite length is null."""
        longest = self.extent.longest
        return {
            **asdict(self),
            "extent": {
                "shortest": self.extent.shortest,
                "longest": None if math.isinf(longest) else int(longest),
            },
        }


@dataclass
class _Found:
    keywords: list[Keyword] = field(default_factory=list)

    def add(self, where: str, name: str, outcome: Outcome) -> None:
        self.keywords.append(Keyword(where, name, outcome.state, _why(outcome)))


def lint(
    schema: AnswerSchema,
    backend: Backend = "vllm",
    *,
    probes: Probes | None = None,
    measure: Measure | None = None,
) -> Lint:
    """Lint a schema for a decoder.

    Args:
        schema: a valid schema.
        backend: the decoder that will enforce it.
        probes: the probes of the decoder; by default the cached ones.
        measure: counts the tokens of a text; without it the extent is in characters.
    """
    probes = probes if probes is not None else Probes(backend)
    uses = used(schema.parts)
    keywords = _keywords(uses, probes)
    refused = None
    started = time.perf_counter()
    try:
        grammar = compile_schema(schema, backend)
        seconds = time.perf_counter() - started
        if all(one.state == "enforced" for one in keywords):
            grammar.restart()
            seconds = time.perf_counter() - started
            keywords += _drawn(schema, grammar)
        keywords = [_let_through(one) for one in keywords]
    except Refused as error:
        refused = str(error)
        seconds = time.perf_counter() - started
    probes.save()
    found = extent(schema, measure or len)
    return Lint(
        backend=backend,
        version=probes.version,
        enforceable=refused is None and all(one.state == "enforced" for one in keywords),
        refused=refused,
        keywords=tuple(keywords),
        remarks=tuple(remarks(schema, uses, found, measure)),
        extent=found,
        unit="tokens" if measure is not None else "characters",
        seconds=seconds,
    )


def _keywords(uses: list[Use], probes: Probes) -> list[Keyword]:
    """Every feature at its place; a pair only if both are enforced alone but not together."""
    found = _Found()
    beside = any("oneOf" in use.node.schema for use in uses)
    for use in uses:
        where = format_path(use.node.place) or "(schema)"
        fine = []
        for name in use.features:
            outcome = probes.feature(name, beside=beside)
            found.add(where, name, outcome)
            if outcome.state == "enforced":
                fine.append(name)
        for one, other in pairs(tuple(fine)):
            outcome = probes.pair(one, other, beside=beside)
            if outcome.state != "enforced":
                found.add(where, f"{one} beside {other}", outcome)
    return found.keywords


def _let_through(keyword: Keyword) -> Keyword:
    """A feature that a probe found refused, in a schema that is accepted, was ignored."""
    if keyword.state != "refused":
        return keyword
    return Keyword(keyword.where, keyword.name, "afterwards", "the decoder ignores it here")


def _drawn(schema: AnswerSchema, grammar: Any) -> Iterator[Keyword]:
    """A judged sample of answers that the decoder accepts: the final check of the whole schema."""
    source = random.Random(0)
    ended = 0
    for _ in range(_DRAWS):
        text = draw(grammar, source, _LONGEST_DRAW)
        if text is None:
            continue
        ended += 1
        verdict = schema.judge(text)
        if not verdict.valid:
            why = f"accepts {quote(text)}: {verdict.reasons[0]}"
            yield Keyword("(schema)", "whole schema", "afterwards", why)
            return
    if not ended:
        why = f"no drawn answer ended within {_LONGEST_DRAW} bytes, so enforcement is unproven"
        yield Keyword("(schema)", "whole schema", "afterwards", why)


def _why(outcome: Outcome) -> str | None:
    if outcome.state == "refused":
        return outcome.reason
    if outcome.example is not None:
        return f"a probe accepted {quote(outcome.example)}"
    if outcome.narrower is not None:
        return f"narrower than the schema: a probe refused {quote(outcome.narrower)}"
    return None
