"""The held-out report of a text adapter, from its answers to the files of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llm_lora import files
from llm_lora.example import Answer, Example
from llm_lora.report.document import BaseIdentity, RecipeIdentity
from llm_lora.report.pages import Curve
from llm_lora.report.text import page
from llm_lora.report.text.answers import (
    FORMS,
    MODELS,
    Answers,
    Sets,
    answer_rows,
    judge,
    judge_all,
    part_figures,
    parts,
)
from llm_lora.report.text.document import AdapterIdentity, Decoding, ModelComparison, TextReport
from llm_lora.run import Run
from llm_lora.schema import AnswerSchema
from llm_lora.scores import (
    BASELINES,
    SURE,
    Forms,
    Gates,
    Latency,
    Parts,
    Reliability,
    Rival,
    Tally,
    Tolerances,
    baselines,
    calibration,
    figures,
)
from llm_lora.scores import judge as judge_gates


def build(
    *,
    recipe: RecipeIdentity,
    base: BaseIdentity,
    adapter: AdapterIdentity,
    schema: AnswerSchema | None,
    held_out: Sequence[Example],
    answers: Answers,
    gates: Gates,
    seconds: float,
    peak_memory_bytes: int,
    train: Sequence[Example],
    tolerances: Tolerances | None = None,
    rival: Rival | None = None,
    latency: Latency | None = None,
    decoding: Decoding | None = None,
) -> TextReport:
    """The report of answers.

    `rival` is the live version, whose model is `published`. `train` are the training examples, of
    which the trivial baselines are made.
    """
    judged = judge_all(schema, held_out, answers, tolerances)
    scored: dict[str, Forms] = {}
    for model in dict.fromkeys(model for model, _ in judged):
        rows = {form: rows for (whose, form), rows in judged.items() if whose == model}
        scored[model] = Forms({form: part_figures(found, schema) for form, found in rows.items()})
    trivial = {
        name: part_figures(judge(schema, held_out, [_said(text) for text in texts], tolerances))
        for name, texts in baselines(schema, train, held_out, tolerances).items()
    }
    comparisons = tuple(_comparisons(judged))
    outcomes = judge_gates(
        gates,
        scored,
        baselines=trivial,
        constrained=judged.get(("adapter", "constrained")),
        rival=rival,
        latency=latency,
    )
    counted = Counter(example.part for example in held_out)
    return TextReport(
        recipe=recipe,
        base_identity=base,
        adapter_identity=adapter,
        rival=rival,
        held_out={part: counted[part] for part in parts(held_out)},
        scores=scored,
        baselines=trivial,
        findings=tuple(_findings(scored, trivial, comparisons)),
        comparisons=comparisons,
        calibration=_calibration(judged),
        latency=latency,
        gates=outcomes,
        passed=all(outcome.passed for outcome in outcomes),
        seconds=round(seconds, 1),
        peak_memory_bytes=peak_memory_bytes,
        decoding=decoding,
    )


def write(
    folder: Path,
    report: TextReport,
    *,
    schema: AnswerSchema | None,
    held_out: Sequence[Example],
    answers: Answers,
    curve: Curve,
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
    run = Run(folder)
    judged = judge_all(schema, held_out, answers, tolerances)
    files.write_jsonl(run.answers, answer_rows(judged))
    html = page.render(
        report,
        schema=schema,
        judged=judged,
        curve=curve,
        lengths=lengths,
        closed_weight=closed_weight,
        forced_weight=forced_weight,
        constrained_loss=constrained_loss,
    )
    files.write_text(run.page, html)
    files.write_json(run.report, report.to_json())


def _said(text: str) -> Answer:
    return Answer(text, 0, "stop")


def _findings(
    scored: Mapping[str, Forms],
    trivial: Mapping[str, Parts],
    comparisons: Sequence[ModelComparison],
) -> Iterator[str]:
    """What makes the figures worthless: no better than an answer without a model, or the base."""
    own = scored["adapter"].unconstrained.all.field_f1 if "adapter" in scored else None
    if own is None:
        return
    f1 = {name: parts.all.field_f1 or 0.0 for name, parts in trivial.items()}
    if f1 and own <= f1[best := max(f1, key=lambda name: f1[name])]:
        yield (
            f"the adapter is no better than {BASELINES[best]}: field F1 {own:.3f} against "
            f"{f1[best]:.3f}"
        )
    to_base = [one for one in comparisons if one.theirs[0] == "base"]
    named = ("schema_valid", "field_f1")
    if to_base and not any(
        one.figures[name].p < SURE for one in to_base for name in named if name in one.figures
    ):
        yield (
            "the adapter answers no differently from its base beyond chance; if the base is not "
            "good already, raise train.learning_rate or train.epochs"
        )


def _comparisons(judged: Sets) -> Iterator[ModelComparison]:
    """The adapter against base and live version, and its constrained against its free answers."""
    pairs = [(("adapter", form), (model, form)) for model in MODELS[:2] for form in FORMS]
    for ours, theirs in [*pairs, (("adapter", "constrained"), ("adapter", "unconstrained"))]:
        if ours in judged and theirs in judged:
            tallies = ([Tally.of(row) for row in judged[one]] for one in (ours, theirs))
            found = figures.compare(*tallies)
            yield ModelComparison(
                n=found.n, fields=found.fields, figures=found.figures, ours=ours, theirs=theirs
            )


def _calibration(judged: Sets) -> dict[str, dict[str, Reliability]]:
    """Model → form → reliability, if probabilities are known."""
    found: dict[str, dict[str, Reliability]] = {}
    for (model, form), rows in judged.items():
        if (table := calibration.reliability(rows)) is not None:
            found.setdefault(model, {})[form] = table
    return found
