"""Image generation: pictures from prompts, with any number of adapters at individual weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from llm_lora import lora_prompt
from llm_lora.adapter import sources as picture_sources
from llm_lora.base import PictureBase
from llm_lora.engines.image import prompts as picture_prompts
from llm_lora.engines.image.loading import Loaded, load, sampler
from llm_lora.engines.image.noise import generator
from llm_lora.engines.image.prompts import Embedding
from llm_lora.engines.image.sheets import Pixels
from llm_lora.engines.image.stack import Stack, Weights
from llm_lora.engines.shared import out_of_memory
from llm_lora.errors import UserError
from llm_lora.lora_prompt import Pick
from llm_lora.recipe.image import ImageGenerate

Watch = Callable[[], None]
"""Called after every denoising step."""

_FIX = "ask for smaller pictures (size), or lower generate.batch_size, or take a smaller base"


@dataclass(frozen=True)
class Settings:
    """Generation settings; width and height in pixels, None for the base's own resolution."""

    steps: int = 30
    guidance: float = 7.5
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    scheduler: Literal["ddim", "euler", "dpm++"] = "ddim"
    batch_size: int = 4

    @classmethod
    def of(cls, generate: ImageGenerate, resolution: int) -> Settings:
        """The settings of a recipe, for the resolution of its training."""
        return cls(
            steps=generate.steps,
            guidance=generate.guidance,
            negative_prompt=generate.negative_prompt,
            width=generate.width or resolution,
            height=generate.height or resolution,
            scheduler=generate.scheduler,
            batch_size=generate.batch_size,
        )


class Painter:
    """A loaded base with adapters on it.

    Equal calls give equal pictures, whatever was generated in between: each picture's noise comes
    from its own seed, and weights are always added to the unmodified base.
    """

    def __init__(
        self,
        base: PictureBase,
        adapters: Sequence[tuple[Path, float]] = (),
        precision: str = "auto",
    ) -> None:
        """Load a base, and add adapters (folders or files, with their weights) to it.

        Raises:
            UserError: memory ran out, the base cannot be loaded, or an adapter does not fit it.
        """
        with out_of_memory(_FIX):
            self._loaded = load(base, precision)
        self._stack = Stack(self._loaded)
        self._own: dict[str, float] = {}
        for path, weight in adapters:
            self.put(path, weight)

    @property
    def base(self) -> PictureBase:
        """The base that generates the pictures."""
        return self._loaded.base

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters, as prompts use them."""
        return tuple(self._own)

    def put(self, path: Path, weight: float = 1.0, name: str | None = None) -> str:
        """Add an adapter to the base.

        Args:
            path: the folder of a run's adapter, or a .safetensors file of any known layout.
            weight: its strength in prompts that name no adapter.
            name: its name in prompts; if None, the name in its manifest, or its file's name.

        Returns:
            the name.

        Raises:
            UserError: it cannot be read, does not fit this base, or the name is taken.
        """
        name = name or picture_sources.own_name(path)
        if name in self._own:
            raise UserError(f"two adapters are named {name}", where=str(path), fix="rename one")
        self._stack.put(name, path)
        self._own[name] = weight
        return name

    def drop(self, name: str) -> None:
        """Remove an adapter; unknown names are ignored."""
        self._stack.drop(name)
        self._own.pop(name, None)

    def paint(
        self, prompts: Sequence[str], settings: Settings, seeds: Sequence[int]
    ) -> list[Pixels]:
        """One picture for each prompt and seed.

        A prompt that names adapters, `<lora:NAME:WEIGHT>`, uses only those; a prompt that names
        none uses all of them, at their own weights.

        Raises:
            UserError: a malformed or unknown name in a prompt, or memory ran out.
        """
        return self._paint(prompts, settings, seeds, 1.0)

    def paint_with(
        self,
        picks: Sequence[Pick],
        texts: Sequence[str],
        settings: Settings,
        seeds: Sequence[int],
        watch: Watch = lambda: None,
    ) -> list[Pixels]:
        """Pictures for texts with exactly these adapters; `<lora:…>` in a text has no effect.

        `watch` is called after every denoising step; an exception from it stops the generation.

        Raises:
            UserError: memory ran out.
        """
        with out_of_memory(_FIX), torch.no_grad():
            self._stack.wear({pick.name: Weights(pick.unet, pick.text) for pick in picks})
            return self._in_batches(texts, seeds, settings, watch)

    def strengths(
        self,
        prompts: Sequence[str],
        strengths: Sequence[float],
        settings: Settings,
        seeds: Sequence[int],
    ) -> list[list[Pixels]]:
        """The same prompts and seeds at each strength, which multiplies every adapter's weight.

        Raises:
            UserError: as `paint`.
        """
        return [self._paint(prompts, settings, seeds, strength) for strength in strengths]

    def _paint(
        self, prompts: Sequence[str], settings: Settings, seeds: Sequence[int], strength: float
    ) -> list[Pixels]:
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
        # Grouped by their adapters: weights are changed once for a group, not for every picture.
        jobs: dict[tuple[tuple[str, Weights], ...], list[int]] = {}
        texts = []
        for number, prompt in enumerate(prompts):
            text, worn = self._worn(prompt, strength)
            texts.append(text)
            jobs.setdefault(tuple(worn.items()), []).append(number)
        found: dict[int, Pixels] = {}
        with out_of_memory(_FIX), torch.no_grad():
            for worn_items, numbers in jobs.items():
                self._stack.wear(dict(worn_items))
                pictures = self._in_batches(
                    [texts[i] for i in numbers], [seeds[i] for i in numbers], settings
                )
                found |= zip(numbers, pictures, strict=True)
        return [found[number] for number in range(len(prompts))]

    def _worn(self, prompt: str, strength: float) -> tuple[str, Mapping[str, Weights]]:
        text, picks = lora_prompt.parse(prompt)
        unknown = [pick.name for pick in picks if pick.name not in self._own]
        if unknown:
            known = ", ".join(self._own) or "none"
            raise UserError(
                f"no adapter is named {', '.join(unknown)}",
                where="prompt",
                fix=f"there are: {known}; add one with --adapter NAME=PATH",
            )
        if not picks:
            return text, {
                name: Weights(weight * strength, weight * strength)
                for name, weight in self._own.items()
            }
        return text, {
            pick.name: Weights(pick.unet * strength, pick.text * strength) for pick in picks
        }

    def _in_batches(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        settings: Settings,
        watch: Watch = lambda: None,
    ) -> list[Pixels]:
        pictures: list[Pixels] = []
        negative = picture_prompts.encode(self._loaded, [settings.negative_prompt])
        for start in range(0, len(texts), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            told = picture_prompts.encode(self._loaded, texts[part])
            pictures += render(self._loaded, told, negative, seeds[part], settings, watch)
        return pictures


def render(
    loaded: Loaded,
    told: Embedding,
    negative: Embedding,
    seeds: Sequence[int],
    settings: Settings,
    watch: Watch = lambda: None,
) -> list[Pixels]:
    """Generate pictures from encoded prompts, one for each seed.

    Args:
        loaded: the base, with any adapter already applied.
        told, negative: encoded prompts, one for each seed; `negative` may be a single one.
        seeds: of each picture's initial noise.
        settings: its negative prompt is already in `negative`.
        watch: called after every denoising step.
    """
    pipe, count = loaded.pipe, len(seeds)
    told = told.to(loaded.device, loaded.compute)
    negative = negative.to(loaded.device, loaded.compute)
    shrink = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    side = loaded.base.resolution
    width, height = settings.width or side, settings.height or side
    shape = (pipe.unet.config.in_channels, height // shrink, width // shrink)
    noise = [torch.randn(shape, generator=generator("paint", seed)) for seed in seeds]
    more = {}
    if told.pooled is not None and negative.pooled is not None:
        more = {
            "pooled_prompt_embeds": told.pooled,
            "negative_pooled_prompt_embeds": negative.pooled.expand(count, -1),
        }

    def look(
        _: Any, __: int, ___: Any, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        watch()
        return tensors

    pipe.scheduler = sampler(loaded, settings.scheduler)
    latents = pipe(
        prompt_embeds=told.hidden,
        negative_prompt_embeds=negative.hidden.expand(count, -1, -1),
        latents=torch.stack(noise).to(loaded.device, loaded.compute),
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        width=width,
        height=height,
        output_type="latent",
        callback_on_step_end=look,
        **more,
    ).images
    vae = pipe.vae
    # While training, the VAE stays in the CPU's memory between samples.
    place = vae.device
    vae.to(loaded.device)
    # In fp32, because SDXL's VAE overflows in half precision; one by one, because decoding takes
    # more memory than denoising.
    with torch.autocast(loaded.device.type, enabled=False):
        pictures = [_decode(vae, one.float()) for one in latents]
    vae.to(place)
    return pictures


def _decode(vae: Any, latents: torch.Tensor) -> Pixels:
    values = vae.decode((latents / vae.config.scaling_factor)[None]).sample[0]
    scaled = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy())
