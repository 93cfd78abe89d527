"""Loading of an image base: a diffusers folder or a single file, always a local one."""

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
    StableDiffusionXLPipeline,
)
from transformers import PreTrainedModel
from transformers import logging as transformers_logging

from llm_lora.base import FAMILIES, PictureBase
from llm_lora.engines.shared import is_out_of_memory, loading
from llm_lora.errors import UserError

_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
_SILENT = "_use_default_values"
_SAMPLERS: dict[str, tuple[Any, dict[str, object]]] = {
    # Latents are not limited to -1 to 1; without this, DDIM would clip them by default.
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}


@dataclass(frozen=True)
class Loaded:
    """A base ready for training or generation.

    Attributes:
        pipe: diffusers' pipeline; UNet and text encoders in `compute`, the VAE in fp32, because
            SDXL's overflows in half precision. All frozen and in evaluation mode.
        base: what was loaded.
        device: the device that everything runs on.
        compute: the dtype of matrix products.
        reason: why that dtype was chosen.
        noise: the configuration of the base's scheduler.
    """

    pipe: Any
    base: PictureBase
    device: torch.device
    compute: torch.dtype
    reason: str
    noise: Mapping[str, object]

    @property
    def text_encoders(self) -> dict[str, PreTrainedModel]:
        """The text encoders, by component name."""
        names = ("text_encoder", "text_encoder_2")
        found = {name: getattr(self.pipe, name, None) for name in names}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    @property
    def trained_parts(self) -> dict[str, torch.nn.Module]:
        """The components that an adapter can change, by name."""
        return {"unet": self.pipe.unet, **self.text_encoders}

    def autocast(self) -> torch.autocast:
        """Autocast to `compute`, whatever dtype the adapter's weights have."""
        enabled = self.compute != torch.float32
        return torch.autocast(self.device.type, self.compute, enabled=enabled)


def compute_dtype(precision: str) -> tuple[torch.dtype, str]:
    """The compute dtype and the reason: bf16 if the GPU has it, fp16 on other GPUs, fp32 on CPUs.

    The many small products of a UNet gain nothing from bf16 on a CPU.

    Raises:
        UserError: this machine does not support the requested precision.
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
        base: the base to load.
        precision: the recipe's `train.precision`.

    Raises:
        UserError: memory ran out, or the files do not match their configuration.
    """
    quiet()
    compute, reason = compute_dtype(precision)
    device = loading.device()
    if device.type != "cpu":
        # fp32 products use TF32 (fast, slightly rounded), as convolutions do by default.
        torch.set_float32_matmul_precision("high")
    pipeline = getattr(diffusers, FAMILIES[base.family].pipeline)
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
            fix="check that the files are complete and that the configuration belongs to them",
        ) from error
    noise = _noise(base, pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (part := getattr(pipe, name, None)) is not None:
            part.requires_grad_(False).eval().to(device)
    for part in (pipe.unet, pipe.vae):
        # The memory layout that convolutions use without reordering, on GPUs and on CPUs.
        part.to(memory_format=torch.channels_last)
    return Loaded(pipe, base, device, compute, reason, noise)


def _noise(base: PictureBase, told: Mapping[str, Any]) -> dict[str, object]:
    """The configuration of a base's scheduler; known facts about the base take precedence."""
    known: dict[str, object] = {"prediction_type": _PREDICTIONS[base.prediction]}
    if base.zero_snr:
        known |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    # diffusers lists the keys that a configuration left out, and ignores values set for them.
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


def _without(pipeline: Any) -> dict[str, bool | None]:
    """Components that are switched off (safety checker, image encoder): neither use needs them."""
    if pipeline is StableDiffusionXLPipeline:
        return {"add_watermarker": False, "image_encoder": None, "feature_extractor": None}
    return {
        "safety_checker": None,
        "requires_safety_checker": False,
        "image_encoder": None,
        "feature_extractor": None,
    }


def noise_scheduler(loaded: Loaded) -> Any:
    """The scheduler with the noise levels of training."""
    return DDPMScheduler.from_config(loaded.noise)


def sampler(loaded: Loaded, name: str) -> Any:
    """A scheduler for generation: ddim, euler or dpm++; all are deterministic."""
    kind, options = _SAMPLERS[name]
    return kind.from_config(loaded.noise, **options)


def quiet() -> None:
    """Silence library messages meant for developers; errors still come through."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
