"""The model of a text recipe: closed and frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llm_lora.recipe.root import OF_TASK, AppliedProfile, Contradiction, RecipeRoot
from llm_lora.recipe.text.blocks import (
    CheckRecipe,
    DataRecipe,
    GenerateRecipe,
    LoraRecipe,
    PreferRecipe,
    TrainRecipe,
)
from llm_lora.recipe.yaml import Settings


class Recipe(RecipeRoot):
    """One resolved text recipe, the input of every stage."""

    CALLED: ClassVar[str] = "a text recipe"
    SYNONYMS: ClassVar[Mapping[str, str]] = {
        **RecipeRoot.SYNONYMS,
        "early_stopping_patience": "train.patience",
        "eval_steps": "train.evaluate_every",
        "load_in_4bit": "lora.bits",
        "max_length": "train.max_tokens",
        "max_seq_length": "train.max_tokens",
    }

    task: Annotated[Literal["text"], OF_TASK]
    data: DataRecipe = Field(description="Data for training and evaluation.")
    lora: LoraRecipe = Field(default_factory=LoraRecipe, description="The adapter.")
    train: TrainRecipe = Field(default_factory=TrainRecipe, description="Training.")
    prefer: PreferRecipe = Field(
        default_factory=PreferRecipe,
        description="Training on the adapter's own scored answers, for train.method dpo or grpo.",
    )
    generate: GenerateRecipe = Field(
        default_factory=GenerateRecipe,
        description="Generation defaults, stored with the adapter.",
    )
    check: CheckRecipe = Field(
        default_factory=CheckRecipe,
        description="Gates on the held-out report; an adapter must meet all of them to pass.",
    )
    extra: Settings = Field(
        default_factory=dict, description="Passed to TRL's SFTConfig unchanged and checked there."
    )
    profile: AppliedProfile = None

    def contradictions(self) -> Iterator[Contradiction]:
        data, train = self.data, self.train
        steps = train.evaluate_every
        if isinstance(steps, int) and train.max_steps is not None and steps > train.max_steps:
            yield Contradiction(
                ("train", "evaluate_every"),
                f"train.evaluate_every is {steps} steps, but train.max_steps stops training after "
                f"{train.max_steps}, so there would be no checkpoint to choose",
                "lower train.evaluate_every",
            )
        if isinstance(data.held_out, float) and data.held_out + data.validation > 0.5:
            yield Contradiction(
                ("data", "held_out"),
                f"data.held_out {data.held_out:g} and data.validation {data.validation:g} leave "
                "less than half of the examples for training",
                "lower one of them",
            )
        held_out = data.held_out if isinstance(data.held_out, tuple) else ()
        for path in sorted(set(data.train) & set(held_out)):
            yield Contradiction(
                ("data", "held_out"),
                f"data.held_out and data.train both name {path}",
                "held-out examples must never be trained on: split off a fraction, such as "
                "held_out: 0.1",
            )
        for key, paths in (("train", data.train), ("held_out", held_out)):
            for path in sorted({one for one in paths if paths.count(one) > 1}):
                yield Contradiction(("data", key), f"data.{key} names {path} twice", "keep one")
        if data.answer_schema is None:
            yield from self._without_schema()
        elif train.forced_weight == 0 and train.validation_loss == "free":
            yield Contradiction(
                ("train", "forced_weight"),
                "with train.forced_weight 0 the tokens that the schema forces are not learned, but "
                "the free validation loss counts them, so it would choose an early checkpoint",
                "set train.validation_loss to constrained",
            )
        if train.method == "grpo":
            yield from self._of_grpo()
        if self.profile == "cpu" and train.optimizer == "paged-adamw-8bit":
            yield Contradiction(
                ("train", "optimizer"),
                "train.optimizer paged-adamw-8bit needs a GPU, and the cpu profile has none",
                "use adamw",
            )

    def _without_schema(self) -> Iterator[Contradiction]:
        train = self.train
        for key in ("schema_valid", "fields", "tolerance"):
            if getattr(self.check, key) not in (None, {}):
                yield Contradiction(
                    ("check", key),
                    f"check.{key} needs data.schema to judge answers by",
                    f"set data.schema, or remove check.{key}",
                )
        needs = {
            "closed_weight": (train.closed_weight != 1, "which defines the closed values"),
            "forced_weight": (train.forced_weight != 1, "which defines the forced tokens"),
            "validation_loss": (train.validation_loss != "free", "which defines the constraint"),
            "method": (train.method != "sft", "which answers are judged by"),
        }
        for key, (used, why) in needs.items():
            if used:
                yield Contradiction(
                    ("train", key),
                    f"train.{key} needs data.schema, {why}",
                    f"set data.schema, or remove train.{key}",
                )

    def _of_grpo(self) -> Iterator[Contradiction]:
        step = self.train.batch_size * self.train.accumulate
        if step % self.prefer.samples:
            yield Contradiction(
                ("prefer", "samples"),
                f"prefer.samples {self.prefer.samples} does not divide the {step} answers of a "
                "step (train.batch_size x train.accumulate); grpo compares all answers to a prompt "
                "in one step",
                f"set it to a divisor of {step}",
            )
        if self.prefer.constrained:
            yield Contradiction(
                ("prefer", "constrained"),
                "prefer.constrained is for dpo; grpo needs the probabilities of unconstrained "
                "answers",
                "remove it, or set train.method to dpo",
            )

    def _seldom_intended(self) -> dict[str, bool]:
        lora, train, generate = self.lora, self.train, self.generate
        return {
            f"lora.alpha / lora.rank is {lora.alpha / lora.rank:g}; 0.5 to 4 is usual": (
                not 0.5 <= lora.alpha / lora.rank <= 4
            ),
            f"train.learning_rate {train.learning_rate:g} is high for {self.base}; "
            "2e-4 is a common start": self.base != "tiny" and train.learning_rate > 1e-3,
            "train.evaluate_every 1 means every step; write 1.0 for once per epoch": (
                train.evaluate_every == 1 and isinstance(train.evaluate_every, int)
            ),
            "train.batching is packed, but train.batch_size 1 leaves nothing to pack": (
                train.batching == "packed" and train.batch_size == 1
            ),
            "prefer has no effect while train.method is sft": (
                train.method == "sft" and self.prefer != PreferRecipe()
            ),
            "generate.top_p has no effect while generate.temperature is 0": (
                generate.temperature == 0 and generate.top_p < 1
            ),
            f"generate.max_new_tokens {generate.max_new_tokens} exceeds the longest training "
            f"example, train.max_tokens {train.max_tokens}": (
                generate.max_new_tokens is not None and generate.max_new_tokens > train.max_tokens
            ),
        }
