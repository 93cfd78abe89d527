"""Pictures drawn for tests: a sharp, colourful scene, different for each seed."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw


def scene(seed: object, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """Overlapping discs and bars on a background, scaled with the picture."""
    rng = random.Random(str(seed))

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    image = Image.new("RGB", size, colour())
    draw = ImageDraw.Draw(image)
    width, height = size
    for _ in range(12):
        x, y = rng.random() * width, rng.random() * height
        a, b = rng.uniform(0.05, 0.3) * width, rng.uniform(0.05, 0.3) * height
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - a, y - b, x + a, y + b), fill=colour())
    return image


def caption(seed: object) -> str:
    """A caption of a few tags, different for each seed."""
    rng = random.Random(f"caption {seed}")
    things = ["harbour", "garden", "tower", "river", "market", "forest", "bridge", "meadow"]
    lights = ["at dawn", "at noon", "in fog", "in rain", "at dusk", "under stars", "in snow"]
    return f"{rng.choice(things)} number {seed}, {rng.choice(lights)}, {rng.choice(things)} behind"


def folder(path: Path, count: int, size: tuple[int, int] = (128, 128), start: int = 0) -> Path:
    """A folder of `count` scenes as PNG with metadata.csv."""
    path.mkdir(parents=True, exist_ok=True)
    rows = ["file_name,text"]
    for seed in range(start, start + count):
        scene(seed, size).save(path / f"{seed:03}.png")
        rows.append(f'{seed:03}.png,"{caption(seed)}"')
    (path / "metadata.csv").write_text("\n".join(rows) + "\n")
    return path
