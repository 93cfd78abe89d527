"""Installer of the trained models into `llm_lora/assets`; prints their held-out figures."""

from __future__ import annotations

import argparse
import random
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from pretraining.image.following import following
from pretraining.image.judge import PROPERTIES, accuracy
from pretraining.image.pictures import drawn, some_styles
from pretraining.image.pipeline import paint
from pretraining.image.scenes import Scene, caption, held_out_scene, training_scene
from pretraining.image.styles import STYLES
from pretraining.image.vae import decibels

ASSETS = Path(__file__).parents[2] / "llm_lora" / "assets"


def figures(base: Path, judge: Path, count: int) -> list[str]:
    """Figures of base and judge, one line each, from `count` pictures for each figure."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    lines = []
    rng = random.Random(1000)
    unseen = [held_out_scene(rng) for _ in range(count)]
    for style in STYLES:
        ratio = decibels(pipeline.vae, drawn(unseen, [style] * count, 1))
        lines.append(f"VAE, {style or 'plain'}: {ratio:.1f} dB")
    for name, make in (("trained", training_scene), ("unseen", held_out_scene)):
        asked = [_bare(make(rng)) for _ in range(count)]
        painted = paint(pipeline, [caption(scene) for scene in asked], 500)
        lines.append(f"follows, {name} pairs: {_percent(following(painted, asked))}")
    model = CLIPModel.from_pretrained(judge, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(judge)
    styles = some_styles(count, 0.4, rng)
    pictures = drawn(unseen, styles, 2)
    right = {
        name: accuracy(model, tokenizer, pictures, unseen, styles, name) for name in PROPERTIES
    }
    lines.append(f"judge, unseen pairs: {_percent(right)}")
    return lines


def _bare(scene: Scene) -> Scene:
    return replace(scene, size="", place="", texture="", ground="")


def _percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def main() -> None:
    """Read the command line, copy and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder with pipeline/ and judge/")
    parser.add_argument("--count", type=int, default=96, help="pictures for each figure")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for source, target in (("pipeline", "tiny_image"), ("judge", "tiny_judge")):
        shutil.copytree(given.work / source, ASSETS / target, dirs_exist_ok=True)
    for line in figures(ASSETS / "tiny_image", ASSETS / "tiny_judge", given.count):
        print(line)


if __name__ == "__main__":
    main()
