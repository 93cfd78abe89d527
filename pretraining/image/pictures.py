"""Drawn pictures as tensors."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pretraining.image.scenes import Scene
from pretraining.image.styles import PLAIN, STYLES


def drawn(scenes: Sequence[Scene], styles: Sequence[str], seed: int) -> Tensor:
    """uint8 pictures, shaped (count, 3, SIDE, SIDE), one for each scene and style."""
    rng = random.Random(seed)
    pairs = zip(scenes, styles, strict=True)
    pictures = np.stack([np.asarray(STYLES[style](scene, rng)) for scene, style in pairs])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def some_styles(count: int, plain: float, rng: random.Random) -> list[str]:
    """Random styles, a share `plain` of them plain."""
    others = [style for style in STYLES if style != PLAIN]
    return [PLAIN if rng.random() < plain else rng.choice(others) for _ in range(count)]


def as_input(pictures: Tensor) -> Tensor:
    """Floats from -1 to 1, as the VAE reads them."""
    return pictures.float() / 127.5 - 1


def as_picture(values: Tensor) -> Tensor:
    """The uint8 pictures that VAE outputs stand for."""
    return ((values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def sheet(pictures: Tensor, columns: int) -> np.ndarray:
    """One picture (height, width, 3) of many (count, 3, height, width), row by row."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    page = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        top, left = number // columns * height, number % columns * width
        page[top : top + height, left : left + width] = picture
    return page
