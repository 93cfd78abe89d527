"""Assembly of the parts as a Stable Diffusion pipeline, and evaluation of its pictures."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from pretraining.image.judge import WIDTH

LATENT = 16  # side of the latents
STEPS, GUIDANCE = 20, 3.0


def new_unet(seed: int) -> UNet2DConditionModel:
    """The UNet with random weights: Stable Diffusion 1.5's blocks, far narrower.

    Eight groups per norm instead of 32: with a channel or two in each, the norms would take away
    the mean of every channel, which is the colour of a flat picture.
    """
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(32, 64, 96, 128),
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with zero terminal SNR, predicting v.

    The usual schedule leaves a little of the picture in the noise, and a tiny model takes the mean
    colour from it instead of from the prompt (Lin and others, 2024, arXiv 2305.08891).
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def text_encoder(judge: CLIPModel) -> CLIPTextModel:
    """The judge's text encoder on its own."""
    encoder = CLIPTextModel(judge.config.text_config)
    encoder.load_state_dict(judge.text_model.state_dict())
    return encoder.eval()


def assemble(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The whole pipeline."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def paint(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int) -> Tensor:
    """One uint8 picture for each prompt, shaped (prompts, 3, 64, 64)."""
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
    painted: Tensor = pipeline(
        prompts,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=generators,
        output_type="pt",
    ).images
    return (painted.float() * 255).round().to(torch.uint8)


def save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the pipeline in half precision as safetensors.

    The text encoder's names get the prefix that Stable Diffusion 1.5's files have; transformers
    reads both and writes the short ones.
    """
    assemble(
        copy.deepcopy(pipeline.unet).half(),
        copy.deepcopy(pipeline.vae).half(),
        copy.deepcopy(pipeline.text_encoder).half(),
        pipeline.tokenizer,
    ).save_pretrained(folder)
    words = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name}": value for name, value in load_file(words).items()}
    save_file(named, words, metadata={"format": "pt"})
    config = folder / "vae" / "config.json"
    told = json.loads(config.read_text())
    told.pop("_name_or_path", None)  # where it lay on the machine that trained it
    config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors keeps its files to the owner
