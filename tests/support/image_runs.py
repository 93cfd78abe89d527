"""Small image trainings that several tests share: a random base, drawn pictures, seconds long."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support import drawn, picture_models

from llm_lora import recipe as recipes
from llm_lora.base import image as picture_base
from llm_lora.engines.image import engine as image
from llm_lora.engines.image import loading as picture_loading
from llm_lora.engines.image import painting
from llm_lora.engines.image import prompts as picture_prompts
from llm_lora.engines.image.loading import Loaded
from llm_lora.engines.image.painting import Settings
from llm_lora.engines.image.sheets import Pixels
from llm_lora.progress import Fit, Progress
from llm_lora.run import Run
from llm_lora.tasks.image import task as image_task

# Tests neither read nor fill the user's cache.
_CACHE = tempfile.mkdtemp(prefix="llm-lora-cache-")
os.environ["LLM_LORA_CACHE"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
torch.set_num_threads(1)

RECIPE = """
task: image
name: small
base: ./{family}
data:
  train: ./data
  held_out: 0.2
  bucket_step: 8
  min_size: 16
  blur: 0
  caption_dropout: 0.1
lora: {{rank: 4, alpha: 6}}
train:
  max_steps: 6
  batch_size: 4
  learning_rate: 1.0e-2
  save_every: 3
  sample_every: 6
  samples: [a red circle]
generate: {{steps: 2, batch_size: 2}}
"""


def make(folder: Path, family: str = "sd1") -> Path:
    """Make a folder with a random base, twelve drawn pictures and a recipe; returns its path."""
    picture_models.make(folder / family, family)  # type: ignore[arg-type]
    drawn.folder(folder / "data", 12, (48, 40))
    path = folder / "small.yaml"
    path.write_text(RECIPE.format(family=family))
    return path


def train(recipe: Path, out: Path, *overrides: str, **options: Any) -> Fit:
    """Train in this process; `out` becomes the run folder."""
    prepared = image_task.prepare(recipes.load(recipe, overrides=overrides))
    out.mkdir(parents=True, exist_ok=True)
    return image.fit(
        prepared.recipe,
        prepared.dataset,
        prepared.base,
        Run(out).places,
        **options,
    )


def loaded(folder: Path) -> Loaded:
    """A base in memory."""
    return picture_loading.load(picture_base.resolve(str(folder)), "fp32")


def weights(out: Path) -> bytes:
    """The bytes of a trained adapter."""
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def stop_after(step: int) -> Any:
    """A listener that presses Ctrl-C after a step."""

    def listener(progress: Progress) -> None:
        if progress.stage == "training" and progress.done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return listener


def through_diffusers(
    base: Path, files: Sequence[Path], weights: Sequence[float], prompt: str, seed: int,
    settings: Settings,
) -> Pixels:  # fmt: skip
    """A picture from diffusers' own pipeline and adapter loading."""
    made = loaded(base)
    names = [f"a{i}" for i in range(len(files))]
    for name, path in zip(names, files, strict=True):
        where = {"weight_name": "adapter_model.safetensors"} if path.is_dir() else {}
        made.pipe.load_lora_weights(str(path), adapter_name=name, **where)
    if names:
        made.pipe.set_adapters(names, list(weights))
    with torch.no_grad():
        told = picture_prompts.encode(made, [prompt])
        empty = picture_prompts.encode(made, [""])
        return painting.render(made, told, empty, [seed], settings)[0]
