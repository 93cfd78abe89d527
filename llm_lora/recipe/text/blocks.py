"""The blocks of a text recipe: each setting with meaning, unit, bounds and origin of its
default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_lora.recipe import shared
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
    """Data for training and evaluation."""

    train: Paths = Field(
        description="Training examples. One or more JSONL files, relative to this YAML file.",
    )
    held_out: HeldOut = Field(
        default=0.1,
        description="Examples for evaluation, never trained on: one or more JSONL files, or the "
        "fraction to split off train (by content, so a record never changes sides).",
    )
    validation: Number = Field(
        default=0.06,
        gt=0,
        le=0.5,
        description="Fraction of train that is held back to choose the best checkpoint and for "
        "early stopping.",
    )
    answer_schema: OnePath | None = Field(
        default=None,
        alias="schema",
        description="JSON Schema that every answer must fit, relative to this YAML file. It is "
        "stored with the adapter. Without a schema, answers are free text.",
    )
    system: str | None = Field(
        default=None,
        description="System prompt for examples that have none; it is stored with the adapter.",
    )
    format: Literal["auto", "prompt-response", "alpaca", "messages", "sharegpt"] = Field(
        default="auto", description="Format of the records; auto detects it."
    )
    near_duplicate: Share = Field(
        default=0.9,
        description="Similarity from which two examples count as near-duplicates, which are kept "
        "on one side of the split; 1 finds exact duplicates only.",
    )


class LoraRecipe(Block):
    """Size and placement of the adapter."""

    rank: shared.Rank = Field(
        default=16,
        description="Rank of the update matrices. 16 is a common start; a higher rank helps only "
        "with much more data (LoRA Without Regret, Thinking Machines 2025).",
    )
    alpha: shared.Alpha = Field(
        default=32,
        description="Scaling: the update is multiplied by alpha / rank. 2 x rank is a common "
        "choice.",
    )
    dropout: shared.Dropout = Field(
        default=0.0,
        description="Dropout on the adapter's input. QLoRA (arXiv 2305.14314) used 0.1 up to "
        "13B; 0 is faster, and early stopping guards against overfitting.",
    )
    targets: Targets = Field(
        default="all-linear",
        description="Layers to adapt: all-linear, or a list of module names. QLoRA (arXiv "
        "2305.14314, section 4) needed all linear layers to match full fine-tuning.",
    )
    bits: Literal[4, 16] = Field(
        default=4,
        description="Precision of the frozen base: 4 is NF4 with double quantisation (QLoRA), "
        "16 is unquantised.",
    )


class TrainRecipe(Block):
    """Training."""

    method: Literal["sft", "dpo", "grpo"] = Field(
        default="sft",
        description="sft: supervised fine-tuning on the answers. dpo, grpo: afterwards, in the "
        "same run, training on the adapter's own scored answers, as set in the block prefer.",
    )
    epochs: Number = Field(
        default=3.0, gt=0, le=1000, description="Passes over the training examples."
    )
    max_steps: shared.MaxSteps = None
    learning_rate: Number = Field(
        default=2e-4,
        gt=0,
        le=0.1,
        description="Peak learning rate. 2e-4 for 7B and 13B, 1e-4 for 33B and above (QLoRA, "
        "arXiv 2305.14314, table 9); tiny bases need 10 times as much.",
    )
    warmup: shared.Warmup = 0.05
    schedule: shared.Schedule = "cosine"
    closed_weight: Number = Field(
        default=1.0,
        ge=1,
        le=100,
        description="Loss weight of tokens in closed values (enum choices, true or false), "
        "relative to other tokens. Such short spans are easily outweighed by copied text; 3 to 6 "
        "suits small bases.",
    )
    forced_weight: Number = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Loss weight of tokens that the schema forces: keys, punctuation, the rest of "
        "a choice once begun. Constrained decoding writes them anyway. Below 1, training "
        "concentrates on the values; at 0, unconstrained answers are malformed.",
    )
    validation_loss: Literal["free", "constrained"] = Field(
        default="free",
        description="free: the loss over all tokens. constrained: the loss over the tokens that "
        "the schema allows, as in constrained decoding; the best checkpoint is then the best one "
        "for constrained answers.",
    )
    weight_decay: shared.WeightDecay = Field(
        default=0.0, description="Weight decay of the adapter."
    )
    max_grad_norm: shared.MaxGradNorm = 1.0
    batch_size: Whole = Field(
        default=8, ge=1, le=4096, description="Examples per forward and backward pass."
    )
    accumulate: shared.Accumulate = Field(
        default=1,
        description="Gradient accumulation: batches per optimizer step. A step uses batch_size x "
        "accumulate examples; QLoRA (arXiv 2305.14314) used 16 for 7B and 13B.",
    )
    max_tokens: Whole = Field(
        default=2048,
        ge=16,
        le=1_048_576,
        description="Maximum length of an example in tokens (system, prompt and answer); longer "
        "ones are set aside, never truncated.",
    )
    batching: Literal["plain", "grouped", "packed"] = Field(
        default="grouped",
        description="plain: random batches with padding. grouped: batches of examples of similar "
        "length, with little padding. packed: the examples of a batch in one row, unpadded.",
    )
    checkpointing: shared.Checkpointing = False
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = Field(
        default="adamw",
        description="AdamW; AdamW with 8-bit state; AdamW with 8-bit state that is paged to host "
        "memory when the GPU is full (QLoRA, arXiv 2305.14314, section 3).",
    )
    evaluate_every: Every = Field(
        default=0.25,
        description="How often to measure the validation loss and save a checkpoint: a number with "
        "a decimal point is a fraction of an epoch (0.25: four times per epoch, 1.0: once), a "
        "whole number counts steps.",
    )
    patience: Whole = Field(
        default=3,
        ge=1,
        description="Early stopping: stop after this many evaluations without improvement.",
    )
    seed: shared.Seed = Field(
        default=17,
        description="Seed for data order, adapter initialisation and dropout.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="Compute precision; auto uses bf16 if the machine supports it."
    )


class PreferRecipe(Block):
    """Training on the adapter's own scored answers, for train.method dpo or grpo.

    The adapter from supervised training answers training prompts. The reward of an answer, 0 to 2,
    is 1 if it fits the schema, plus the F1 of its values against the training answer.
    """

    prompts: Whole = Field(
        default=256,
        ge=1,
        le=1_000_000,
        description="Number of training prompts to answer, drawn with train.seed; all of them if "
        "there are fewer.",
    )
    samples: Whole = Field(default=4, ge=2, le=64, description="Answers sampled per prompt.")
    temperature: Number = Field(
        default=1.0, gt=0, le=2, description="Sampling temperature; below 1, answers differ less."
    )
    constrained: Switch = Field(
        default=False,
        description="dpo: sample with constrained decoding, as served. Without it, answers that "
        "break the schema are among the rejected ones.",
    )
    chosen: Literal["target", "best"] = Field(
        default="target",
        description="dpo: the preferred answer of a pair, whose other is the worst sampled answer: "
        "target is the training answer, best the best sampled one.",
    )
    margin: Number = Field(
        default=0.1,
        ge=0,
        le=2,
        description="dpo: minimum reward difference of a pair that is used for training.",
    )
    epochs: Number = Field(default=1.0, gt=0, le=1000, description="Passes over pairs or prompts.")
    learning_rate: Number = Field(
        default=2e-5,
        gt=0,
        le=0.1,
        description="Peak learning rate; at most a tenth of train.learning_rate is advisable.",
    )
    beta: Number = Field(
        default=0.1,
        ge=0,
        le=10,
        description="How closely to stay to the supervised adapter: beta of DPO (arXiv "
        "2305.18290), weight of the KL divergence in GRPO (arXiv 2402.03300).",
    )
    save_every: Whole = Field(default=10, ge=1, description="Optimizer steps between checkpoints.")


class GenerateRecipe(Block):
    """Generation defaults, stored with the adapter."""

    max_new_tokens: Whole | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="Maximum length of an answer in tokens; by default, 25% more than the longest "
        "training answer, which bounds every answer.",
    )
    temperature: Number = Field(
        default=0.0,
        ge=0,
        le=2,
        description="Sampling temperature; 0 always takes the likeliest token, which suits "
        "extraction.",
    )
    top_p: Number = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Nucleus sampling: sample from the likeliest tokens whose probabilities sum to "
        "this.",
    )
    batch_size: Whole = Field(
        default=32, ge=1, le=4096, description="Prompts per batch in evaluation."
    )


class CheckRecipe(Block):
    """Gates on the held-out report; an adapter must meet all of them to pass.

    They apply to the adapter's unconstrained answers.
    """

    schema_valid: Share | None = Field(
        default=None,
        description="Minimum fraction of unconstrained held-out answers that fit the schema.",
    )
    field_f1: Share | None = Field(
        default=None,
        description="Minimum F1 of the values of all fields over all held-out examples. Values "
        "that both reference and answer leave out do not count.",
    )
    field_f1_seen: Share | None = Field(
        default=None,
        description="Minimum field_f1 on held-out examples of patterns seen in train.",
    )
    field_f1_unseen: Share | None = Field(
        default=None,
        description="Minimum field_f1 on held-out examples of patterns not in train.",
    )
    exact_match: Share | None = Field(
        default=None, description="Minimum fraction of held-out answers equal to the reference."
    )
    better_than_base: Switch = Field(
        default=True, description="The adapter must score above its base, unconstrained."
    )
    better_than_baselines: Switch = Field(
        default=True,
        description="The adapter must score above answers that need no model: the best constant "
        "answer, the most frequent closed values, and the answer to the most similar training "
        "prompt.",
    )
    fields: dict[NotEmpty, Share] = Field(
        default_factory=dict,
        description="Minimum F1 of single fields, by path: severity, medications[].dose.",
    )
    max_drop: Share | None = Field(
        default=None,
        description="Maximum drop of schema_valid or field_f1 below the live version of this name "
        "in the store, which answers the same held-out prompts; 0 allows no drop.",
    )
    max_latency_ms: Annotated[Number, Field(gt=0)] | None = Field(
        default=None,
        description="Maximum latency of an answer in milliseconds on the machine that evaluates: "
        "95th percentile, constrained, one prompt at a time. Latency on a server differs.",
    )
    tolerance: dict[NotEmpty, Annotated[Number, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Absolute tolerance of numeric fields, by path and in the field's own unit: "
        "temperature_c: 0.1. Numbers in other fields must be equal.",
    )

    def gates(self) -> dict[str, float | bool]:
        """The gates that are set, by name, with their thresholds."""
        found = self.model_dump(exclude_none=True, exclude={"fields", "tolerance"})
        return found | {f"fields.{path}": least for path, least in self.fields.items()}
