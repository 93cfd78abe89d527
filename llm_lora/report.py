"""Held-out answers → `report.json` (figures and gates), `answers.jsonl` and `report.html`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora import files, jsontext, page, scores
from llm_lora.formats import Answer, Example
from llm_lora.schema import AnswerSchema
from llm_lora.scores import FieldScore
from llm_lora.verdict import Verdict

ANSWERS = "answers.jsonl"
REPORT = "report.json"
PAGE = "report.html"

Answers = Mapping[str, Mapping[str, Sequence[Answer]]]
"""model (base, adapter) → form (unconstrained, constrained) → one answer per held-out example."""

Gates = Mapping[str, float | bool | None]
"""Gate → threshold. A figure of the report (`schema_valid`, `parsed`, `exact_match`, `field_f1`),
over all held-out examples or, with `_seen`, `_unseen` or another part's label, over that part;
and `better_than_base: true`. None, false and 0 ask for nothing."""

_FIGURES = ("parsed", "schema_valid", "exact_match", "field_f1")


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

    @property
    def cut_off(self) -> bool:
        """Whether the token limit ended the answer."""
        return self.finish == "length"

    @property
    def score(self) -> float:
        """Mean over the fields."""
        return scores.mean_score(self.fields)


def judge(
    schema: AnswerSchema | None, held_out: Sequence[Example], answers: Sequence[Answer]
) -> list[Judged]:
    """Judge answers, one per example and in the same order.

    Without a schema an answer is free text: always valid, scored by its words.
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
                fields=scores.score(schema, reference, verdict),
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
) -> dict[str, Any]:
    """The document of `report.json`.

    Gates judge the adapter's unconstrained answers; where it also answered under the constraint,
    a gate of its own demands that every such answer fits the schema.
    """
    figures: dict[str, Any] = {}
    judged = {}
    for model in sorted(answers, key=lambda name: name != "base"):
        figures[model] = {}
        for form, given in answers[model].items():
            rows = judge(schema, held_out, given)
            judged[model, form] = rows
            figures[model][form] = blocks(rows)
    outcomes = [_gate(name, wanted, figures) for name, wanted in gates.items() if wanted]
    if ("adapter", "constrained") in judged:
        outcomes.append(_constrained_gate(judged["adapter", "constrained"]))
    counted = Counter(example.part for example in held_out)
    return {
        "recipe": dict(recipe),
        "base": dict(base),
        "adapter": dict(adapter),
        "held_out": {part: counted[part] for part in _parts(held_out)},
        "scores": figures,
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
) -> None:
    """Write `answers.jsonl`, `report.html` and, last, `report.json`.

    `curve` holds the training log (step, loss, validation_loss), `lengths` the examples' lengths in
    tokens by what they measure (prompt, answer).

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    judged = {
        (model, form): judge(schema, held_out, given)
        for model, forms in answers.items()
        for form, given in forms.items()
    }
    files.write_jsonl(folder / ANSWERS, _rows(judged))
    shown = judged.get(("adapter", "unconstrained"), [])
    html = page.render(document, schema=schema, judged=shown, curve=curve, lengths=lengths)
    files.write_text(folder / PAGE, html)
    files.write_json(folder / REPORT, document)


def _rows(judged: Mapping[tuple[str, str], Sequence[Judged]]) -> Iterator[dict[str, Any]]:
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
            }


def blocks(rows: Sequence[Judged]) -> dict[str, Any]:
    """The figures of judged answers: of each part, and of all."""
    return {part: _block(rows, part) for part in [*_parts(rows), "all"]}


def _parts(rows: Sequence[Example | Judged]) -> list[str]:
    """The labels of the parts, seen before unseen, others by name."""
    labels = {row.part for row in rows if row.part and row.part != "all"}
    return sorted(labels, key=lambda label: ({"seen": 0, "unseen": 1}.get(label, 2), label))


def _block(rows: Sequence[Judged], part: str) -> dict[str, Any]:
    chosen = [row for row in rows if part in ("all", row.part)]
    return scores.summarise(chosen) | {"cut_off": sum(row.cut_off for row in chosen)}


def _gate(name: str, wanted: float | bool, figures: Mapping[str, Any]) -> dict[str, Any]:
    ours = figures.get("adapter", {}).get("unconstrained", {})
    if name == "better_than_base":
        theirs = figures.get("base", {}).get("unconstrained", {})
        threshold = theirs.get("all", {}).get("field_f1")
        value = ours.get("all", {}).get("field_f1")
        passed = threshold is not None and value is not None and value > threshold
        return _outcome(name, threshold, value, passed, "field_f1 must exceed the base's")
    figure = next((known for known in _FIGURES if name.startswith(known)), name)
    part = name.removeprefix(figure).removeprefix("_") or "all"
    value = ours.get(part, {}).get(figure)
    reason = f"no held-out example to take it from (part {part})" if value is None else ""
    return _outcome(name, wanted, value, value is not None and value >= wanted, reason)


def _constrained_gate(rows: Sequence[Judged]) -> dict[str, Any]:
    """Under the constraint every answer must fit; what did not is named."""
    value = scores.summarise(rows)["schema_valid"]
    broken = [row for row in rows if not row.verdict.valid]
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
    return _outcome("constrained_schema_valid", 1.0, value, value == 1.0, ", ".join(named))


def _outcome(
    name: str, threshold: float | None, value: float | None, passed: bool, reason: str
) -> dict[str, Any]:
    outcome: dict[str, Any] = {
        "name": name,
        "threshold": threshold,
        "value": value,
        "passed": passed,
    }
    return outcome if passed or not reason else outcome | {"reason": reason}
