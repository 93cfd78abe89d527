"""Training of the UNet on plain drawings, with the finished VAE and text encoder frozen.

Pictures are drawn and encoded once. The text encoder is the judge's, so words already have a
meaning at the first step.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pretraining.image import pipeline as tiny
from pretraining.image.following import following
from pretraining.image.pictures import as_input, drawn, sheet
from pretraining.image.scenes import Scene, caption, held_out_scene, training_scene, vary
from pretraining.image.styles import PLAIN
from pretraining.image.tokenizer import token_ids
from pretraining.image.training import Plan, command_line, train
from pretraining.image.vae import SCALE

log = logging.getLogger("pretraining")

_BATCH = 32
_PICTURES = 10_000
_CAPTIONS = 3  # forms of each caption
_UNSAID = 0.1  # share of empty captions, for guidance
_PLAIN = 0.85  # chance each of no texture and of no pattern on the ground


def main() -> None:
    """Read the command line and train."""
    given = command_line(
        __doc__, "folder with vae/ and judge/; gets pipeline/", steps=4000, decay=1200
    )

    vae = AutoencoderKL.from_pretrained(given.work / "vae").eval()
    judge = CLIPModel.from_pretrained(given.work / "judge").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(given.work / "judge")
    text = tiny.text_encoder(judge)
    unet = tiny.new_unet(given.seed)
    pipeline = tiny.assemble(unet, vae, text, tokenizer)

    rng = random.Random(given.seed)
    scenes = [training_scene(rng, plain=_PLAIN) for _ in range(_PICTURES)]
    latents = _latents(vae, scenes, given.work / "latents.safetensors", given.seed)
    ids = torch.stack(
        [token_ids(tokenizer, [vary(s, rng) for s in scenes]) for _ in range(_CAPTIONS)], 1
    )
    empty = token_ids(tokenizer, [""])[0]
    alphas = pipeline.scheduler.alphas_cumprod

    def loss(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(0, _PICTURES, (_BATCH,), generator=generator)
        form = torch.randint(0, _CAPTIONS, (_BATCH,), generator=generator)
        said = ids[chosen, form]
        said[torch.rand(_BATCH, generator=generator) < _UNSAID] = empty
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        # One time from each of equal spans: the loss scatters less than with free times.
        spans = (torch.arange(_BATCH) + torch.rand(_BATCH, generator=generator)) / _BATCH
        times = (spans * 1000).long()
        signal = alphas[times].sqrt().view(-1, 1, 1, 1)
        rest = (1 - alphas[times]).sqrt().view(-1, 1, 1, 1)
        with torch.no_grad():
            words = text(said).last_hidden_state
        got = unet(signal * clean + rest * noise, times, words).sample
        error: Tensor = got - (signal * noise - rest * clean)
        return error.square().mean()

    rng = random.Random(given.seed + 1)
    asked = [
        Scene(s.shape, s.colour, s.ground_colour)
        for s in [training_scene(rng) for _ in range(36)] + [held_out_scene(rng) for _ in range(12)]
    ]

    def look(step: int) -> None:
        unet.eval()
        painted = tiny.paint(pipeline, [caption(scene) for scene in asked], given.seed)
        unet.train()
        Image.fromarray(sheet(painted, 12)).save(given.work / "unet.png")
        log.info("step %d follows: %s", step, following(painted, asked))
        tiny.save(pipeline, given.work / "pipeline")

    plan = Plan(
        given.work / "unet.safetensors", given.steps, 1e-3, given.decay,
        minutes=given.minutes, warm_up=100, ema=0.998, seed=given.seed,
    )  # fmt: skip
    if train(unet, plan, loss, look=look, look_every=250):
        tiny.save(pipeline, given.work / "pipeline")


@torch.no_grad()
def _latents(vae: AutoencoderKL, scenes: list[Scene], cache: Path, seed: int) -> Tensor:
    """The scenes' scaled latents, from the cache file where it exists."""
    if cache.exists():
        return load_file(cache)["latents"]
    pictures = drawn(scenes, [PLAIN] * len(scenes), seed)
    parts = [vae.encode(as_input(part)).latent_dist.mode() for part in torch.split(pictures, 50)]
    latents: Tensor = torch.cat(parts) * SCALE
    log.info("latents: mean %.3f, deviation %.3f", latents.mean(), latents.std())
    save_file({"latents": latents}, cache)
    return latents


if __name__ == "__main__":
    main()
