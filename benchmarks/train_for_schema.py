"""Benchmark of training for the schema: field scores of several methods, at equal steps.

    python benchmarks/train_for_schema.py run                      everything missing, one by one
    python benchmarks/train_for_schema.py run --variant plain --seed 1
    python benchmarks/train_for_schema.py table                    the results so far, as Markdown

Every run trains the embedded base on recipes/medical_qa.yaml under the profile cpu, and differs
from the others only in its variant and seed. Equal steps: if a preference stage follows, the
supervised training before it is shorter by its steps. Finished runs are kept in --results, so that
the benchmark can be stopped and continued at any time. About four minutes a run on two cores,
twice as long for grpo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from llm_lora import engines, files, versions
from llm_lora import run as runs
from llm_lora.progress import AnyDataset, Progress
from llm_lora.recipe import loading as recipe
from llm_lora.recipe.text import Recipe
from llm_lora.report.text.answers import FORMS, judge_all, part_figures
from llm_lora.run import Run
from llm_lora.tasks.text import learning
from llm_lora.tasks.text import task as text_task
from llm_lora.tasks.text.prepared import max_new_tokens, prepare

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "medical_qa.yaml"
RESULTS = ROOT / "benchmarks" / "train_for_schema.json"
SEEDS = (1, 2, 3)
STEPS = 268
"""Optimizer steps of the recipe: 855 examples, 8 a step, two epochs and a half."""
PREFERENCE_STEPS = 32
EVALUATE_EVERY = 0.5
"""Epochs; small enough to give the validation loss several checkpoints to choose from."""

_PREFERENCE = {
    "train.max_steps": STEPS - PREFERENCE_STEPS,
    "prefer.learning_rate": "5.0e-4",
    "prefer.temperature": 0.8,
}
VARIANTS: dict[str, dict[str, object]] = {
    "plain": {"train.closed_weight": 1},
    "closed 5": {},
    "forced 0.3": {"train.closed_weight": 1, "train.forced_weight": 0.3},
    "forced 0": {
        "train.closed_weight": 1,
        "train.forced_weight": 0.0,
        # The free loss would count what is not taught, and keep an early checkpoint.
        "train.validation_loss": "constrained",
    },
    "dpo": {
        **_PREFERENCE,
        "train.method": "dpo",
        # Nearly every prompt gives a pair; what is missing of the steps is told in the results.
        "prefer.prompts": PREFERENCE_STEPS * 8,
    },
    "grpo": {
        **_PREFERENCE,
        "train.method": "grpo",
        "prefer.samples": 4,
        "prefer.prompts": PREFERENCE_STEPS * 2,
    },
}
_COLUMNS = (
    ("F1 seen", "unconstrained", "seen", "field_f1"),
    ("F1 unseen", "unconstrained", "unseen", "field_f1"),
    ("valid", "unconstrained", "all", "schema_valid"),
    ("F1 seen, constrained", "constrained", "seen", "field_f1"),
    ("F1 unseen, constrained", "constrained", "unseen", "field_f1"),
    ("valid, constrained", "constrained", "all", "schema_valid"),
)


def main() -> None:
    """Read the arguments; run, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="only this one")
    parser.add_argument("--seed", type=int, action="append", help="only this one")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="K=V")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = _read(arguments.results)
    if arguments.action == "table":
        print(table(results))
        return
    for seed in arguments.seed or SEEDS:
        for variant in arguments.variant or VARIANTS:
            if any((row["variant"], row["seed"]) == (variant, seed) for row in results):
                continue
            print(f"{variant}, seed {seed} …", flush=True)
            results.append(measure(variant, seed, arguments.overrides))
            files.write_json(arguments.results, results)
    print(table(results))


def measure(variant: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train once and answer the held-out prompts, in a temporary folder."""
    common = {"train.seed": seed, "train.evaluate_every": EVALUATE_EVERY}
    settings = {**common, **VARIANTS[variant]}
    changes = [*(f"{key}={value}" for key, value in settings.items()), *overrides]
    loaded = recipe.load(RECIPE, profile="cpu", overrides=changes)
    assert isinstance(loaded, Recipe)
    prepared = prepare(loaded)
    assert prepared.schema is not None
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        here = runs.create(Path(folder), prepared.recipe.name, prepared.recipe.to_yaml)
        fit = learning.learn(prepared, here, Quiet(), resume=False)
        text_task.seal(prepared, here)
        engine = engines.load("text")
        answerer = engine.Answerer(
            prepared.base,
            prepared.chat,
            adapter=here.adapter,
            bits=prepared.recipe.lora.bits,
            precision=prepared.recipe.train.precision,
        )
        generate = prepared.recipe.generate
        sampling = engine.Sampling(max_new_tokens(prepared), batch_size=generate.batch_size)
        held_out = prepared.dataset.held_out
        prompts = [example.prompt for example in held_out]
        answers = {
            form: answerer.answer(prompts, sampling, schema=schema)
            for form, schema in zip(FORMS, (None, prepared.schema), strict=True)
        }
    judged = judge_all(prepared.schema, held_out, {"adapter": answers})
    figures = {form: part_figures(rows, prepared.schema) for (_, form), rows in judged.items()}
    return {
        "variant": variant,
        "seed": seed,
        "steps": fit.steps,
        "best_step": fit.best_step,
        "seconds": round(time.monotonic() - began),
        "overrides": overrides,
        "held_out": len(held_out),
        "scores": {
            name: figures[form].parts[part].metric(figure) for name, form, part, figure in _COLUMNS
        },
        "recipe": recipe.load(RECIPE, profile="cpu").digest(),
        "versions": versions.installed(),
    }


class Quiet:
    """A watcher that prints only the stages."""

    def stage(self, title: str) -> None:
        """Print it."""
        print(f"  {title}", flush=True)

    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def checked(self, task: str, dataset: AnyDataset) -> None:
        """Nothing."""

    def began(self, here: Run) -> None:
        """Nothing."""


def table(results: list[dict[str, Any]]) -> str:
    """A row for each variant: the mean over its seeds, and their spread."""
    names = [column[0] for column in _COLUMNS]
    lines = ["| variant | seeds | steps | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for variant in VARIANTS:
        rows = [row for row in results if row["variant"] == variant]
        if not rows:
            continue
        seeds = ", ".join(str(row["seed"]) for row in rows)
        steps = "/".join(dict.fromkeys(str(row["steps"]) for row in rows))
        figures = [_spread([row["scores"][name] for row in rows]) for name in names]
        lines.append(f"| {variant} | {seeds} | {steps} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(files.read_text(path)) if path.is_file() else []
    return found


if __name__ == "__main__":
    main()
