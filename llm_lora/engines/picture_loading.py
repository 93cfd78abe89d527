"""Loading a base that paints: a diffusers folder or a single file, always from this machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import logging as transformers_logging

from llm_lora.engines import loading
from llm_lora.engines.trouble import is_out_of_memory
from llm_lora.errors import UserError
from llm_lora.picture_base import PictureBase

_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
_SILENT = "_use_default_values"
_SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    # Latents are not bound to -1 to 1, which DDIM would cut them to where a base does not say.
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}


@dataclass(frozen=True)
class Loaded:
    """A base ready for training or painting.

    Attributes:
        pipe: diffusers' pipeline; UNet and text encoders in `compute`, the VAE in fp32, for in
            half precision SDXL's overflows. All frozen and in evaluation mode.
        base: what was loaded.
        device: what everything runs on.
        compute: what products are computed in.
        reason: why in that.
        noise: the configuration of the base's scheduler.
    """

    pipe: Any
    base: PictureBase
    device: torch.device
    compute: torch.dtype
    reason: str
    noise: dict[str, Any]

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The text encoders by the names of their parts."""
        names = ("text_encoder", "text_encoder_2")
        found = {name: getattr(self.pipe, name, None) for name in names}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    @property
    def trained_parts(self) -> dict[str, Any]:
        """The parts that an adapter may sit in, by name."""
        return {"unet": self.pipe.unet, **self.text_encoders}

    def autocast(self) -> torch.autocast:
        """Within it, products are in `compute` whatever the type of the adapter's weights is."""
        enabled = self.compute != torch.float32
        return torch.autocast(self.device.type, self.compute, enabled=enabled)


def compute_dtype(precision: str) -> tuple[torch.dtype, str]:
    """What to compute in, with the reason: bf16 where a GPU has it, fp16 on others, else fp32.

    The many small products of a UNet gain nothing from bf16 on a CPU.

    Raises:
        UserError: what was demanded is not there.
    """
    gpu = torch.cuda.is_available()
    if precision == "fp16":
        if not gpu:
            raise UserError(
                "train.precision is fp16, which needs a GPU", fix="set train.precision to auto"
            )
        return torch.float16, "computing in fp16: as the recipe says"
    if precision == "auto":
        if not gpu:
            return torch.float32, "computing in fp32: there is no GPU"
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(0)
            return torch.float16, f"computing in fp16: {name} has no bf16 instructions"
    return loading.compute_dtype(precision)


def load(base: PictureBase, precision: str) -> Loaded:
    """Load a base onto the device.

    Args:
        base: where it lies.
        precision: the recipe's `train.precision`.

    Raises:
        UserError: memory ran out, or the files are not what their configuration says.
    """
    quiet()
    compute, reason = compute_dtype(precision)
    device = loading.device()
    if device.type != "cpu":
        # Products in fp32 take the fast, slightly rounded path, as convolutions do by default.
        torch.set_float32_matmul_precision("high")
    pipeline = StableDiffusionXLPipeline if base.family == "sdxl" else StableDiffusionPipeline
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = _read(pipeline, base, compute)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"cannot load the base: {str(error).strip().splitlines()[0]}",
            where=str(base.path),
            fix="check that it is whole, and that its configuration is its own",
        ) from error
    noise = _noise(base, pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (part := getattr(pipe, name, None)) is not None:
            part.requires_grad_(False).eval().to(device)
    for part in (pipe.unet, pipe.vae):
        # The layout that convolutions take without reordering, on GPUs and on CPUs.
        part.to(memory_format=torch.channels_last)
    return Loaded(pipe, base, device, compute, reason, noise)


def _noise(base: PictureBase, told: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a base's scheduler; what is known of the base itself goes first."""
    known: dict[str, Any] = {"prediction_type": _PREDICTIONS[base.prediction]}
    if base.zero_snr:
        known |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    # Where a configuration is silent, diffusers lists it, and forgets whatever stands there.
    silent = [name for name in told.get(_SILENT, ()) if name not in known]
    return {**told, **known, _SILENT: silent}


def _read(pipeline: Any, base: PictureBase, compute: torch.dtype) -> Any:
    if base.single_file:
        where = {"config": str(base.config), "local_files_only": True}
        vae = AutoencoderKL.from_single_file(
            str(base.path), subfolder="vae", torch_dtype=torch.float32, **where
        )
        return pipeline.from_single_file(
            str(base.path), vae=vae, torch_dtype=compute, **_without(pipeline), **where
        )
    how = {"variant": base.variant, "use_safetensors": True, "local_files_only": True}
    vae = AutoencoderKL.from_pretrained(
        base.path, subfolder="vae", torch_dtype=torch.float32, **how
    )
    return pipeline.from_pretrained(
        base.path, vae=vae, torch_dtype=compute, **_without(pipeline), **how
    )


def _without(pipeline: Any) -> dict[str, Any]:
    """Parts that judge pictures or take others in: neither trained nor painted with."""
    if pipeline is StableDiffusionXLPipeline:
        return {"add_watermarker": False, "image_encoder": None, "feature_extractor": None}
    return {
        "safety_checker": None,
        "requires_safety_checker": False,
        "image_encoder": None,
        "feature_extractor": None,
    }


def noise_scheduler(loaded: Loaded) -> Any:
    """The noise levels of training."""
    return DDPMScheduler.from_config(loaded.noise)


def sampler(loaded: Loaded, name: str) -> Any:
    """A scheduler that paints: ddim, euler or dpm++; none of them adds noise on the way."""
    kind, options = _SAMPLERS[name]
    return kind.from_config(loaded.noise, **options)


def quiet() -> None:
    """Silence what speaks to programmers; errors still come through."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
