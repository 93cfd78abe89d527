"""Families of image bases: how they are recognised, and which can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llm_lora.errors import UserError
from llm_lora.files import ASSETS

Family = Literal["sd1", "sd2", "sdxl"]
"""Stable Diffusion 1.x, 2.x and XL: the architecture of UNet and text encoders."""

Prediction = Literal["epsilon", "v"]
"""What a UNet predicts: the noise, or v (Salimans and Ho 2022, arXiv 2202.00512)."""

CONFIGS = ASSETS / "picture_configs"
"""Configurations of each family; `picture_configs.folder` makes them complete."""

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


def of_unet(config: Mapping[str, Any]) -> Family:
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
