"""Rule-based reading of plain pictures (shape, colours), to measure prompt following.

No neural network: the ground's colour is the median of the rim, the shape's colour the median of
what differs from it, and the shape is the drawn shape whose outline covers it best. It is meant for
pictures without patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor

from pretraining.image.drawing import FINE, mask
from pretraining.image.scenes import COLOURS, SHAPES, Scene

_BOX = 24  # side of a shape that was cut out, for comparing
_RIM = 3  # pixels
_LEAST = 24  # pixels; fewer are no shape
_TURNS = (-10.0, -5.0, 0.0, 5.0, 10.0)


@dataclass(frozen=True)
class Seen:
    """The content of a picture; "" if no shape was found."""

    shape: str
    colour: str
    ground_colour: str


def see(picture: np.ndarray) -> Seen:
    """Read the content of a uint8 picture of shape (64, 64, 3)."""
    values = picture.astype(np.float32)
    rim = np.ones(values.shape[:2], bool)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    ground = np.median(values[rim], axis=0)
    away = np.linalg.norm(values - ground, axis=2)
    strong = away > max(40.0, 0.6 * float(np.quantile(away, 0.99)))
    if strong.sum() < _LEAST:
        return Seen("", "", _name(ground))
    colour = np.median(values[strong], axis=0)
    inside = away > 0.5 * float(np.linalg.norm(colour - ground))
    return Seen(_shape(inside), _name(colour), _name(ground))


def following(pictures: Tensor, asked: Sequence[Scene]) -> dict[str, float]:
    """Shares of uint8 pictures (count, 3, 64, 64) with the shape and the colours asked for."""
    seen = [see(picture) for picture in pictures.permute(0, 2, 3, 1).numpy()]
    names = ("shape", "colour", "ground_colour")
    right = np.array(
        [
            [getattr(one, name) == getattr(scene, name) for name in names]
            for one, scene in zip(seen, asked, strict=True)
        ]
    )
    shares = dict(zip(names, right.mean(0).tolist(), strict=True))
    return {**shares, "all": float(right.all(1).mean())}


def _name(colour: np.ndarray) -> str:
    distances = {n: float(np.linalg.norm(colour - np.array(c))) for n, c in COLOURS.items()}
    return min(distances, key=lambda name: distances[name])


def _shape(inside: np.ndarray) -> str:
    cut = _cut(inside)
    scores: dict[str, float] = {}
    for shape in SHAPES:
        for known in _known(shape):
            overlap = (cut & known).sum() / max(1, (cut | known).sum())
            scores[shape] = max(scores.get(shape, 0.0), float(overlap))
    return max(scores, key=lambda shape: scores[shape])


@cache
def _known(shape: str) -> list[np.ndarray]:
    scenes = [Scene(shape, "red", "white", "big", turn=turn) for turn in _TURNS]
    return [_cut(np.asarray(mask(scene).reduce(FINE)) > 127) for scene in scenes]


def _cut(inside: np.ndarray) -> np.ndarray:
    """The box around the marked pixels, brought to a fixed size without changing its ratio."""
    rows, columns = np.nonzero(inside)
    box = inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    side = max(box.shape)
    square = np.zeros((side, side), bool)
    top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[top : top + box.shape[0], left : left + box.shape[1]] = box
    small = Image.fromarray(square.astype(np.uint8) * 255).resize((_BOX, _BOX))
    return np.asarray(small) > 127
