"""The model of an image recipe: closed and frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llm_lora import lora_prompt
from llm_lora.errors import UserError
from llm_lora.recipe.image.blocks import (
    KEEP_TAGS,
    ImageCheck,
    ImageData,
    ImageGenerate,
    ImageJudge,
    ImageLora,
    ImageTrain,
)
from llm_lora.recipe.root import OF_TASK, AppliedProfile, Contradiction, RecipeRoot
from llm_lora.recipe.scalars import NotEmpty

_LEAST_PRODIGY = 0.1
_MOST_PASSES = 20
"""Passes over a style's pictures above which overfitting is common."""


class ImageRecipe(RecipeRoot):
    """One resolved image recipe, the input of every stage."""

    CALLED: ClassVar[str] = "an image recipe"
    SYNONYMS: ClassVar[Mapping[str, str]] = {
        **RecipeRoot.SYNONYMS,
        "bucket_reso_steps": "data.bucket_step",
        "cache_latents": "train.cache",
        "caption_dropout_rate": "data.caption_dropout",
        "cfg_scale": "generate.guidance",
        "checkpointing_steps": "train.save_every",
        "class_data_dir": "data.regularisation",
        "class_tokens": "data.trigger",
        "ema_decay": "train.ema",
        "enable_bucket": "data.buckets",
        "flip_aug": "data.flip",
        "guidance_scale": "generate.guidance",
        "instance_data_dir": "data.train",
        "keep_tokens": "data.keep_tags",
        "lr_scheduler": "train.schedule",
        "max_train_epochs": "train.epochs",
        "max_train_steps": "train.max_steps",
        "metadata_path": "data.captions",
        "min_snr_gamma": "train.min_snr",
        "mixed_precision": "train.precision",
        "network_alpha": "lora.alpha",
        "network_dim": "lora.rank",
        "network_weights": "train.start_from",
        "num_inference_steps": "generate.steps",
        "optimizer_type": "train.optimizer",
        "pretrained_model_name_or_path": "base",
        "prior_loss_weight": "train.prior_weight",
        "reg_data_dir": "data.regularisation",
        "sampler": "generate.scheduler",
        "save_every_n_steps": "train.save_every",
        "shuffle_caption": "data.shuffle_tags",
        "snr_gamma": "train.min_snr",
        "text_encoder_lr": "train.text_encoder_learning_rate",
        "train_batch_size": "train.batch_size",
        "train_data_dir": "data.train",
        "train_text_encoder": "lora.text_encoder",
        "trigger_word": "data.trigger",
        "unet_lr": "train.learning_rate",
        "v_parameterization": "train.prediction",
        "validation_prompt": "train.samples",
    }

    task: Annotated[Literal["image"], OF_TASK]
    base: NotEmpty = Field(
        description="The base model. tiny (embedded), a folder in diffusers' layout or a "
        "single .safetensors file in the original layout (starting with ./, ../, ~/ or /, relative "
        "to this YAML file), or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5.",
    )
    data: ImageData = Field(description="Pictures for training and evaluation.")
    lora: ImageLora = Field(default_factory=ImageLora, description="The adapter.")
    train: ImageTrain = Field(default_factory=ImageTrain, description="Training.")
    generate: ImageGenerate = Field(
        default_factory=ImageGenerate,
        description="Generation defaults, stored with the adapter.",
    )
    judge: ImageJudge = Field(
        default_factory=ImageJudge, description="Models and prompts for the evaluation."
    )
    check: ImageCheck = Field(
        default_factory=ImageCheck,
        description="Gates on the report; an adapter must meet all of them to pass.",
    )
    profile: AppliedProfile = None

    def contradictions(self) -> Iterator[Contradiction]:
        data, train, generate = self.data, self.train, self.generate
        if data.held_out == data.train:
            yield Contradiction(
                ("data", "held_out"),
                f"data.held_out and data.train both name {data.train}",
                "held-out pictures must never be trained on: split off a fraction, such as "
                "held_out: 0.1",
            )
        if data.regularisation in (data.train, data.held_out):
            yield Contradiction(
                ("data", "regularisation"),
                f"data.regularisation names {data.regularisation}, which is used for training or "
                "evaluation",
                "name a folder of other pictures of the class, or remove it",
            )
        if data.resolution is not None and (data.min_size or 0) > data.resolution:
            yield Contradiction(
                ("data", "min_size"),
                f"data.min_size {data.min_size} is larger than data.resolution {data.resolution}",
                "lower data.min_size",
            )
        if train.text_encoder_learning_rate is not None and not self.lora.text_encoder:
            yield Contradiction(
                ("train", "text_encoder_learning_rate"),
                "train.text_encoder_learning_rate is set, but no text encoder is trained",
                "set lora.text_encoder: true, or remove it",
            )
        elif train.text_encoder_learning_rate is not None and train.optimizer == "prodigy":
            yield Contradiction(
                ("train", "text_encoder_learning_rate"),
                "train.text_encoder_learning_rate is set, but train.optimizer prodigy uses one "
                "learning rate for all parts",
                "remove it, or set train.optimizer: adamw",
            )
        if train.optimizer == "prodigy" and train.learning_rate < _LEAST_PRODIGY:
            yield Contradiction(
                ("train", "optimizer"),
                "train.optimizer prodigy multiplies the learning rate that it finds by "
                f"train.learning_rate, and {train.learning_rate:g} makes it far too small",
                "set train.learning_rate: 1",
            )
        for key, other in (("width", "height"), ("height", "width")):
            if getattr(generate, key) is not None and getattr(generate, other) is None:
                yield Contradiction(
                    ("generate", key),
                    f"generate.{key} is set without generate.{other}",
                    "set both, or neither to use the training resolution",
                )
        if any(one >= other for one, other in pairwise(self.judge.strengths)):
            yield Contradiction(
                ("judge", "strengths"),
                "judge.strengths are not in ascending order",
                "list them from lowest to highest, each once",
            )
        for what, fix in self._misnamed():
            yield Contradiction(("judge", "prompts"), f"judge.prompts: {what}", fix)
        if any(lora_prompt.without(prompt) != prompt for prompt in train.samples):
            yield Contradiction(
                ("train", "samples"),
                "train.samples name an adapter, but are painted with the one in training, and "
                "<lora:…> would be read as plain text",
                "remove <lora:…>; `llm-lora generate` accepts prompts that name adapters",
            )

    def _misnamed(self) -> Iterator[tuple[str, str]]:
        """Mistakes in the adapters that prompts name; only the recipe's own adapter exists."""
        for prompt in self.judge.prompts:
            try:
                _, picks = lora_prompt.parse(prompt)
            except UserError as error:
                yield from ((one.what, one.fix or "") for one in error.problems)
                continue
            for pick in picks:
                if pick.name != self.name:
                    yield f"no adapter is named {pick.name}", f"the only adapter is {self.name}"

    def _seldom_intended(self) -> dict[str, bool]:
        data, lora, train, generate = self.data, self.lora, self.train, self.generate
        tiny, passes = self.base == "tiny", train.epochs * data.repeats
        return {
            f"lora.alpha / lora.rank is {lora.alpha / lora.rank:g}; 0.25 to 4 is usual": (
                not 0.25 <= lora.alpha / lora.rank <= 4
            ),
            f"train.learning_rate {train.learning_rate:g} is high for {self.base}; "
            "1e-4 to 3e-4 is usual": (
                not tiny and train.learning_rate > 1e-3 and train.optimizer != "prodigy"
            ),
            f"{passes:g} passes over every picture are many: above {_MOST_PASSES}, overfitting is "
            "common; compare the samples": (
                not tiny and passes > _MOST_PASSES and train.max_steps is None
            ),
            "data.keep_tags has no effect while data.shuffle_tags is off": (
                not data.shuffle_tags and data.keep_tags != KEEP_TAGS
            ),
            "train.prior_weight has no effect without data.regularisation": (
                data.regularisation is None and train.prior_weight != 1
            ),
            "generate.negative_prompt has no effect while generate.guidance is not above 1": (
                bool(generate.negative_prompt) and generate.guidance <= 1
            ),
            "judge.negative_prompt has no effect while generate.guidance is not above 1": (
                bool(self.judge.negative_prompt) and generate.guidance <= 1
            ),
            "judge.negative_prompt has no effect beside generate.negative_prompt": (
                bool(self.judge.negative_prompt) and bool(generate.negative_prompt)
            ),
            f"no prompt in train.samples contains data.trigger, {data.trigger}": (
                data.trigger is not None
                and bool(train.samples)
                and not any(data.trigger in prompt for prompt in train.samples)
            ),
        }
