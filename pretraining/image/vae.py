"""Training of the VAE: pictures of 64x64 pixels to latents of 16x16x4 and back.

It sees the drawn styles too, as the VAE of a large model covers more than its UNet was trained for:
an adapter changes only the UNet, so the decoder must be able to render the style.
"""

from __future__ import annotations

import logging
import math
import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from pretraining.image.pictures import as_input, as_picture, drawn, sheet, some_styles
from pretraining.image.scenes import held_out_scene, training_scene
from pretraining.image.training import Plan, command_line, train

log = logging.getLogger("pretraining")

SCALE = 0.18215  # what Stable Diffusion 1.5 has, and what a single file cannot say
_KL = 3e-4  # weight of the KL term per latent number, beside errors per pixel
_BATCH = 10
_PICTURES = 8_000


def new_vae(seed: int) -> AutoencoderKL:
    """The VAE with random weights.

    Four groups per norm: with a channel in each, the norms would take away the mean of every
    channel, which is the colour of a flat picture.
    """
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=SCALE,
    )


def decibels(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures that went through the VAE, in dB."""
    error = (through(vae, pictures).float() - pictures.float()).square().mean().item()
    return 10 * math.log10(255**2 / error)


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The uint8 pictures after encoding and decoding."""
    parts = [
        as_picture(vae.decode(vae.encode(as_input(part)).latent_dist.mode()).sample)
        for part in torch.split(pictures, 50)
    ]
    return torch.cat(parts)


@torch.no_grad()
def normalise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give each latent channel the mean 0 and, scaled by SCALE, the deviation 1.

    The factors go into the 1x1 convolutions around the latents, so pictures stay the same.
    """
    parts = [vae.encode(as_input(part)).latent_dist.mode() for part in torch.split(pictures, 50)]
    latents = torch.cat(parts).transpose(0, 1).flatten(1)
    mean, factor = latents.mean(1), 1 / (latents.std(1) * SCALE)
    into, out = vae.quant_conv, vae.post_quant_conv
    assert into is not None and out is not None and into.bias is not None and out.bias is not None
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= factor.view(1, -1, 1, 1)
    into.weight[:4] *= factor.view(-1, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) * factor
    into.bias[4:] += 2 * factor.log()


def main() -> None:
    """Read the command line and train."""
    given = command_line(
        __doc__, "folder for the checkpoint and the trained VAE", steps=2400, decay=800
    )

    rng = random.Random(given.seed)
    scenes = [training_scene(rng) for _ in range(_PICTURES)]
    pictures = drawn(scenes, some_styles(_PICTURES, 0.6, rng), given.seed)
    rng = random.Random(given.seed + 1)
    unseen_scenes = [held_out_scene(rng) for _ in range(96)]
    unseen_styles = some_styles(96, 0.5, rng)
    unseen = drawn(unseen_scenes, unseen_styles, given.seed + 1)
    vae = new_vae(given.seed)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(0, _PICTURES, (_BATCH,), generator=generator)
        wanted = as_input(pictures[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(wanted).latent_dist
            latents = posterior.sample(generator)
            got: Tensor = vae.decode(latents).sample.float()
        kl: Tensor = posterior.kl().mean() / latents[0].numel()
        return F.l1_loss(got, wanted) + F.mse_loss(got, wanted) + _KL * kl

    def look(step: int) -> None:
        page = torch.stack([unseen[:24], through(vae, unseen[:24])], 1).flatten(0, 1)
        Image.fromarray(sheet(page, 12)).save(given.work / "vae.png")
        log.info("step %d: %.2f dB held out", step, decibels(vae, unseen))

    plan = Plan(
        given.work / "vae.safetensors", given.steps, 2e-3, given.decay,
        minutes=given.minutes, ema=0.995, seed=given.seed,
    )  # fmt: skip
    if train(vae, plan, loss, look=look, look_every=200):
        normalise(vae, pictures[:1000])
        plain = [number for number, style in enumerate(unseen_styles) if not style]
        log.info("plain %.2f dB, all %.2f dB", decibels(vae, unseen[plain]), decibels(vae, unseen))
        vae.save_pretrained(given.work / "vae")


if __name__ == "__main__":
    main()
