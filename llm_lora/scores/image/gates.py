"""Gates of image adapters: measurements as a record, judged by a schema of bounds.

The record is kept as `measurements.json` in the run, so that `llm-lora validate` judges it like any
answer: text and pictures share one notion of passing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from llm_lora.errors import Problem, UserError
from llm_lora.record import Record
from llm_lora.schema import AnswerSchema
from llm_lora.scores import gates
from llm_lora.scores.gates import Gate

DIMENSIONS = (
    "consistency",
    "fidelity",
    "generalisation",
    "learning",
    "strength",
    "alignment",
)
"""The dimensions in which an adapter is judged, in the order of the report."""

SCHEMA_VALID = "schema_valid"
"""The gate that requires all measurements to fit the schema of bounds."""

_KEYS = (*DIMENSIONS, "strengths", "facts")


Fact = float | int | str | bool | None


@dataclass(frozen=True)
class Dimension(Record):
    """The basis of one figure: how it was measured, by what source, and the facts behind it.

    `picture` is a path from the run's folder, and `shows` says what is on it.
    """

    name: str
    value: float | None
    method: str
    source: str
    picture: str | None
    shows: str
    facts: tuple[tuple[str, Fact], ...]
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Response(Record):
    """The effect of one strength, None where it was not measured.

    `change` is the root mean square of the change of the picture (0 to 255), `style` the presence
    of the style (0 to 1), `alignment` the share of the prompt's alignment that is kept (0 to 1).
    """

    strength: float
    change: float | None
    style: float | None
    alignment: float | None


@dataclass(frozen=True)
class Embedder(Record):
    """The model that pictures are compared with."""

    name: str


@dataclass(frozen=True)
class Measurements(Record):
    """The measurements of an adapter: a figure for each dimension, None where there is none.

    `reasons` says why there is none, by dimension.
    """

    scores: Mapping[str, float | None]
    reasons: Mapping[str, str]
    dimensions: tuple[Dimension, ...]
    strengths: tuple[Response, ...]
    embedder: Embedder | None
    prompts: tuple[str, ...]


def record(measured: Measurements) -> dict[str, object]:
    """The record that the schema judges: a number or null per dimension, `strengths`, `facts`.

    `facts` has, for each dimension, the facts behind its number, by label.
    """
    return {
        **{name: measured.scores.get(name) for name in DIMENSIONS},
        "strengths": [one.to_json() for one in measured.strengths],
        "facts": {one.name: dict(one.facts) for one in measured.dimensions},
    }


def require_known(schema: AnswerSchema) -> None:
    """Check that a schema of bounds refers only to measured values.

    Raises:
        UserError: it names something else, which no adapter could satisfy.
    """
    named = [*schema.document.get("properties", {}), *schema.document.get("required", [])]
    problems = []
    for name in dict.fromkeys(named):
        if name not in _KEYS:
            close = get_close_matches(str(name), _KEYS, n=1)
            fix = f"did you mean {close[0]}?" if close else f"there are {', '.join(_KEYS)}"
            problems.append(Problem(f"nothing called {name} is measured", schema.where, fix))
    if problems:
        raise UserError(problems)


def judge(
    least: Mapping[str, float], measured: Measurements, schema: AnswerSchema | None
) -> tuple[Gate, ...]:
    """The outcome of every gate.

    Args:
        least: dimension → lowest figure, as the recipe's `check` demands.
        measured: the engine's result.
        schema: the bounds that `data.schema` names.

    Returns:
        one for each of `least`; one for each dimension with a minimum in the schema (named
        `alignment.schema`, say); and `schema_valid` for the whole.
    """

    def bound(name: str, gate: str, wanted: float) -> Gate:
        value = measured.scores.get(name)
        reason = measured.reasons.get(name, "not measured") if value is None else ""
        return gates.at_least(gate, wanted, value, reason)

    outcomes = [bound(name, name, wanted) for name, wanted in least.items()]
    if schema is not None:
        parts = schema.document.get("properties", {})
        minimums = {name: parts.get(name) for name in DIMENSIONS}
        outcomes += [
            bound(name, f"{name}.schema", float(part["minimum"]))
            for name, part in minimums.items()
            if isinstance(part, dict) and "minimum" in part
        ]
        verdict = schema.judge_value(record(measured))
        told = str(verdict)
        outcomes.append(gates.outcome(SCHEMA_VALID, 1.0, float(verdict.valid), verdict.valid, told))
    return tuple(outcomes)
