"""Single-file bases: recognised by the names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora.base import text as bases
from llm_lora.base.family import (
    CANNOT,
    FAMILIES,
    NATIVE,
    NO_SHARES,
    Family,
    Prediction,
    of_unet,
    require_plain,
)
from llm_lora.errors import UserError
from llm_lora.weights import header

_UNET = "model.diffusion_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
_VAE = "first_stage_model."
_TEXT = {family: traits.text_encoder for family, traits in FAMILIES.items()}
_REFINER = "conditioner.embedders.0.model."
_V = "v_pred"
"""By convention, an empty tensor of this name marks an SDXL that predicts v."""

_ZERO_SNR = "ztsnr"
"""In addition to that, a tensor of this name marks zero terminal SNR (arXiv 2305.08891)."""

_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Tensors that, by convention, mark noise levels after Karras et al."""

_PICKLED = {".ckpt", ".pt", ".pth", ".bin"}
_OTHERS = (
    # Source of these names: `CHECKPOINT_KEY_NAMES` in diffusers 0.42 (single_file_utils.py).
    (r"joint_blocks\.", f"this is Stable Diffusion 3: {CANNOT}"),
    (r"double_blocks\.|single_stream_modulation\.", f"this is FLUX or a relative of it: {CANNOT}"),
    (
        r"transformer_blocks\.|layers\.\d+\.(adaLN|attention)",
        f"this generates with a transformer: {CANNOT}",
    ),
)
_NO_BASES = (
    (r"lora_|.*\.lora_[AB]\.|.*\.lora\.(up|down)\.", "this is a LoRA, not a base",
     "name the base it was trained on; to train it on: train.start_from"),
    (r"control_model\.|controlnet_|input_hint_block\.", "this is a ControlNet, which steers a base",
     "name the base that it steers"),
    (r"emb_params$|string_to_param", "this is a textual inversion, not a base", NATIVE),
    (r"(down_blocks|mid_block|up_blocks|conv_in)\.", "this is only the UNet, in diffusers' layout",
     "name the folder that holds model_index.json, unet/, vae/, …"),
    (r"(encoder|decoder)\.(down|mid|up|conv_in|down_blocks|mid_block|up_blocks)\b",
     "this is only a VAE", NATIVE),
    (r"(model|transformer)\.(layers|h|embed_tokens|wte)\.", "this is a text model",
     "set task: text and name its folder, or name a Stable Diffusion model"),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Facts from a file.

    `resolution` is None if the file does not state it; `zero_snr` is as in `PictureBase`.
    """

    family: Family
    prediction: Prediction
    zero_snr: bool
    resolution: int | None
    channels: int
    context: int

    def config(self, folders: Iterable[Path]) -> Path | None:
        """The first of the folders whose UNet has these shapes."""
        for folder in folders:
            if (folder / bases.PIPELINE).is_file():
                unet = bases.read_config(folder / "unet")
                shapes = (
                    (unet.get("block_out_channels") or [0])[0],
                    unet.get("cross_attention_dim"),
                )
                if of_unet(unet) == self.family and shapes == (self.channels, self.context):
                    return folder
        return None


def inspect(name: str, path: Path, prediction: str) -> Found:
    """Inspect a file.

    Args:
        name: its name in messages.
        path: the file.
        prediction: `epsilon` or `v` to override the file's own marks, or `auto`.

    Raises:
        UserError: it is pickled, damaged, not a base, or not a supported one.
    """
    if path.suffix.lower() in _PICKLED:
        raise UserError(
            f"pickled weights ({path.suffix}), which may run code on loading",
            where=name,
            fix="name the .safetensors version of this model",
        )
    tensors, metadata = header.safetensors_parts(path)
    if _CONV_IN not in tensors:
        raise _no_base(name, tensors)
    if any(one.startswith("control_model.") for one in tensors):
        raise UserError(_NO_BASES[1][1], where=name, fix=_NO_BASES[1][2])
    if _TEXT["sdxl"] not in _starts(tensors) and _REFINER in _starts(tensors):
        raise refiner(name)
    if any(one in tensors for one in _EDM):
        raise UserError(NO_SHARES.format(kind="EDM"), where=name, fix=NATIVE)
    channels, inputs = _matrix(tensors[_CONV_IN]["shape"], name)
    require_plain(name, inputs)
    starts = _starts(tensors)
    family = next((one for one, start in _TEXT.items() if start in starts), None)
    if family is None or _VAE not in starts:
        part = "VAE" if family else "text encoder"
        raise UserError(
            f"the file has no {part}",
            where=name,
            fix="name the whole model; a pruned file has only the UNet",
        )
    return Found(
        family=family,
        prediction=_prediction(name, family, prediction, tensors, metadata),
        zero_snr=_ZERO_SNR in tensors,
        resolution=_resolution(metadata),
        channels=channels,
        context=_context(tensors, name),
    )


def _matrix(shape: list[int], name: str) -> tuple[int, int]:
    """Output and input width of a layer."""
    if len(shape) < 2:
        raise _half(name)
    return shape[0], shape[1]


def _context(tensors: Mapping[str, Any], name: str) -> int:
    """Width of the text embeddings that its UNet reads."""
    for key, tensor in tensors.items():
        if key.startswith(_UNET) and key.endswith(".attn2.to_k.weight"):
            return _matrix(tensor["shape"], name)[1]
    raise _half(name)


def _half(name: str) -> UserError:
    return UserError("its UNet is incomplete", where=name, fix="download or copy it again")


def _starts(tensors: Collection[str]) -> set[str]:
    """The known components that a file has."""
    known = (*_TEXT.values(), _REFINER, _VAE)
    return {start for start in known if any(name.startswith(start) for name in tensors)}


def _no_base(name: str, tensors: Collection[str]) -> UserError:
    bare = [key.removeprefix(_UNET) for key in tensors]
    for pattern, what in _OTHERS:
        if any(re.match(pattern, key) for key in bare):
            return UserError(what, where=name, fix=NATIVE)
    for pattern, what, fix in _NO_BASES:
        if any(re.match(pattern, key) for key in bare):
            return UserError(what, where=name, fix=fix)
    return UserError(
        "this file contains no UNet in Stable Diffusion's original layout", where=name, fix=NATIVE
    )


def _prediction(
    name: str,
    family: Family,
    wanted: str,
    tensors: Collection[str],
    metadata: Mapping[str, str],
) -> Prediction:
    if wanted != "auto":
        return as_prediction(wanted)
    said = metadata.get("modelspec.prediction_type")
    if said in ("epsilon", "v"):
        return as_prediction(said)
    if _V in tensors:
        return "v"
    if family == "sd2":
        # 2.x has both variants with the same tensors: 512-base predicts noise, 768 predicts v.
        raise UserError(
            "a single file of Stable Diffusion 2 does not say whether it predicts noise or v",
            where=name,
            fix="set train.prediction: v for a model of 768 pixels, epsilon for one of 512",
        )
    return "epsilon"


def as_prediction(text: str) -> Prediction:
    """The prediction of this name."""
    return "v" if text == "v" else "epsilon"


def _resolution(metadata: Mapping[str, str]) -> int | None:
    """The side in the modelspec metadata: "1024x1024"."""
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", metadata.get("modelspec.resolution", ""))
    return min(int(match[1]), int(match[2])) if match else None


def ggml(name: str) -> UserError:
    """The refusal of a GGML or GGUF file."""
    return UserError(
        "this is a model for llama.cpp or stable-diffusion.cpp (GGML/GGUF), which cannot be "
        "trained",
        where=name,
        fix="name the original model that it was made from, with safetensors weights",
    )


def refiner(name: str) -> UserError:
    """The refusal of the second half of SDXL."""
    return UserError(
        "this is the refiner of SDXL, which only refines pictures",
        where=name,
        fix="name the SDXL base model",
    )
