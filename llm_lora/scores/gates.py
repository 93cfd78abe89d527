"""Gates: the conditions that a recipe's `check` sets for publishing an adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from llm_lora.errors import Problem, UserError
from llm_lora.record import OMITTED, Record
from llm_lora.schema import AnswerSchema, Verdict
from llm_lora.scores import figures
from llm_lora.scores.baselines import BASELINES
from llm_lora.scores.fields import Kind, leaves, shape
from llm_lora.scores.figures import Figures, Parts, Scores

Gates = Mapping[str, float | bool | None]
"""Gate → threshold:

    a figure of the report   at least: `schema_valid`, `parsed`, `exact_match`, `field_f1`, over all
                             held-out examples or, with `_seen`, `_unseen` or another part's label,
                             over that part
    fields.PATH              at least: the score of one field
    better_than_base         true: higher `field_f1` than the base
    better_than_baselines    true: higher `field_f1` than every trivial baseline
    max_drop                 at most: the drop of a figure below the live version's
    max_latency_ms           at most: the 95th percentile of the time per answer

None, false and a minimum of 0 set no condition."""

DROP, LATENCY = "max_drop", "max_latency_ms"
BETTER_THAN_BASELINES = "better_than_baselines"
AT_MOST = (DROP, LATENCY)
"""The gates whose figure must not exceed the threshold."""

_DROPPING = ("schema_valid", "field_f1")
_TIE = 1e-9


@dataclass(frozen=True)
class Rival(Record):
    """The live version that an adapter is compared with; `label` is None if no version is live.

    `problem` is the reason why it could not answer the same prompts.
    """

    label: str | None = None
    digest: str | None = None
    problem: Annotated[str, OMITTED] = ""


@dataclass(frozen=True)
class Latency(Record):
    """The time per answer, one prompt at a time: median and 95th percentile over `n` prompts."""

    n: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Gate(Record):
    """The outcome of one gate: its threshold, the value reached, and why it failed, if known."""

    name: str
    threshold: float | None
    value: float | None
    passed: bool
    reason: Annotated[str, OMITTED] = ""

    @property
    def bound(self) -> str:
        """How the value must stand to the threshold: `≤`, `≥` or `more than`."""
        if self.name in AT_MOST:
            return "≤"
        return "more than" if self.name.startswith("better_than_") else "≥"


class Row(Protocol):
    """The parts of a judged answer that gates need."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def cut_off(self) -> bool: ...


def require_fields(
    schema: AnswerSchema, floors: Sequence[str], tolerances: Sequence[str], where: str
) -> None:
    """Require that every field that a recipe's `check` names is in the schema.

    Raises:
        UserError: it is not, or a tolerance is set for a field that is not a number.
    """
    known: dict[str, Kind] = dict(leaves(shape(schema)))
    listed = f"the schema has {', '.join(known)}"
    problems = [
        Problem(f"check.{block} names no field of the schema: {name}", where, listed)
        for block, names in (("fields", floors), ("tolerance", tolerances))
        for name in names
        if name not in known
    ]
    problems += [
        Problem(f"check.tolerance is for numbers, but {name} is {known[name]}", where, "remove it")
        for name in tolerances
        if known.get(name, "number") != "number"
    ]
    if problems:
        raise UserError(problems)


def require_parts(gates: Gates, parts: Collection[str], where: str) -> None:
    """Require that held-out examples have the parts that a recipe's `check` names.

    Raises:
        UserError: no example has that part, so the gate could never pass.
    """
    asked = {name: _figure_and_part(name)[1] for name, wanted in gates.items() if wanted}
    problems = [
        Problem(
            f'check.{name} has no examples: no held-out record has "part": "{part}"',
            where,
            f'write "part": "{part}" into the records of that part, or remove the gate',
        )
        for name, part in asked.items()
        if part is not None and part not in parts
    ]
    if problems:
        raise UserError(problems)


def _figure_and_part(name: str) -> tuple[str, str | None]:
    """The figure that a gate reads, and the part that it is taken over, if any."""
    figure = next((known for known in figures.METRICS if name.startswith(f"{known}_")), name)
    return figure, name.removeprefix(figure).removeprefix("_") or None


def judge(
    gates: Gates,
    scores: Scores,
    *,
    baselines: Mapping[str, Parts],
    constrained: Sequence[Row] | None,
    rival: Rival | None,
    latency: Latency | None,
) -> tuple[Gate, ...]:
    """The outcome of every gate.

    Figures are those of the adapter's unconstrained answers. If it also answered under the
    constraint, an additional gate requires every such answer to fit the schema.

    Args:
        gates: the thresholds.
        scores: model → form → part → figures.
        baselines: name → the figures of a trivial baseline.
        constrained: the adapter's judged answers under the constraint.
        rival: the live version; its answers are the model `published` of `scores`.
        latency: see `max_latency_ms`.
    """
    outcomes = []
    for name, wanted in gates.items():
        if name == DROP and wanted is not None:
            outcomes.append(_drop(float(wanted), scores, rival))
        elif name == LATENCY and wanted:
            outcomes.append(_latency(float(wanted), latency))
        elif name == "better_than_base" and wanted:
            outcomes.append(_better_than_base(scores))
        elif name == BETTER_THAN_BASELINES and wanted:
            outcomes.append(_better_than_baselines(scores, baselines))
        elif wanted:
            outcomes.append(_least(name, float(wanted), scores))
    if constrained is not None:
        outcomes.append(_constrained(constrained))
    return tuple(outcomes)


def _figures(
    scores: Scores, model: str, form: str = "unconstrained", part: str = "all"
) -> Figures | None:
    forms = scores[model].forms if model in scores else {}
    return forms[form].parts.get(part) if form in forms else None


def _least(name: str, wanted: float, scores: Scores) -> Gate:
    if name.startswith(figures.FIELD):
        whole = _figures(scores, "adapter")
        field = whole.fields.get(name.removeprefix(figures.FIELD)) if whole else None
        value = field.f1 if field else None
        return at_least(name, wanted, value, "no held-out value of it" if value is None else "")
    figure, part = _figure_and_part(name)
    part = part or "all"
    found = _figures(scores, "adapter", part=part)
    value = found.metric(figure) if found else None
    reason = f"no held-out example for it (part {part})" if value is None else ""
    return at_least(name, wanted, value, reason)


def _better_than_base(scores: Scores) -> Gate:
    base, adapter = (_figures(scores, model) for model in ("base", "adapter"))
    threshold, value = (found.field_f1 if found else None for found in (base, adapter))
    return _more("better_than_base", threshold, value, "field_f1 must exceed the base's")


def _better_than_baselines(scores: Scores, baselines: Mapping[str, Parts]) -> Gate:
    """The adapter against the trivial baseline that scores best."""
    adapter = _figures(scores, "adapter")
    value = adapter.field_f1 if adapter else None
    found = {
        name: parts.all.field_f1
        for name, parts in baselines.items()
        if parts.all.field_f1 is not None
    }
    if not found:
        return outcome(BETTER_THAN_BASELINES, None, value, False, "no baseline was measured")
    best = max(found, key=lambda name: found[name])
    reason = f"field_f1 must exceed that of {BASELINES[best]}"
    return _more(BETTER_THAN_BASELINES, found[best], value, reason)


def _more(name: str, threshold: float | None, value: float | None, reason: str) -> Gate:
    passed = threshold is not None and value is not None and value > threshold
    return outcome(name, threshold, value, passed, reason)


def _drop(wanted: float, scores: Scores, rival: Rival | None) -> Gate:
    """The drop of the adapter below the live version, in the figure that drops most."""
    if rival is None:
        return outcome(DROP, wanted, None, False, "no store was checked")
    if rival.label is None:
        note = "no version is live yet, so there is nothing to compare with"
        return Gate(DROP, wanted, None, True, note)
    drops = {}
    for form, parts in scores["published"].forms.items() if "published" in scores else ():
        ours = _figures(scores, "adapter", form)
        for figure in _DROPPING:
            before, now = parts.all.metric(figure), ours.metric(figure) if ours else None
            if before is not None and now is not None:
                drops[f"{figure}, {form}"] = round(before - now, 6)
    if not drops:
        reason = rival.problem or "no held-out example to compare"
        return outcome(DROP, wanted, None, False, f"not comparable with {rival.label}: {reason}")
    worst = max(drops, key=drops.__getitem__)
    reason = f"{worst}, is lower than that of {rival.label}"
    return outcome(DROP, wanted, drops[worst], drops[worst] <= wanted + _TIE, reason)


def _latency(wanted: float, latency: Latency | None) -> Gate:
    value = latency.p95_ms if latency else None
    reason = "95th percentile, one prompt at a time" if latency else "not measured"
    return outcome(LATENCY, wanted, value, value is not None and value <= wanted, reason)


def _constrained(rows: Sequence[Row]) -> Gate:
    """The gate that every constrained answer fits; the reason counts those that do not."""
    broken = [row for row in rows if not row.verdict.valid]
    value = round(1 - len(broken) / len(rows), 6) if rows else None
    cut_off = sum(row.cut_off for row in broken)
    found = Counter(
        f"{reason.keyword} at {reason.field or 'the whole answer'}"
        for row in broken
        if not row.cut_off
        for reason in row.verdict.reasons[:1]
    )
    named = [f"{count} with {name}" for name, count in found.most_common(3)]
    if cut_off:
        named.insert(0, f"{cut_off} cut off by the token limit (generate.max_new_tokens)")
    return outcome("constrained_schema_valid", 1.0, value, value == 1.0, ", ".join(named))


def at_least(name: str, wanted: float, value: float | None, reason: str) -> Gate:
    """The outcome of a gate whose value must reach the threshold."""
    return outcome(name, wanted, value, value is not None and value >= wanted, reason)


def outcome(
    name: str, threshold: float | None, value: float | None, passed: bool, reason: str
) -> Gate:
    """The outcome of one gate, with the reason only if it failed."""
    return Gate(name, threshold, value, passed, "" if passed else reason)
