"""The blocks of an image recipe: each setting with meaning, unit, bounds and origin of its
default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_lora.recipe import shared
from llm_lora.recipe.scalars import (
    Block,
    FolderOrShare,
    ImageTargets,
    NotEmpty,
    Number,
    OnePath,
    Share,
    Strengths,
    Switch,
    Whole,
)

KEEP_TAGS = 1
Side = Annotated[Whole, Field(ge=32, le=4096, multiple_of=8)]
_SIDE = "in pixels, a multiple of 8 (a latent covers 8 x 8 pixels)"


class ImageData(Block):
    """Pictures for training and evaluation."""

    train: OnePath = Field(
        description="Training pictures. A folder, relative to this YAML file, with captions in "
        "metadata.csv (columns file_name or filename, and prompt or text), or the caption of "
        "NAME.png in NAME.txt.",
    )
    captions: OnePath | None = Field(
        default=None,
        description="CSV file with the captions of train, if it is in another folder or has "
        "another name than metadata.csv.",
    )
    held_out: FolderOrShare = Field(
        default=0.1,
        description="Pictures for evaluation, never trained on: another such folder, or the "
        "fraction to split off train (by content, so a picture never changes sides).",
    )
    answer_schema: OnePath | None = Field(
        default=None,
        alias="schema",
        description="JSON Schema that the measurements of an adapter must fit (measurements.json "
        "of a run), relative to this YAML file: bounds on the six dimensions and the values behind "
        "them. It is stored with the adapter.",
    )
    trigger: NotEmpty | None = Field(
        default=None,
        description="Words that trigger the style or the subject, prepended to every caption "
        "without them; they are stored with the adapter.",
    )
    resolution: Side | None = Field(
        default=None,
        description=f"Side of a square training picture, {_SIDE}; by default, the base's own (512 "
        "for Stable Diffusion 1.5, 1024 for SDXL). Buckets keep the area of this square.",
    )
    min_size: Whole | None = Field(
        default=None,
        ge=1,
        description="Minimum length in pixels of a picture's shorter side; smaller pictures are "
        "set aside. By default, half the resolution.",
    )
    buckets: Switch = Field(
        default=True,
        description="Train each picture at the nearest of several aspect ratios instead of "
        "cropping all to squares.",
    )
    bucket_step: Annotated[Whole, Field(ge=8, le=512, multiple_of=8)] = Field(
        default=64,
        description=f"Step between bucket sides {_SIDE}; 64 as in kohya's sd-scripts.",
    )
    crop: Literal["center", "random"] = Field(
        default="center",
        description="Where a picture is cropped to its bucket: in the center, or at random each "
        "time.",
    )
    flip: Switch = Field(
        default=False,
        description="Mirror each picture at random, half of the time; not for faces, writing or "
        "other asymmetric subjects.",
    )
    repeats: Whole = Field(
        default=1, ge=1, le=10_000, description="Times that each picture is used per epoch."
    )
    caption_dropout: Share = Field(
        default=0.05,
        description="Fraction of captions replaced with an empty one, which classifier-free "
        "guidance needs; 0.05 as in ai-toolkit.",
    )
    shuffle_tags: Switch = Field(
        default=False, description="Shuffle the comma-separated parts of a caption each time."
    )
    keep_tags: Whole = Field(
        default=KEEP_TAGS,
        ge=0,
        le=100,
        description="Number of leading parts that are not shuffled; 1 keeps the trigger in front.",
    )
    regularisation: OnePath | None = Field(
        default=None,
        description="Folder of pictures of the same class without the trigger, which preserve the "
        "base's knowledge of the class (prior preservation, DreamBooth, arXiv 2208.12242).",
    )
    near_duplicate: Share = Field(
        default=0.8,
        description="Similarity from which two pictures count as near-duplicates, which are kept "
        "on one side of the split: the lower of 1 minus the largest colour difference in any of "
        "8 x 8 cells, and the correlation of their patterns. 1 finds exact duplicates only.",
    )
    blur: Number = Field(
        default=20.0,
        ge=0,
        description="Sharpness below which a picture is reported as blurred: variance of the "
        "Laplacian (colours from 0 to 255) in its sharpest sixteenth, at training resolution; 0 "
        "reports none.",
    )


class ImageLora(Block):
    """Size and placement of the adapter."""

    rank: shared.Rank = Field(
        default=8,
        description="Rank of the update matrices. 8 is a common start for a style, 16 for a "
        "person.",
    )
    alpha: shared.Alpha = Field(
        default=16,
        description="Scaling: the update is multiplied by alpha / rank.",
    )
    dropout: shared.Dropout = Field(
        default=0.0,
        description="Dropout on the adapter's input; 0.1 to 0.3 is common below 100 pictures.",
    )
    targets: ImageTargets = Field(
        default="attention+ff",
        description="Layers of the UNet to adapt: attention (query, key, value and output), "
        "attention+ff (also the feed-forward layers), or a list of module name suffixes.",
    )
    text_encoder: Switch = Field(
        default=False,
        description="Adapt the attention and feed-forward layers of the text encoders as well.",
    )


class ImageTrain(Block):
    """Training."""

    epochs: Number = Field(default=10.0, gt=0, le=10_000, description="Passes over the pictures.")
    max_steps: shared.MaxSteps = None
    learning_rate: Number = Field(
        default=2e-4,
        gt=0,
        le=10,
        description="Peak learning rate; 1e-4 to 3e-4 with adamw, 1 with prodigy, which finds its "
        "own. Tiny bases need 10 times as much.",
    )
    text_encoder_learning_rate: Annotated[Number, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="Peak learning rate of the text encoders; by default, half of learning_rate, "
        "as kohya's guide advises.",
    )
    warmup: shared.Warmup = 0.05
    schedule: shared.Schedule = "cosine"
    batch_size: Whole = Field(
        default=4, ge=1, le=1024, description="Pictures per forward and backward pass."
    )
    accumulate: shared.Accumulate = Field(
        default=1, description="Gradient accumulation: batches per optimizer step."
    )
    checkpointing: shared.Checkpointing = False
    optimizer: Literal["adamw", "adamw-8bit", "prodigy"] = Field(
        default="adamw",
        description="AdamW; AdamW with 8-bit state; Prodigy (arXiv 2306.06101), which finds its "
        "own learning rate.",
    )
    weight_decay: shared.WeightDecay = Field(
        default=0.01,
        description="Weight decay of the adapter; 0.01 as in diffusers' training scripts.",
    )
    max_grad_norm: shared.MaxGradNorm = 1.0
    min_snr: Annotated[Number, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="Weight the loss of each noise level by min(SNR, this) / SNR (arXiv "
        "2303.09556, which uses 5); by default, all levels have equal weight.",
    )
    noise_offset: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Noise added to a whole picture equally, so that very light and very dark "
        "pictures are learned (crosslabs.org, Diffusion With Offset Noise, uses 0.1).",
    )
    prediction: Literal["auto", "epsilon", "v"] = Field(
        default="auto",
        description="Prediction type of the base: the noise, or v (arXiv 2202.00512). auto uses "
        "the type in the base's configuration.",
    )
    prior_weight: Number = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Loss weight of a picture in data.regularisation, relative to one in "
        "data.train.",
    )
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Keep an exponential moving average of the adapter with this decay, such as "
        "0.99, and use it as the result; by default, the last weights are used.",
    )
    sample_every: Whole = Field(
        default=100, ge=1, description="Optimizer steps between paintings of the sample prompts."
    )
    samples: tuple[NotEmpty, ...] = Field(
        default=(),
        description="Prompts to paint before, during and after training, with the seed, steps and "
        "guidance of the block generate.",
    )
    save_every: Whole = Field(
        default=100,
        ge=1,
        description="Optimizer steps between checkpoints, each with the loss on the held-out "
        "pictures.",
    )
    patience: Whole | None = Field(
        default=None,
        ge=1,
        description="Early stopping: stop after this many such measurements without improvement; "
        "off by default.",
    )
    take: Literal["last", "best"] | None = Field(
        default=None,
        description="Weights used for the adapter: those of the last step, or of the saved step "
        "with the lowest loss on the held-out pictures. Default: best if patience is set, else "
        "last.",
    )
    keep: Whole = Field(
        default=5,
        ge=0,
        le=1000,
        description="Number of recent adapters that the run keeps besides the best, to compare or "
        "return to (llm-lora generate RUN --step 300). 0 keeps none.",
    )
    seed: shared.Seed = Field(
        default=17,
        description="Seed for data order, crops, captions, noise and adapter initialisation.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="Compute precision; auto uses bf16 on a GPU that supports it, fp16 on other "
        "GPUs, fp32 without one.",
    )
    start_from: OnePath | None = Field(
        default=None,
        description="Adapter to start from, with its rank and targets: the folder adapter/ of a "
        "run, or a WebUI's .safetensors file. Not the same as --resume.",
    )
    cache: Switch = Field(
        default=True,
        description="Cache encoded pictures and captions where they do not change: not latents "
        "with data.crop random, not texts with lora.text_encoder.",
    )

    @property
    def takes_best(self) -> bool:
        """Whether the adapter uses the best saved weights."""
        if self.take is None:
            return self.patience is not None
        return self.take == "best"


class ImageGenerate(Block):
    """Generation defaults, stored with the adapter."""

    steps: Whole = Field(default=30, ge=1, le=1000, description="Denoising steps.")
    guidance: Number = Field(
        default=7.5,
        ge=0,
        le=100,
        description="How closely to follow the prompt (classifier-free guidance, arXiv "
        "2207.12598); 1 turns it off.",
    )
    negative_prompt: str = Field(
        default="", description="What the picture should not show; needs guidance above 1."
    )
    seed: shared.Seed = Field(default=0, description="Seed of the first picture; each next adds 1.")
    width: Side | None = Field(
        default=None, description=f"Width {_SIDE}; by default, the training resolution."
    )
    height: Side | None = Field(
        default=None, description=f"Height {_SIDE}; by default, the training resolution."
    )
    scheduler: Literal["ddim", "euler", "dpm++"] = Field(
        default="ddim", description="Sampler; all of them are deterministic (add no noise)."
    )
    batch_size: Whole = Field(
        default=4, ge=1, le=256, description="Pictures per batch, in training and evaluation."
    )


class ImageJudge(Block):
    """Models and prompts for the evaluation."""

    embedder: NotEmpty = Field(
        default="tiny",
        description="CLIP model that compares pictures with pictures and texts: tiny "
        "(embedded), a folder (starting with ./, ../, ~/ or /), or a hub id such as "
        "openai/clip-vit-large-patch14.",
    )
    likeness: NotEmpty | None = Field(
        default=None,
        description="Model that compares pictures with held-out ones for fidelity, instead of the "
        "embedder: faces (of one person; needs llm-lora[faces]), or a DINO model as a folder or a "
        "hub id such as facebook/dinov2-small.",
    )
    prompts: tuple[NotEmpty, ...] = Field(
        default=(),
        description="Prompts with combinations not in the training data, to measure generalisation "
        "and alignment; by default, the captions of held-out pictures.",
    )
    seeds: Whole = Field(
        default=4, ge=2, le=64, description="Pictures per prompt, each with its own seed."
    )
    strengths: Strengths = Field(
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5),
        description="Strengths at which the adapter's effect is measured, in ascending order; 0 "
        "and 1 are always included, and values above 1 show where it breaks.",
    )
    negative_prompt: str = Field(
        default="",
        description="Negative prompt for the check that pictures heed one; "
        "generate.negative_prompt, if set, is used instead.",
    )


class ImageCheck(Block):
    """Gates on the report; an adapter must meet all of them to pass.

    Each is the minimum of one dimension in report.json, from 0 to 1.
    """

    consistency: Share | None = Field(
        default=None, description="Minimum similarity in style of pictures with different seeds."
    )
    fidelity: Share | None = Field(
        default=None, description="Minimum similarity of its pictures to held-out ones."
    )
    generalisation: Share | None = Field(
        default=None, description="Minimum presence of the style in combinations not trained on."
    )
    learning: Share | None = Field(
        default=None,
        description="Minimum quality of learning: learned, not overfitted, nothing memorised.",
    )
    strength: Share | None = Field(
        default=None,
        description="Minimum agreement of strength and effect; 1 means it rises at every step.",
    )
    alignment: Share | None = Field(
        default=None, description="Minimum agreement of its pictures with their prompts."
    )

    def gates(self) -> dict[str, float]:
        """The gates that are set, by name, with their thresholds."""
        return self.model_dump(exclude_none=True)
