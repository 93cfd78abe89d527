"""The blocks of a recipe for pictures: every setting with its meaning, unit, bounds and the source
of its default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
_SIDE = "in pixels, a multiple of 8, for one latent covers 8 x 8 of them"


class ImageData(Block):
    """The pictures to learn from, and those to judge by."""

    train: OnePath = Field(
        description="Pictures to learn from. A folder, relative to this YAML file, with "
        "metadata.csv (columns file_name or filename, and prompt or text) or with the caption of "
        "NAME.png in NAME.txt.",
    )
    captions: OnePath | None = Field(
        default=None,
        description="CSV file with the captions of train, where it lies elsewhere or is not "
        "called metadata.csv.",
    )
    held_out: FolderOrShare = Field(
        default=0.1,
        description="Pictures to judge by, never trained on: another such folder, or the share "
        "to cut from train (by content, so a picture never changes side).",
    )
    answer_schema: OnePath | None = Field(
        default=None,
        alias="schema",
        description="JSON schema that the measurements of an adapter must fit (measurements.json "
        "of a run), relative to this YAML file: bounds on the six dimensions and on what they "
        "rest on. It travels with the adapter.",
    )
    trigger: NotEmpty | None = Field(
        default=None,
        description="Words that call the style or the subject, put before every caption that "
        "lacks them; they travel with the adapter.",
    )
    resolution: Annotated[Whole, Field(ge=32, le=4096, multiple_of=8)] | None = Field(
        default=None,
        description=f"Side of a square picture in training, {_SIDE}; without it the base's own "
        "(512 for Stable Diffusion 1.5, 1024 for SDXL). Buckets keep the area of this square.",
    )
    min_size: Whole | None = Field(
        default=None,
        ge=1,
        description="Shortest side in pixels of a picture that is used; smaller ones are set "
        "aside. Half the resolution where not given.",
    )
    buckets: Switch = Field(
        default=True,
        description="Train at the nearest of several aspect ratios instead of cutting every "
        "picture to a square.",
    )
    bucket_step: Annotated[Whole, Field(ge=8, le=512, multiple_of=8)] = Field(
        default=64,
        description=f"Step between the sides of buckets {_SIDE}; 64 as in kohya's sd-scripts.",
    )
    crop: Literal["center", "random"] = Field(
        default="center",
        description="Where a picture is cut to its bucket: in the middle, or anew every time.",
    )
    flip: Switch = Field(
        default=False,
        description="Show half of the pictures mirrored; not for faces, writing or anything with "
        "a left and a right.",
    )
    repeats: Whole = Field(
        default=1, ge=1, le=10_000, description="How often each picture is shown in an epoch."
    )
    caption_dropout: Share = Field(
        default=0.05,
        description="Share of captions replaced with nothing, which guidance needs; 0.05 as in "
        "ai-toolkit.",
    )
    shuffle_tags: Switch = Field(
        default=False, description="Shuffle the parts of a caption between commas every time."
    )
    keep_tags: Whole = Field(
        default=KEEP_TAGS,
        ge=0,
        le=100,
        description="How many parts stay in front while the others are shuffled; 1 keeps the "
        "trigger.",
    )
    regularisation: OnePath | None = Field(
        default=None,
        description="Folder of pictures of the same class without the trigger, which keep what the "
        "base knows of it (prior preservation, DreamBooth, arXiv 2208.12242).",
    )
    near_duplicate: Share = Field(
        default=0.8,
        description="Likeness from which two pictures count as near-duplicates: one less the "
        "largest difference of colour in any of 8 x 8 fields, and the correlation of their "
        "patterns, whichever is lower. They never straddle train and held-out. 1 finds none but "
        "equal ones.",
    )
    blur: Number = Field(
        default=20.0,
        ge=0,
        description="Sharpness below which a picture is told as blurred: variance of the Laplacian "
        "(colours from 0 to 255) in its sharpest sixteenth, at the resolution of training; 0 tells "
        "of none.",
    )


class ImageLora(Block):
    """The adapter: its size, and where it sits."""

    rank: Whole = Field(
        default=8,
        ge=1,
        le=512,
        description="Rank of the update matrices. 8 is the usual start for a style, 16 for a "
        "person.",
    )
    alpha: Whole = Field(
        default=16,
        ge=1,
        le=2048,
        description="Scale of the update: alpha / rank multiplies it.",
    )
    dropout: Number = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout on the adapter's input; 0.1 to 0.3 is usual below 100 pictures.",
    )
    targets: ImageTargets = Field(
        default="attention+ff",
        description="Layers of the UNet to adapt: attention (query, key, value and output), "
        "attention+ff (the feed-forward layers too), or a list of the ends of module names.",
    )
    text_encoder: Switch = Field(
        default=False,
        description="Adapt the attention and feed-forward layers of the text encoders as well.",
    )


class ImageTrain(Block):
    """How to learn."""

    epochs: Number = Field(default=10.0, gt=0, le=10_000, description="Passes over the pictures.")
    max_steps: Whole | None = Field(
        default=None,
        ge=1,
        description="End after this many optimizer steps even if epochs are left.",
    )
    learning_rate: Number = Field(
        default=2e-4,
        gt=0,
        le=10,
        description="Peak learning rate; 1e-4 to 3e-4 with adamw, 1 with prodigy, which finds its "
        "own. Tiny bases take 10 times as much.",
    )
    text_encoder_learning_rate: Annotated[Number, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="Peak learning rate of the text encoders; half of learning_rate where not "
        "given, as kohya's guide advises.",
    )
    warmup: Number = Field(
        default=0.05, ge=0, lt=1, description="Share of all steps in which the learning rate rises."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    batch_size: Whole = Field(
        default=4, ge=1, le=1024, description="Pictures that go through the model at once."
    )
    accumulate: Whole = Field(default=1, ge=1, le=4096, description="Batches per optimizer step.")
    checkpointing: Switch = Field(
        default=False,
        description="Gradient checkpointing: much less memory for about a third more time.",
    )
    optimizer: Literal["adamw", "adamw-8bit", "prodigy"] = Field(
        default="adamw",
        description="AdamW; with 8-bit state; Prodigy (arXiv 2306.06101), which finds its own "
        "learning rate.",
    )
    weight_decay: Number = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Decay of the adapter's weights; 0.01 as in diffusers' training scripts.",
    )
    max_grad_norm: Number = Field(
        default=1.0, gt=0, description="Longest gradient; longer ones are scaled down to it."
    )
    min_snr: Annotated[Number, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="Weigh the loss of each noise level by min(SNR, this) / SNR (arXiv 2303.09556, "
        "which takes 5); without it all count the same.",
    )
    noise_offset: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Noise that is the same all over a picture, which teaches very light and very "
        "dark ones (crosslabs.org, Diffusion With Offset Noise, takes 0.1).",
    )
    prediction: Literal["auto", "epsilon", "v"] = Field(
        default="auto",
        description="What the base predicts: the noise, or v (arXiv 2202.00512). auto takes what "
        "the base says of itself.",
    )
    prior_weight: Number = Field(
        default=1.0,
        ge=0,
        le=100,
        description="How much a picture of data.regularisation counts against one of data.train.",
    )
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Keep a moving average of the adapter with this decay, such as 0.99, and take "
        "it in the end; without it the last weights are taken.",
    )
    sample_every: Whole = Field(
        default=100, ge=1, description="Paint the sample prompts after so many optimizer steps."
    )
    samples: tuple[NotEmpty, ...] = Field(
        default=(),
        description="Prompts to paint before, during and after training, with the seed, steps and "
        "guidance of the block generate.",
    )
    save_every: Whole = Field(
        default=100,
        ge=1,
        description="Save a checkpoint, and measure the loss on the held-out pictures, after so "
        "many optimizer steps.",
    )
    patience: Whole | None = Field(
        default=None,
        ge=1,
        description="Stop after this many such measurements in a row without a better loss; "
        "without it training runs to its end.",
    )
    take: Literal["last", "best"] | None = Field(
        default=None,
        description="What becomes the adapter: the weights of the last step, or of the saved step "
        "with the least loss on the held-out pictures. best where patience is given, else last.",
    )
    keep: Whole = Field(
        default=5,
        ge=0,
        le=1000,
        description="How many adapters of saved steps the run keeps, the newest ones, besides the "
        "best: to look at and to go back to (llm-lora generate RUN --step 300). 0 keeps none.",
    )
    seed: Whole = Field(
        default=17,
        ge=0,
        le=2**32 - 1,
        description="Seed of everything random: order, crops, captions, noise, adapter.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="What is computed in; auto takes bf16 where a GPU has it, fp16 on other "
        "GPUs, fp32 without one.",
    )
    start_from: OnePath | None = Field(
        default=None,
        description="An adapter to go on from, with its rank and targets: the folder adapter/ of "
        "a run, or a .safetensors file of a WebUI. Not the same as --resume.",
    )
    cache: Switch = Field(
        default=True,
        description="Encode pictures and captions once and keep the outcome, as far as it stays "
        "the same: latents not where data.crop is random, texts not where lora.text_encoder "
        "learns.",
    )

    @property
    def takes_best(self) -> bool:
        """Whether the best saved weights become the adapter."""
        if self.take is None:
            return self.patience is not None
        return self.take == "best"


class ImageGenerate(Block):
    """How to paint; these defaults travel with the adapter."""

    steps: Whole = Field(default=30, ge=1, le=1000, description="Denoising steps.")
    guidance: Number = Field(
        default=7.5,
        ge=0,
        le=100,
        description="How closely to follow the prompt (classifier-free guidance, arXiv "
        "2207.12598); 1 does without.",
    )
    negative_prompt: str = Field(
        default="", description="What the picture shall not show; needs guidance above 1."
    )
    seed: Whole = Field(
        default=0, ge=0, le=2**32 - 1, description="Seed of the first picture; others count up."
    )
    width: Annotated[Whole, Field(ge=32, le=4096, multiple_of=8)] | None = Field(
        default=None, description=f"Width {_SIDE}; without it the resolution of training."
    )
    height: Annotated[Whole, Field(ge=32, le=4096, multiple_of=8)] | None = Field(
        default=None, description=f"Height {_SIDE}; without it the resolution of training."
    )
    scheduler: Literal["ddim", "euler", "dpm++"] = Field(
        default="ddim", description="The sampler; none of them adds noise on the way."
    )
    batch_size: Whole = Field(
        default=4, ge=1, le=256, description="Pictures painted at once, in training and judging."
    )


class ImageJudge(Block):
    """What the adapter is judged by."""

    embedder: NotEmpty = Field(
        default="tiny",
        description="The CLIP model that compares pictures with pictures and texts: tiny "
        "(embedded), a folder (starting with ./, ../, ~/ or /), or a hub id such as "
        "openai/clip-vit-large-patch14.",
    )
    likeness: NotEmpty | None = Field(
        default=None,
        description="What compares pictures with held-out ones for fidelity, where it is not the "
        "embedder: faces (of one person; needs llm-lora[faces]), or a DINO model, by a folder or a "
        "hub id such as facebook/dinov2-small.",
    )
    prompts: tuple[NotEmpty, ...] = Field(
        default=(),
        description="Combinations that training never showed, to judge generalisation and "
        "alignment by; the captions of held-out pictures where there are none.",
    )
    seeds: Whole = Field(
        default=4, ge=2, le=64, description="Pictures of each prompt, each with a seed of its own."
    )
    strengths: Strengths = Field(
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5),
        description="Strengths of the adapter at which its effect is measured, rising; 0 and 1 "
        "are always among them, and what is above 1 tells where it breaks.",
    )
    negative_prompt: str = Field(
        default="",
        description="What the pictures shall not show, to see whether they heed it; "
        "generate.negative_prompt where that is set.",
    )


class ImageCheck(Block):
    """Gates on the report; an adapter that misses one has not passed.

    Each is the least value of one dimension, from 0 to 1, as report.json has it.
    """

    consistency: Share | None = Field(
        default=None, description="Least likeness in style of pictures with different seeds."
    )
    fidelity: Share | None = Field(
        default=None, description="Least likeness of its pictures to held-out ones."
    )
    generalisation: Share | None = Field(
        default=None, description="Least presence of the style in combinations never shown."
    )
    learning: Share | None = Field(
        default=None,
        description="Least soundness of learning: learned, not over-fitted, nothing memorised.",
    )
    strength: Share | None = Field(
        default=None, description="Least agreement of strength and effect: 1 rises at every step."
    )
    alignment: Share | None = Field(
        default=None, description="Least agreement of its pictures with their prompts."
    )

    def gates(self) -> dict[str, float]:
        """The gates that are set, by name, with what each demands."""
        return self.model_dump(exclude_none=True)
