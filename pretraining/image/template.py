"""Generator of the pictures in `data_templates/style_lora`; the same ones every time.

python -m pretraining.image.template data_templates/style_lora
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from pretraining.image.scenes import Scene, caption, training_scene
from pretraining.image.styles import STYLES

STYLE = "ink sketch style"
SETS = {"train": (60, 11), "held_out": (16, 12)}  # how many pictures, and the seed
UNSEEN_SHAPES = ("heart", "cross")  # left for asking what the style does to something new


def scenes(count: int, seed: int) -> list[Scene]:
    """Different scenes without patterns, which the style does not show."""
    rng = random.Random(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = training_scene(rng, plain=1.0)
        if scene.shape not in UNSEEN_SHAPES:
            found.setdefault(caption(scene), scene)
    return list(found.values())


def write(folder: Path) -> None:
    """Draw both sets, each with its `metadata.csv`."""
    for name, (count, seed) in SETS.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        rng = random.Random(seed)
        rows = [("filename", "prompt")]
        for number, scene in enumerate(scenes(count, seed)):
            file = f"{number:03}.png"
            STYLES[STYLE](scene, rng).save(place / file, optimize=True)
            rows.append((file, caption(scene)))
        with (place / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
