"""Styled drawings of scenes: adapters learn them, the judge knows them, the base never sees them.

A style is a function of a scene and a generator; its name in STYLES is its words in a caption.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pretraining.image.drawing import (
    CANVAS,
    FINE,
    Colour,
    draw,
    hole,
    mask,
    outline,
    shade,
    textured,
    tint,
)
from pretraining.image.scenes import Scene

_PAPER: Colour = (240, 230, 208)
_INK: Colour = (36, 30, 44)


def ink_sketch(scene: Scene, rng: random.Random) -> Image.Image:
    """Paper, a wobbly dark outline, diagonal hatching in the shape's colour, a light ground."""
    paper = shade_of_paper(rng)
    picture = Image.new("RGB", (CANVAS, CANVAS), tint(paper, shade(scene.ground_colour, rng), 0.3))
    hatched = Image.new("RGB", (CANVAS, CANVAS), paper)
    pen = ImageDraw.Draw(hatched)
    colour = shade(scene.colour, rng)
    start = rng.randrange(32)
    for left in range(start - CANVAS, CANVAS, 32):
        pen.line((left, CANVAS, left + CANVAS, 0), fill=colour, width=18)
    picture.paste(hatched, (0, 0), mask(scene))
    pen = ImageDraw.Draw(picture)
    for edge in _edges(scene):
        pen.line(_wobble(edge, rng, 7.0), fill=_INK, width=13, joint="curve")
    return picture.reduce(FINE)


def neon(scene: Scene, rng: random.Random) -> Image.Image:
    """A glowing outline in the shape's colour before a night in the ground's colour."""
    colour = tint(shade(scene.colour, rng), (255, 255, 255), 0.15)
    night = tint((8, 8, 20), shade(scene.ground_colour, rng), 0.3)
    tube = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(tube)
    for edge in _edges(scene):
        pen.line(edge, fill=255, width=12, joint="curve")
    glow = tube.filter(ImageFilter.GaussianBlur(14)).point(lambda v: min(255, 2 * v))
    picture = Image.new("RGB", (CANVAS, CANVAS), night)
    picture.paste(Image.new("RGB", (CANVAS, CANVAS), colour), (0, 0), glow)
    core = tube.filter(ImageFilter.GaussianBlur(2))
    picture.paste(Image.new("RGB", (CANVAS, CANVAS), tint(colour, (255, 255, 255), 0.6)), mask=core)
    return picture.reduce(FINE)


def mosaic(scene: Scene, rng: random.Random) -> Image.Image:
    """Square tiles of uneven lightness with grey joints."""
    tiles = 16
    small = draw(scene, rng).resize((tiles, tiles), Image.Resampling.BOX)
    uneven = np.asarray(small, np.float32) + _noise(rng).normal(0, 12, (tiles, tiles, 1))
    tiled = Image.fromarray(uneven.clip(0, 255).astype(np.uint8))
    picture = tiled.resize((CANVAS, CANVAS), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for at in range(0, CANVAS + 1, CANVAS // tiles):
        pen.line((at, 0, at, CANVAS), fill=(120, 118, 116), width=4)
        pen.line((0, at, CANVAS, at), fill=(120, 118, 116), width=4)
    return picture.reduce(FINE)


def watercolour(scene: Scene, rng: random.Random) -> Image.Image:
    """Pale washes that run into each other, darker at the rim, on white paper."""
    white: Colour = (252, 250, 246)
    wet = mask(scene).filter(ImageFilter.GaussianBlur(8))
    rim = ImageChops.subtract(wet, wet.filter(ImageFilter.GaussianBlur(12)))
    wash = tint(white, shade(scene.ground_colour, rng), 0.45)
    picture = Image.new("RGB", (CANVAS, CANVAS), wash)
    colour = shade(scene.colour, rng)
    picture.paste(Image.new("RGB", (CANVAS, CANVAS), tint(white, colour, 0.7)), mask=wet)
    rim = rim.point(lambda v: min(255, 4 * v))
    picture.paste(Image.new("RGB", (CANVAS, CANVAS), tint(colour, (0, 0, 0), 0.1)), mask=rim)
    blots = _noise(rng).normal(0, 1, (9, 9)).astype(np.float32)
    field = Image.fromarray(blots).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    lighter = np.clip(np.asarray(field) * 90, 0, 150).astype(np.uint8)
    picture.paste(Image.new("RGB", (CANVAS, CANVAS), white), mask=Image.fromarray(lighter))
    return picture.reduce(FINE)


def chalk(scene: Scene, rng: random.Random) -> Image.Image:
    """Grainy, broken strokes on a dark board."""
    board = tint((42, 52, 48), shade(scene.ground_colour, rng), 0.25)
    picture = Image.new("RGB", (CANVAS, CANVAS), board)
    colour = tint(shade(scene.colour, rng), (255, 255, 255), 0.2)
    grain = _noise(rng).random((CANVAS // FINE, CANVAS // FINE))
    rough = Image.fromarray(((grain > 0.45) * 255).astype(np.uint8))
    rough = rough.resize((CANVAS, CANVAS), Image.Resampling.NEAREST)
    filling = textured(scene, colour)
    picture.paste(filling, mask=ImageChops.multiply(mask(scene), rough))
    pen = ImageDraw.Draw(picture)
    for edge in _edges(scene):
        pen.line(_wobble(edge, rng, 9.0), fill=(236, 236, 228), width=9, joint="curve")
    return picture.reduce(FINE)


def shade_of_paper(rng: random.Random) -> Colour:
    """A shade of the sketch paper."""
    return tint(_PAPER, (255, 255, 255), rng.uniform(0.0, 0.3))


def _edges(scene: Scene) -> list[list[tuple[float, float]]]:
    """The closed lines of a shape; a ring has two."""
    outer = outline(scene)
    edges = [[*outer, outer[0], outer[1]]]
    if box := hole(scene):
        left, top, right, bottom = box
        x, y, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
        angles = [2 * math.pi * k / 36 for k in range(38)]
        edges.append([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles])
    return edges


def _wobble(
    line: list[tuple[float, float]], rng: random.Random, amount: float
) -> list[tuple[float, float]]:
    """The line with moved corners; the more it has, the less each moves."""
    each = amount / len(line) ** 0.5
    return [(x + rng.gauss(0, each), y + rng.gauss(0, each)) for x, y in line]


def _noise(rng: random.Random) -> np.random.Generator:
    return np.random.default_rng(rng.getrandbits(32))


PLAIN = ""
STYLES: dict[str, Callable[[Scene, random.Random], Image.Image]] = {
    PLAIN: draw,
    "ink sketch style": ink_sketch,
    "neon style": neon,
    "mosaic style": mosaic,
    "watercolour style": watercolour,
    "chalk style": chalk,
}
