"""Answers to held-out examples, judged and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_lora.example import Answer, Example
from llm_lora.schema import AnswerSchema, Verdict
from llm_lora.scores import FieldScore, Parts, Tolerances, calibration, figures
from llm_lora.scores import scoring as scores

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
        """F1 of the answer's values."""
        return scores.answer_score(self.verdict, self.fields)


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
        reference, verdict = scores.read(schema, example.answer, answer.text)
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


def answer_rows(judged: Sets) -> Iterator[dict[str, Any]]:
    """The lines of `answers.jsonl`."""
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
                "fields": {name: _count(field) for name, field in row.fields.items()},
                **(_rounded(row.confidence) if row.confidence else {}),
            }


def _count(field: FieldScore) -> dict[str, float | None]:
    """The F1 of a field and the counts that it comes from."""
    return {
        "f1": None if field.f1 is None else round(field.f1, 6),
        "hits": round(field.hits, 6),
        "expected": field.expected,
        "given": field.given,
    }


def _rounded(confidence: Mapping[str, float]) -> dict[str, Any]:
    return {"confidence": {name: round(value, 6) for name, value in confidence.items()}}


def part_figures(rows: Sequence[Judged], schema: AnswerSchema | None = None) -> Parts:
    """The figures of judged answers, for each part and for all."""
    return Parts(
        {
            part: figures.summarise([row for row in rows if part in ("all", row.part)], schema)
            for part in [*parts(rows), "all"]
        }
    )


def parts(rows: Sequence[Example | Judged]) -> list[str]:
    """The labels of the parts: seen, unseen, then others by name."""
    labels = {row.part for row in rows if row.part and row.part != "all"}
    return sorted(labels, key=lambda label: ({"seen": 0, "unseen": 1}.get(label, 2), label))
