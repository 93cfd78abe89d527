"""Families of image bases: how they are recognised, how they differ, and which can be trained.

A new family is a name in `Family`, an entry in `FAMILIES`, a rule in `of_unet`, and its
configurations in `CONFIGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llm_lora.errors import UserError
from llm_lora.files import ASSETS

Family = Literal["sd1", "sd2", "sdxl"]
"""Stable Diffusion 1.x, 2.x and XL: the architecture of UNet and text encoders."""

Prediction = Literal["epsilon", "v"]
"""What a UNet predicts: the noise, or v (Salimans and Ho 2022, arXiv 2202.00512)."""


@dataclass(frozen=True)
class Traits:
    """What sets a family apart.

    Attributes:
        pipeline: its pipeline's class in diffusers.
        parts: the components that a folder must have.
        resolution: side in pixels of its pictures, where no configuration states it.
        text_encoder: how the tensor names of its last text encoder begin in a single file.
        takes_sizes: whether its UNet is also conditioned on sizes and crops.
        prefixes: how WebUIs' names of modules begin, by component.
        original_names: whether WebUIs name its UNet's modules as in the original code.
        version, ui_version: its name in kohya's metadata, and in the notes of WebUIs.
        architecture: its name in ModelSpec, by what the UNet predicts.
        implementation: what ModelSpec calls the code that defines the names of modules.
    """

    pipeline: str
    parts: tuple[str, ...]
    resolution: int
    text_encoder: str
    takes_sizes: bool
    prefixes: Mapping[str, str]
    original_names: bool
    version: str
    ui_version: str
    architecture: Mapping[Prediction, str]
    implementation: str


_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

FAMILIES: dict[Family, Traits] = {
    "sd1": Traits(
        pipeline="StableDiffusionPipeline",
        parts=_PARTS,
        resolution=512,
        text_encoder="cond_stage_model.transformer.",
        takes_sizes=False,
        prefixes={"unet": "lora_unet", "text_encoder": "lora_te"},
        original_names=False,
        version="sd_v1",
        ui_version="SD1",
        architecture=dict.fromkeys(("epsilon", "v"), "stable-diffusion-v1"),
        implementation="diffusers",
    ),
    "sd2": Traits(
        pipeline="StableDiffusionPipeline",
        parts=_PARTS,
        resolution=512,
        text_encoder="cond_stage_model.model.",
        takes_sizes=False,
        prefixes={"unet": "lora_unet", "text_encoder": "lora_te"},
        original_names=False,
        version="sd_v2",
        ui_version="SD2",
        architecture={"epsilon": "stable-diffusion-v2-512", "v": "stable-diffusion-v2-768-v"},
        implementation="diffusers",
    ),
    "sdxl": Traits(
        pipeline="StableDiffusionXLPipeline",
        parts=(*_PARTS, "text_encoder_2", "tokenizer_2"),
        resolution=1024,
        text_encoder="conditioner.embedders.1.model.",
        takes_sizes=True,
        prefixes={"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        original_names=True,
        version="sdxl_base_v1-0",
        ui_version="SDXL",
        architecture=dict.fromkeys(("epsilon", "v"), "stable-diffusion-xl-v1-base"),
        implementation="https://github.com/Stability-AI/generative-models",
    ),
}

CONFIGS = ASSETS / "picture_configs"
"""Configurations of each family; `configs.folder` makes them complete."""

NATIVE = "choose a Stable Diffusion 1.5, 2.x or SDXL base"

CANNOT = (
    "its transformer learns by flow matching, and this toolkit trains the UNets of Stable "
    "Diffusion 1.x, 2.x and XL"
)

NO_SHARES = (
    "its noise levels are not shares of signal and noise ({kind}); this toolkit trains only bases "
    "whose levels are"
)
"""Why EDM (arXiv 2206.00364) and flow matching are refused; a message with their name."""

_CHANNELS = 4
_OTHER_CHANNELS = {
    5: "it generates from depth maps",
    7: "it is an upscaler",
    8: "it edits pictures (InstructPix2Pix)",
    9: "it is made for inpainting",
}


def of_unet(config: Mapping[str, object]) -> Family:
    """The family of a UNet in diffusers' layout.

    Only SDXL is conditioned on sizes and crops besides the text; of the others, 2.x has linear
    projections and uses OpenCLIP's text encoder, with 1,024 numbers a token.
    """
    if config.get("addition_embed_type") == "text_time":
        return "sdxl"
    if config.get("use_linear_projection") or config.get("cross_attention_dim") == 1024:
        return "sd2"
    return "sd1"


def require_plain(name: str, channels: object) -> None:
    """Refuse a UNet whose input is more than the latents of one picture.

    Raises:
        UserError: the UNet has another number of input channels.
    """
    if channels != _CHANNELS:
        why = _OTHER_CHANNELS.get(channels, "its input is more than a picture") if (
            isinstance(channels, int)
        ) else "unet/config.json does not state them"  # fmt: skip
        raise UserError(
            f"the UNet takes {channels} channels instead of {_CHANNELS}: {why}",
            where=name,
            fix="name the text-to-image model that it was made from",
        )
