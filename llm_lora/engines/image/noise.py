"""Noise and loss of diffusion training: noised latents, targets, and their loss weights.

Everything random is drawn on the CPU from a seed of its own, independent of earlier draws: a
resumed run continues exactly, and a batch that is split in two sees the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_lora.chance import dice


@dataclass(frozen=True)
class Moments:
    """The VAE's encoding of a picture: mean and standard deviation, 4 x height x width."""

    mean: torch.Tensor
    spread: torch.Tensor


@dataclass(frozen=True)
class Noised:
    """Noised latents, their timesteps, and the target of the UNet for each.

    `weights` holds each picture's loss weight.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor


class Noise:
    """Adds noise to pictures according to the recipe."""

    def __init__(
        self,
        scheduler: Any,
        *,
        scaling: float,
        prediction: str,
        min_snr: float | None,
        offset: float,
        seed: int,
    ) -> None:
        """`scaling` is the VAE's; the others come from the recipe's block `train`."""
        self._scheduler = scheduler
        self._scaling = scaling
        self._prediction = prediction
        self._offset = offset
        self._seed = seed
        self.levels = int(scheduler.config.num_train_timesteps)
        self._weights = weights(scheduler.alphas_cumprod, prediction, min_snr)

    def learn(self, moments: Sequence[Moments], keys: Sequence[tuple[int, int]]) -> Noised:
        """Noise for training.

        Args:
            moments: of each picture, all of one size.
            keys: of each, the picture's number and how often it was shown before.
        """
        # The order of draws from a generator (latents, noise, offset, level) is part of the result.
        sampled, noises, timesteps = [], [], []
        for one, key in zip(moments, keys, strict=True):
            draw = generator("noise", self._seed, *key)
            sampled.append(one.mean + one.spread * torch.randn(one.mean.shape, generator=draw))
            noise = torch.randn(one.mean.shape, generator=draw)
            if self._offset:
                channels = one.mean.shape[0]
                noise += self._offset * torch.randn((channels, 1, 1), generator=draw)
            noises.append(noise)
            timesteps.append(torch.randint(self.levels, (), generator=draw))
        return self._put(torch.stack(sampled), torch.stack(noises), torch.stack(timesteps))

    def watch(self, moments: Sequence[Moments], keys: Sequence[tuple[int, int]], of: int) -> Noised:
        """Noise for measuring: the same every time, with all levels weighted equally.

        Args:
            moments: of each picture, all of one size.
            keys: of each, the picture's number and the number of its level.
            of: how many levels there are, spread evenly.
        """
        noises = [
            torch.randn(one.mean.shape, generator=generator("watch", self._seed, *key))
            for one, key in zip(moments, keys, strict=True)
        ]
        # The middle of each of `of` equal intervals: a fixed grid, where random levels would make
        # two measurements incomparable.
        timesteps = torch.tensor([round((key[1] + 0.5) / of * self.levels) for key in keys])
        noised = self._put(
            torch.stack([one.mean for one in moments]), torch.stack(noises), timesteps
        )
        return Noised(
            noised.latents, noised.timesteps, noised.target, torch.ones_like(noised.weights)
        )

    def _put(self, sampled: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Noised:
        latents = sampled * self._scaling
        noised = self._scheduler.add_noise(latents, noise, timesteps)
        if self._prediction == "v":
            target = self._scheduler.get_velocity(latents, noise, timesteps)
        else:
            target = noise
        return Noised(noised, timesteps, target, self._weights[timesteps])


def weights(alphas: torch.Tensor, prediction: str, limit: float | None) -> torch.Tensor:
    """Loss weight of each noise level: min-SNR (arXiv 2303.09556), or 1 for all.

    Args:
        alphas: the share of the signal's power that is left at each level.
        prediction: epsilon or v; the paper's weight is converted to the loss on this target.
        limit: gamma of the paper; None for equal weights.
    """
    if limit is None:
        return torch.ones_like(alphas)
    ratio = alphas / (1 - alphas)
    if prediction == "v":
        return ratio.clamp(max=limit) / (ratio + 1)
    # A last level with zero SNR would give 0 / 0.
    ratio = ratio.clamp(min=torch.finfo(ratio.dtype).tiny)
    return ratio.clamp(max=limit) / ratio


def loss(guess: torch.Tensor, noised: Noised, counts: torch.Tensor) -> torch.Tensor:
    """The sum over pictures of weight times mean squared error."""
    errors = (guess.float() - noised.target.to(guess.device)).square().mean(dim=(1, 2, 3))
    return (errors * (noised.weights * counts).to(guess.device)).sum()


def generator(*key: str | int) -> torch.Generator:
    """Torch's counterpart of `chance.dice`: equal keys give equal generators."""
    return torch.Generator().manual_seed(dice(*key).getrandbits(63))
