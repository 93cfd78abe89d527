"""The blocks of a recipe: every setting with its meaning, unit, bounds and the source of its
default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_lora.recipe.scalars import (
    Block,
    Every,
    HeldOut,
    NotEmpty,
    Number,
    OnePath,
    Paths,
    Share,
    Switch,
    Targets,
    Whole,
)


class DataRecipe(Block):
    """What to learn from, and what to judge by."""

    train: Paths = Field(
        description="Examples to learn from. A JSONL file or several, relative to this YAML file.",
    )
    held_out: HeldOut = Field(
        default=0.1,
        description="Examples to judge by, never trained on: a JSONL file or several, or the "
        "share to cut from train (by content, so a record never changes side).",
    )
    validation: Number = Field(
        default=0.06,
        gt=0,
        le=0.5,
        description="Share of train that is watched for early stopping and for the best "
        "checkpoint instead of being learned from.",
    )
    answer_schema: OnePath | None = Field(
        default=None,
        alias="schema",
        description="JSON schema that every answer must fit, relative to this YAML file. It "
        "travels with the adapter. Without one, answers are free text.",
    )
    system: str | None = Field(
        default=None,
        description="System prompt put before every example that has none; it travels with the "
        "adapter.",
    )
    format: Literal["auto", "prompt-response", "alpaca", "messages", "sharegpt"] = Field(
        default="auto", description="Shape of a line of the JSONL files; auto finds out."
    )
    near_duplicate: Share = Field(
        default=0.9,
        description="Similarity from which two examples count as near-duplicates, which never "
        "straddle train and held-out; 1 keeps all but exact duplicates.",
    )


class LoraRecipe(Block):
    """The adapter: its size, and where it sits."""

    rank: Whole = Field(
        default=16,
        ge=1,
        le=512,
        description="Rank of the update matrices. 16 is the usual start; more rank helps only "
        "with much more data (LoRA Without Regret, Thinking Machines 2025).",
    )
    alpha: Whole = Field(
        default=32,
        ge=1,
        le=2048,
        description="Scale of the update: alpha / rank multiplies it. 2 x rank is the common "
        "choice.",
    )
    dropout: Number = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout on the adapter's input. QLoRA (arXiv 2305.14314) used 0.1 up to "
        "13B; 0 is faster, and early stopping guards against overfitting.",
    )
    targets: Targets = Field(
        default="all-linear",
        description="Layers to adapt: all-linear, or a list of module names. QLoRA (arXiv "
        "2305.14314, section 4) needs all linear layers to match full fine-tuning.",
    )
    bits: Literal[4, 16] = Field(
        default=4,
        description="How the frozen base is held: 4 is NF4 with double quantisation (QLoRA), "
        "16 is not quantised.",
    )


class TrainRecipe(Block):
    """How to learn."""

    method: Literal["sft", "dpo", "grpo"] = Field(
        default="sft",
        description="sft: supervised fine-tuning on the answers. dpo, grpo: after that, in the "
        "same run, learning from judged answers of its own, as the block prefer says.",
    )
    epochs: Number = Field(
        default=3.0, gt=0, le=1000, description="Passes over the training examples."
    )
    max_steps: Whole | None = Field(
        default=None,
        ge=1,
        description="End after this many optimizer steps even if epochs are left.",
    )
    learning_rate: Number = Field(
        default=2e-4,
        gt=0,
        le=0.1,
        description="Peak learning rate. 2e-4 for 7B and 13B, 1e-4 for 33B and above (QLoRA, "
        "arXiv 2305.14314, table 9); tiny bases take 10 times as much.",
    )
    warmup: Number = Field(
        default=0.05, ge=0, lt=1, description="Share of all steps in which the learning rate rises."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    closed_weight: Number = Field(
        default=1.0,
        ge=1,
        le=100,
        description="How much a token of a closed value (a choice, true or false) counts in the "
        "loss against any other. A short answer part like this is soon drowned by what is copied; "
        "small bases take 3 to 6.",
    )
    forced_weight: Number = Field(
        default=1.0,
        ge=0,
        le=1,
        description="How much a token counts that the schema forces: keys, punctuation, the rest "
        "of a choice once begun. Under the constraint it is written anyway; below 1 more is "
        "learned of the values, and at 0 answers without the constraint fall apart.",
    )
    validation_loss: Literal["free", "constrained"] = Field(
        default="free",
        description="free: over all tokens. constrained: over what the schema lets through, as "
        "the server decodes; the best checkpoint is then the best one under the constraint.",
    )
    weight_decay: Number = Field(
        default=0.0, ge=0, le=1, description="Decay of the adapter's weights."
    )
    max_grad_norm: Number = Field(
        default=1.0, gt=0, description="Longest gradient; longer ones are scaled down to it."
    )
    batch_size: Whole = Field(
        default=8, ge=1, le=4096, description="Examples that go through the model at once."
    )
    accumulate: Whole = Field(
        default=1,
        ge=1,
        le=4096,
        description="Batches per optimizer step. batch_size x accumulate examples make a step; "
        "16 is what QLoRA (arXiv 2305.14314) used for 7B and 13B.",
    )
    max_tokens: Whole = Field(
        default=2048,
        ge=16,
        le=1_048_576,
        description="Longest example in tokens (system, prompt and answer); longer ones are "
        "set aside, never cut.",
    )
    batching: Literal["plain", "grouped", "packed"] = Field(
        default="grouped",
        description="plain: random batches, padded. grouped: examples of like length together, "
        "little padding. packed: the examples of a batch in one row without padding.",
    )
    checkpointing: Switch = Field(
        default=False,
        description="Gradient checkpointing: much less memory for about a third more time.",
    )
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = Field(
        default="adamw",
        description="AdamW; with 8-bit state; with 8-bit state that moves to host memory when "
        "the card is full (QLoRA, arXiv 2305.14314, section 3).",
    )
    evaluate_every: Every = Field(
        default=0.25,
        description="When to measure the loss on validation and save a checkpoint: with a point "
        "a share of an epoch (0.25 is four times an epoch, 1.0 once), without one a number of "
        "steps.",
    )
    patience: Whole = Field(
        default=3,
        ge=1,
        description="Stop after this many evaluations in a row without a better loss.",
    )
    seed: Whole = Field(
        default=17,
        ge=0,
        le=2**32 - 1,
        description="Seed of everything random: order, adapter, dropout.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="What is computed in; auto takes bf16 where the machine has it."
    )


class PreferRecipe(Block):
    """How to learn from judged answers of its own, where train.method is dpo or grpo.

    The adapter of the supervised training answers training prompts; an answer's reward is 1 for
    fitting the schema plus its mean field score against the training answer, 0 to 2.
    """

    prompts: Whole = Field(
        default=256,
        ge=1,
        le=1_000_000,
        description="How many training prompts to answer, drawn by train.seed; all where there "
        "are fewer.",
    )
    samples: Whole = Field(default=4, ge=2, le=64, description="Answers drawn for each prompt.")
    temperature: Number = Field(
        default=1.0, gt=0, le=2, description="At which they are drawn; below 1 they differ less."
    )
    constrained: Switch = Field(
        default=False,
        description="dpo: draw under the schema's constraint, as served. Without it, answers that "
        "break the schema are among those that lose.",
    )
    chosen: Literal["target", "best"] = Field(
        default="target",
        description="dpo: what is preferred to the worst answer drawn: the training answer, or "
        "the best one drawn.",
    )
    margin: Number = Field(
        default=0.1,
        ge=0,
        le=2,
        description="dpo: least difference of the two rewards for a pair to be learned from.",
    )
    epochs: Number = Field(default=1.0, gt=0, le=1000, description="Passes over pairs or prompts.")
    learning_rate: Number = Field(
        default=2e-5,
        gt=0,
        le=0.1,
        description="Peak learning rate; a tenth of train.learning_rate or less.",
    )
    beta: Number = Field(
        default=0.1,
        ge=0,
        le=10,
        description="How closely to stay with the supervised adapter: beta of DPO (arXiv "
        "2305.18290), weight of the KL divergence in GRPO (arXiv 2402.03300).",
    )
    save_every: Whole = Field(
        default=10, ge=1, description="Save a checkpoint after so many optimizer steps."
    )


class GenerateRecipe(Block):
    """How to answer; these defaults travel with the adapter."""

    max_new_tokens: Whole | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="Longest answer in tokens; without it a quarter more than the longest answer "
        "in train takes, so that nothing runs on for ever.",
    )
    temperature: Number = Field(
        default=0.0,
        ge=0,
        le=2,
        description="0 takes the likeliest token; extraction wants no chance.",
    )
    top_p: Number = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Sample from the likeliest tokens that sum up to this share.",
    )
    batch_size: Whole = Field(
        default=32, ge=1, le=4096, description="Prompts answered at once while evaluating."
    )


class CheckRecipe(Block):
    """Gates on the held-out report; an adapter that misses one has not passed.

    They are read from the adapter's unconstrained answers.
    """

    schema_valid: Share | None = Field(
        default=None,
        description="Least share of held-out answers that fit the schema unconstrained.",
    )
    field_f1: Share | None = Field(
        default=None, description="Least mean field score, all held-out."
    )
    field_f1_seen: Share | None = Field(
        default=None,
        description="Least mean field score on held-out examples of patterns in train.",
    )
    field_f1_unseen: Share | None = Field(
        default=None,
        description="Least mean field score on held-out examples of patterns not in train.",
    )
    exact_match: Share | None = Field(
        default=None, description="Least share of held-out answers equal to the reference."
    )
    better_than_base: Switch = Field(
        default=True, description="The adapter must score above its base, unconstrained."
    )
    fields: dict[NotEmpty, Share] = Field(
        default_factory=dict,
        description="Least mean score of single fields, by path: severity, medications[].dose.",
    )
    max_drop: Share | None = Field(
        default=None,
        description="Most that schema_valid or field_f1 may fall below those of the live version "
        "of this name in the store, which is asked the same held-out prompts; 0 lets nothing fall.",
    )
    max_latency_ms: Annotated[Number, Field(gt=0)] | None = Field(
        default=None,
        description="Longest time of an answer in milliseconds on the machine that evaluates: "
        "95th percentile, constrained, one prompt at a time. A server has its own times.",
    )
    tolerance: dict[NotEmpty, Annotated[Number, Field(ge=0)]] = Field(
        default_factory=dict,
        description="How far the numbers of a field may be off, by path and in the field's own "
        "unit, and still count as right: temperature_c: 0.1. Others must be equal.",
    )

    def gates(self) -> dict[str, float | bool]:
        """The gates that are set, by name, with what each demands."""
        found = self.model_dump(exclude_none=True, exclude={"fields", "tolerance"})
        return found | {f"fields.{path}": least for path, least in self.fields.items()}
