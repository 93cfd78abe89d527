"""Gates of image adapters: measurements as a record, judged by a schema of bounds.

The record is kept as `measurements.json` in the run, so that `llm-lora validate` judges it like any
answer: text and pictures share one notion of passing.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from llm_lora.errors import Problem, UserError
from llm_lora.schema import AnswerSchema
from llm_lora.scores import gates

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


def record(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The record that the schema judges: a number or null per dimension, `strengths`, `facts`.

    `facts` has, for each dimension, the facts behind its number, by label.
    """
    return {
        **{name: measured["scores"].get(name) for name in DIMENSIONS},
        "strengths": measured.get("strengths", []),
        "facts": {one["name"]: dict(one["facts"]) for one in measured.get("dimensions", [])},
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
    least: Mapping[str, float], measured: Mapping[str, Any], schema: AnswerSchema | None
) -> list[dict[str, Any]]:
    """The outcome of every gate.

    Args:
        least: dimension → lowest figure, as the recipe's `check` demands.
        measured: the engine's result: `scores`, `reasons`, `strengths`, `dimensions`.
        schema: the bounds that `data.schema` names.

    Returns:
        outcomes as from `gates.outcome`: one for each of `least`; one for each dimension with a
        minimum in the schema (named `alignment.schema`, say); and `schema_valid` for the whole.
    """
    scores, reasons = measured["scores"], measured.get("reasons", {})

    def bound(name: str, gate: str, wanted: float) -> dict[str, Any]:
        value = scores.get(name)
        reason = reasons.get(name, "not measured") if value is None else ""
        return gates.outcome(gate, wanted, value, value is not None and value >= wanted, reason)

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
    return outcomes
