"""Plain drawings of scenes: flat colours, clean edges. The base is trained only on these."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from PIL import Image, ImageDraw

from pretraining.image.scenes import COLOURS, SIZES, Scene

SIDE = 64  # pixels of a finished picture
FINE = 4  # pictures are drawn this many times larger and averaged down
CANVAS = SIDE * FINE

Colour = tuple[int, int, int]
_JITTER = 10  # how far a channel may be off its colour's table


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as an RGB picture of SIDE by SIDE pixels; `rng` varies its colours a little."""
    picture = ground(scene, shade(scene.ground_colour, rng))
    inside = textured(scene, shade(scene.colour, rng))
    picture.paste(inside, (0, 0), mask(scene))
    return picture.reduce(FINE)


def shade(colour: str, rng: random.Random) -> Colour:
    """A shade of the named colour."""
    return _clip(channel + rng.randint(-_JITTER, _JITTER) for channel in COLOURS[colour])


def tint(colour: Colour, towards: Colour, share: float) -> Colour:
    """A mixture with `share` of the second colour."""
    return _clip(a + (b - a) * share for a, b in zip(colour, towards, strict=True))


def contrast(colour: Colour) -> Colour:
    """The colour of a pattern on this colour: darker, or lighter where it is dark."""
    dark = sum(colour) < 250
    return tint(colour, (255, 255, 255) if dark else (0, 0, 0), 0.45 if dark else 0.3)


def outline(scene: Scene) -> list[tuple[float, float]]:
    """The outer edge of the shape as a closed polygon in canvas coordinates."""
    radius = SIZES[scene.size] * CANVAS
    x, y = (share * CANVAS for share in scene.middle)
    angle = math.radians(scene.turn)
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        (x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos))
        for a, b in _POLYGONS[scene.shape]
    ]


def hole(scene: Scene) -> tuple[float, float, float, float] | None:
    """The box of a ring's hole in canvas coordinates; None for the other shapes."""
    if scene.shape != "ring":
        return None
    radius = 0.52 * SIZES[scene.size] * CANVAS
    x, y = (share * CANVAS for share in scene.middle)
    return x - radius, y - radius, x + radius, y + radius


def mask(scene: Scene) -> Image.Image:
    """Where the shape is: an "L" picture of the canvas size, 255 inside."""
    picture = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(picture)
    pen.polygon(outline(scene), fill=255)
    if box := hole(scene):
        pen.ellipse(box, fill=0)
    return picture


def ground(scene: Scene, colour: Colour) -> Image.Image:
    """The background on the canvas, with its pattern."""
    if scene.ground != "gradient":
        return pattern(scene.ground, colour, pitch=40)
    lower = tint(colour, contrast(colour), 0.9)
    rows = [tint(colour, lower, row / (CANVAS - 1)) for row in range(CANVAS)]
    column = Image.new("RGB", (1, CANVAS))
    column.putdata(rows)
    return column.resize((CANVAS, CANVAS))


def textured(scene: Scene, colour: Colour) -> Image.Image:
    """The canvas filled with the shape's colour and texture."""
    return pattern(scene.texture, colour, pitch=32)


def pattern(kind: str, colour: Colour, pitch: int) -> Image.Image:
    """A canvas of one colour with "striped", "dotted", "checkered" or no ("") marks on it."""
    picture = Image.new("RGB", (CANVAS, CANVAS), colour)
    pen = ImageDraw.Draw(picture)
    mark, half = contrast(colour), pitch // 2
    if kind == "striped":
        for left in range(0, CANVAS, pitch):
            pen.rectangle((left, 0, left + half - 1, CANVAS), fill=mark)
    elif kind == "dotted":
        radius = pitch * 0.27
        for row, y in enumerate(range(half, CANVAS + pitch, pitch)):
            for x in range(half * (row % 2), CANVAS + pitch, pitch):
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mark)
    elif kind == "checkered":
        for row, y in enumerate(range(0, CANVAS, half)):
            for x in range(half * (row % 2), CANVAS, pitch):
                pen.rectangle((x, y, x + half - 1, y + half - 1), fill=mark)
    return picture


def _clip(channels: Iterable[float]) -> Colour:
    red, green, blue = (max(0, min(255, round(c))) for c in channels)
    return red, green, blue


def _round(points: int = 48) -> list[tuple[float, float]]:
    angles = [2 * math.pi * k / points for k in range(points)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _star() -> list[tuple[float, float]]:
    corners = []
    for k in range(10):
        angle, radius = math.pi * (k / 5 - 0.5), (0.48 if k % 2 else 1.15)
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


def _heart(points: int = 48) -> list[tuple[float, float]]:
    curve = []
    for k in range(points):
        t = 2 * math.pi * k / points
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((x / 16, -(y + 2.5) / 15))
    return curve


def _cross(arm: float = 0.36) -> list[tuple[float, float]]:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    corners = []
    for cos, sin in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        corners += [(x * cos - y * sin, x * sin + y * cos) for x, y in quarter]
    return corners


# Corners around (0, 0); the extent is about 1.
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "circle": _round(),
    "ring": _round(),
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -1.05), (1.05, 0.8), (-1.05, 0.8)],
    "star": _star(),
    "heart": _heart(),
    "diamond": [(0.0, -1.15), (0.75, 0.0), (0.0, 1.15), (-0.75, 0.0)],
    "cross": _cross(),
}
