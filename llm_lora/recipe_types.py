"""The settings of a recipe: closed, frozen, each with its meaning, unit and the source of its
default. What a YAML file may say is exactly what stands here; `recipe.load` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
)

from llm_lora.files import sha256

Profile = Literal["cpu", "gpu-8gb", "gpu-12gb", "gpu-16gb", "gpu-24gb", "gpu-48gb", "gpu-80gb"]
PROFILES: tuple[str, ...] = get_args(Profile)
"""Hardware classes, smallest first; a number is the nominal memory of the card in GB."""


def _not_empty(path: Path) -> Path:
    if path == Path():
        raise ValueError("empty path")
    return path


def _one_as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


# The branch of a union is chosen by what was written, so a mistake is told for one branch only.
_by_point = Discriminator(lambda value: "share" if isinstance(value, float) else "other")
_by_text = Discriminator(lambda value: "text" if isinstance(value, str) else "other")

Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
NotEmpty = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
OnePath = Annotated[Path, AfterValidator(_not_empty)]
Paths = Annotated[
    tuple[OnePath, ...],
    BeforeValidator(_one_as_list, json_schema_input_type=Path | tuple[Path, ...]),
    Field(min_length=1),
]
HeldOut = Annotated[
    Annotated[Number, Field(gt=0, le=0.5), Tag("share")] | Annotated[Paths, Tag("other")],
    _by_point,
]
Every = Annotated[
    Annotated[Number, Field(gt=0, le=1), Tag("share")]
    | Annotated[Whole, Field(ge=1), Tag("other")],
    _by_point,
]
Targets = Annotated[
    Annotated[Literal["all-linear"], Tag("text")]
    | Annotated[tuple[NotEmpty, ...], Field(min_length=1), Tag("other")],
    _by_text,
]


class _Block(BaseModel):
    # Building the validators takes longer than importing all this; most commands need none.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class DataRecipe(_Block):
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


class LoraRecipe(_Block):
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


class TrainRecipe(_Block):
    """How to learn."""

    method: Literal["sft"] = Field(
        default="sft", description="Supervised fine-tuning on the answers."
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


class GenerateRecipe(_Block):
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


class CheckRecipe(_Block):
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


class Recipe(_Block):
    """One recipe, resolved: the value that every stage takes."""

    task: Literal["text"] = Field(
        description="What is trained. text: text answers to text prompts."
    )
    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        json_schema_extra={"patternErrorMessage": "made of lower-case letters, digits, - and _"},
        description="Names runs and adapters; the file's own name where not given.",
    )
    base: NotEmpty = Field(
        description="The model to start from. tiny (embedded), a folder (starting with ./, ../, "
        "~/ or /, relative to this YAML file), or a hub id such as Qwen/Qwen3-4B-Instruct-2507.",
    )
    revision: str | None = Field(
        default=None,
        description="Commit, tag or branch of the base on the hub; a commit never changes.",
    )
    data: DataRecipe = Field(description="What to learn from, and what to judge by.")
    lora: LoraRecipe = Field(default_factory=LoraRecipe, description="The adapter.")
    train: TrainRecipe = Field(default_factory=TrainRecipe, description="How to learn.")
    generate: GenerateRecipe = Field(
        default_factory=GenerateRecipe,
        description="How to answer; these defaults travel with the adapter.",
    )
    check: CheckRecipe = Field(
        default_factory=CheckRecipe,
        description="Gates on the held-out report; an adapter that misses one has not passed.",
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Handed to TRL's SFTConfig as it is, and checked there."
    )
    profile: Profile | None = Field(
        default=None, description="The profile that was applied; written by llm-lora, not by hand."
    )

    def settings(self, folder: Path | None = None) -> dict[str, Any]:
        """The recipe as plain data under the keys of the YAML file.

        Args:
            folder: paths below the working directory are written relative to it; without one,
                all paths are written whole.
        """
        return map_paths(
            self.model_dump(mode="json", by_alias=True), lambda path: _written(path, folder)
        )

    def to_yaml(self, folder: Path | None = None) -> str:
        """YAML that `recipe.load` reads back to an equal recipe.

        Args:
            folder: where the text will be kept. With it, data below the working directory is
                named relative to the folder, so that the whole project can move and no home
                directory is told to others; without it paths are whole, so the text can be
                kept anywhere.
        """
        # Imported on use, as in yaml_source.
        from io import StringIO

        from ruamel.yaml import YAML

        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.width = 2**20  # Folded lines would lose one of two spaces.
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        text = StringIO()
        yaml.dump(self.settings(folder), text)
        return text.getvalue()

    def digest(self) -> str:
        """Identity of the recipe: equal settings on any machine give equal digests.

        Paths count by file name only: where the data lies says nothing about it, and what it
        holds is the dataset's fingerprint.
        """
        data = self.model_dump(mode="json", by_alias=True)
        return sha256(json.dumps(map_paths(data, lambda path: Path(path).name), sort_keys=True))

    def warnings(self) -> tuple[str, ...]:
        """What is allowed and seldom meant, one sentence each."""
        lora, train, generate = self.lora, self.train, self.generate
        checks = {
            f"lora.alpha / lora.rank is {lora.alpha / lora.rank:g}; from 0.5 to 4 is usual": (
                not 0.5 <= lora.alpha / lora.rank <= 4
            ),
            f"train.learning_rate {train.learning_rate:g} is high for {self.base}; "
            "2e-4 is the usual start": self.base != "tiny" and train.learning_rate > 1e-3,
            "train.evaluate_every 1 measures after every step; 1.0 is once an epoch": (
                train.evaluate_every == 1 and isinstance(train.evaluate_every, int)
            ),
            "train.batching is packed, but train.batch_size 1 leaves nothing to pack": (
                train.batching == "packed" and train.batch_size == 1
            ),
            "generate.top_p has no effect while generate.temperature is 0": (
                generate.temperature == 0 and generate.top_p < 1
            ),
            f"generate.max_new_tokens {generate.max_new_tokens} is more than the longest example "
            f"trained on, train.max_tokens {train.max_tokens}": (
                generate.max_new_tokens is not None and generate.max_new_tokens > train.max_tokens
            ),
            f"base {self.base} has no revision; what the hub holds under that name may change": (
                self.base != "tiny" and not is_path(self.base) and self.revision is None
            ),
        }
        return tuple(sentence for sentence, holds in checks.items() if holds)


def is_path(base: str) -> bool:
    """Whether `base` is written as a folder: hub ids look like relative paths."""
    return base.startswith(("./", "../", "~/", "/")) or base in (".", "..")


def map_paths(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy of a recipe's plain settings, whole or partial, with every path changed."""
    copy = dict(settings)
    if isinstance(base := copy.get("base"), str) and is_path(base):
        copy["base"] = change(base)
    if isinstance(data := copy.get("data"), Mapping):
        block = dict(data)
        for key in block.keys() & {"train", "held_out", "schema"}:
            value = block[key]
            if isinstance(value, str):
                block[key] = change(value)
            elif isinstance(value, list):
                block[key] = [change(one) if isinstance(one, str) else one for one in value]
        copy["data"] = block
    return copy


def _written(path: str, folder: Path | None) -> str:
    if folder is None or Path(path).is_absolute():
        return str(Path(path).absolute())
    relative = os.path.relpath(path, folder)
    return relative if relative.startswith("..") else f"./{relative}"
