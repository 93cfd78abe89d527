"""Stacked adapters: added to a base's weights at individual strengths, and removable exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llm_lora.adapter.webui import Lora, Module
from llm_lora.adapter.webui import files as lora_files
from llm_lora.engines.image import lora as picture_lora
from llm_lora.engines.image.loading import Loaded


@dataclass(frozen=True)
class Weights:
    """An adapter's strength in the UNet and in the text encoders."""

    unet: float
    text: float

    def at(self, module: str) -> float:
        """The strength at a module."""
        return self.unet if module.startswith("unet.") else self.text


class Stack:
    """Adapters on one base.

    A module's weight is always computed anew, in fp32, as the base's own weight plus the adapters'
    updates at their strengths. So rounding errors never accumulate, and without adapters the base
    is restored bit for bit.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._modules = picture_lora.modules(loaded)
        self._family = loaded.base.family
        self._loras: dict[str, Lora] = {}
        self._plain: dict[str, torch.Tensor] = {}
        self._worn: list[tuple[str, Weights]] = []
        self._settled = True

    def put(self, name: str, path: Path) -> None:
        """Read an adapter and keep it in memory; `wear` applies it.

        Raises:
            UserError: it cannot be read, or does not fit the base.
        """
        lora = lora_files.read(path, self._family)
        shapes = {module: tuple(one.weight.shape) for module, one in self._modules.items()}
        lora_files.require_fit(lora, shapes, str(path))
        self._loras[name] = lora

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        self.wear({other: weights for other, weights in self._worn if other != name})
        self._loras.pop(name, None)

    def wear(self, strengths: Mapping[str, Weights]) -> None:
        """Apply exactly these adapters, at these strengths, summed in this order."""
        wanted = list(strengths.items())
        if self._settled and wanted == self._worn:
            return
        # Marks the weights as unknown until all are set: memory can run out in between.
        self._settled, self._worn = False, [*self._worn, *wanted]
        touched = {module for name, _ in self._worn for module in self._loras[name]}
        for module in touched:
            weight = self._modules[module].weight.data
            if module not in self._plain:
                # Kept off the GPU: the originals of a large base would take gigabytes there.
                self._plain[module] = weight.to("cpu", copy=True)
            plain = self._plain[module]
            added = [
                (self._loras[name][module], weights.at(module))
                for name, weights in wanted
                if module in self._loras[name] and weights.at(module)
            ]
            if not added:
                weight.copy_(plain)
                continue
            total = plain.to(weight.device, torch.float32)
            for update, strength in added:
                total = total + strength * _product(update, total)
            weight.copy_(total)
        self._settled, self._worn = True, wanted


def _product(update: Module, like: torch.Tensor) -> torch.Tensor:
    """alpha / rank x up @ down, in the shape of the weight that it is added to."""
    down, up = (
        torch.from_numpy(np.ascontiguousarray(half, np.float32)).to(like.device)
        for half in (update.down, update.up)
    )
    rank = update.rank
    product = up.reshape(-1, rank) @ down.reshape(rank, -1)
    return (update.alpha / rank) * product.reshape(like.shape)
