"""The held-out report: `report.json` (figures and gates), `answers.jsonl` and `report.html`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.example import Answer, Example
from llm_lora.report.text import page
from llm_lora.schema import AnswerSchema, Verdict
from llm_lora.schema import json_text as jsontext
from llm_lora.scores import FieldScore, Gates, Rival, Tolerances, calibration, figures
from llm_lora.scores import judge as judge_gates
from llm_lora.scores import scoring as scores

ANSWERS = "answers.jsonl"
REPORT = "report.json"
PAGE = "report.html"

MODELS = ("base", "published", "adapter")
"""The models that a report may compare: the frozen base, the live version, the new adapter."""

FORMS = ("unconstrained", "constrained")

Answers = Mapping[str, Mapping[str, Sequence[Answer]]]
"""model → form → one answer per held-out example."""


@dataclass(frozen=True)
class Judged:
    """One answer to one held-out example, judged and scored; `prompt` is the user's last turn."""

    id: str
    part: str | None
    prompt: str
    reference: str
    answer: str
    finish: str
    tokens: int
    verdict: Verdict
    exact: bool
    fields: Mapping[str, FieldScore]
    confidence: Mapping[str, float] = field(default_factory=dict)
    """Probability of each closed value, if the engine reported it."""

    @property
    def cut_off(self) -> bool:
        """Whether the token limit ended the answer."""
        return self.finish == "length"

    @property
    def score(self) -> float:
        """The mean score over the fields."""
        return scores.mean_score(self.fields)


def judge(
    schema: AnswerSchema | None,
    held_out: Sequence[Example],
    answers: Sequence[Answer],
    tolerances: Tolerances | None = None,
) -> list[Judged]:
    """Judge answers, one per example and in the same order.

    `tolerances` are the permitted differences of numbers. Without a schema an answer is free text:
    always valid, scored by its words.
    """
    judged = []
    for example, answer in zip(held_out, answers, strict=True):
        if schema is None:
            reference: object = example.answer.strip()
            verdict = Verdict("valid", (), answer.text.strip())
        else:
            reference = jsontext.parse(example.answer)
            verdict = schema.judge(answer.text)
        judged.append(
            Judged(
                id=example.id,
                part=example.part,
                prompt=example.prompt[-1].content,
                reference=example.answer,
                answer=answer.text,
                finish=answer.finish,
                tokens=answer.tokens,
                verdict=verdict,
                exact=scores.exact_match(reference, verdict),
                fields=scores.score(schema, reference, verdict, tolerances),
                confidence=calibration.confidences(schema, answer) if schema else {},
            )
        )
    return judged


def build(
    *,
    recipe: Mapping[str, Any],
    base: Mapping[str, Any],
    adapter: Mapping[str, Any],
    schema: AnswerSchema | None,
    held_out: Sequence[Example],
    answers: Answers,
    gates: Gates,
    seconds: float,
    peak_memory_bytes: int,
    tolerances: Tolerances | None = None,
    rival: Rival | None = None,
    latency: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of `report.json`.

    `rival` is the live version, whose answers are those of the model `published`; `latency` is the
    time per answer (`n`, `p50_ms`, `p95_ms`), if it was measured.
    """
    judged = judge_all(schema, held_out, answers, tolerances)
    scored: dict[str, Any] = {}
    for (model, form), rows in judged.items():
        scored.setdefault(model, {})[form] = blocks(rows, schema)
    outcomes = judge_gates(
        gates,
        scored,
        constrained=judged.get(("adapter", "constrained")),
        rival=rival,
        latency=latency,
    )
    counted = Counter(example.part for example in held_out)
    return {
        "recipe": dict(recipe),
        "base": dict(base),
        "adapter": dict(adapter),
        "published": rival.to_dict() if rival else None,
        "held_out": {part: counted[part] for part in _parts(held_out)},
        "scores": scored,
        "comparisons": list(_comparisons(judged)),
        "calibration": _calibration(judged),
        "latency": dict(latency) if latency else None,
        "gates": outcomes,
        "passed": all(outcome["passed"] for outcome in outcomes),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory_bytes,
    }


def write(
    folder: Path,
    document: Mapping[str, Any],
    *,
    schema: AnswerSchema | None,
    held_out: Sequence[Example],
    answers: Answers,
    curve: Sequence[Mapping[str, Any]],
    lengths: Mapping[str, Sequence[int]],
    tolerances: Tolerances | None = None,
    closed_weight: float = 1.0,
    forced_weight: float = 1.0,
    constrained_loss: bool = False,
) -> None:
    """Write `answers.jsonl`, `report.html` and, last, `report.json`.

    `curve` is the training log (step, loss, validation_loss), `lengths` maps names (prompt, answer)
    to the examples' lengths in tokens, `closed_weight` and `forced_weight` are the weights of
    closed and forced tokens in the training loss, `constrained_loss` is whether the validation loss
    was measured under the constraint.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    judged = judge_all(schema, held_out, answers, tolerances)
    files.write_jsonl(folder / ANSWERS, _rows(judged))
    html = page.render(
        document,
        schema=schema,
        judged=judged,
        curve=curve,
        lengths=lengths,
        closed_weight=closed_weight,
        forced_weight=forced_weight,
        constrained_loss=constrained_loss,
    )
    files.write_text(folder / PAGE, html)
    files.write_json(folder / REPORT, document)


Sets = Mapping[tuple[str, str], Sequence[Judged]]
"""(model, form) → its judged answers, in the order of `MODELS` and `FORMS`."""


def judge_all(
    schema: AnswerSchema | None,
    held_out: Sequence[Example],
    answers: Answers,
    tolerances: Tolerances | None = None,
) -> Sets:
    """The answers of every model in every available form, judged and scored."""
    return {
        (model, form): judge(schema, held_out, answers[model][form], tolerances)
        for model in MODELS
        for form in FORMS
        if form in answers.get(model, {})
    }


def _comparisons(judged: Sets) -> Iterator[dict[str, Any]]:
    """The adapter against base and live version, and its constrained against its free answers."""
    pairs = [(("adapter", form), (model, form)) for model in MODELS[:2] for form in FORMS]
    for ours, theirs in [*pairs, (("adapter", "constrained"), ("adapter", "unconstrained"))]:
        if ours in judged and theirs in judged:
            found = figures.compare(judged[ours], judged[theirs])
            yield {"ours": list(ours), "theirs": list(theirs), **found}


def _calibration(judged: Sets) -> dict[str, Any]:
    """Model → form → reliability, if probabilities are known."""
    found: dict[str, Any] = {}
    for (model, form), rows in judged.items():
        if (table := calibration.reliability(rows)) is not None:
            found.setdefault(model, {})[form] = table
    return found


def _rows(judged: Sets) -> Iterator[dict[str, Any]]:
    for (model, form), rows in judged.items():
        for row in rows:
            yield {
                "id": row.id,
                "part": row.part,
                "model": model,
                "form": form,
                "prompt": row.prompt,
                "reference": row.reference,
                "answer": row.answer,
                "finish": row.finish,
                "tokens": row.tokens,
                "verdict": row.verdict.to_dict(),
                "exact_match": row.exact,
                "score": round(row.score, 6),
                "fields": {name: round(field.score, 6) for name, field in row.fields.items()},
                **(_rounded(row.confidence) if row.confidence else {}),
            }


def _rounded(confidence: Mapping[str, float]) -> dict[str, Any]:
    return {"confidence": {name: round(value, 6) for name, value in confidence.items()}}


def blocks(rows: Sequence[Judged], schema: AnswerSchema | None = None) -> dict[str, Any]:
    """The figures of judged answers, for each part and for all."""
    return {part: _block(rows, part, schema) for part in [*_parts(rows), "all"]}


def _parts(rows: Sequence[Example | Judged]) -> list[str]:
    """The labels of the parts: seen, unseen, then others by name."""
    labels = {row.part for row in rows if row.part and row.part != "all"}
    return sorted(labels, key=lambda label: ({"seen": 0, "unseen": 1}.get(label, 2), label))


def _block(rows: Sequence[Judged], part: str, schema: AnswerSchema | None) -> dict[str, Any]:
    chosen = [row for row in rows if part in ("all", row.part)]
    found = figures.summarise(chosen, schema)
    return found | {"cut_off": sum(row.cut_off for row in chosen)}
