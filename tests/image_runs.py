"""Small trainings on pictures that several tests share: a random base, drawn pictures, seconds."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import drawn
import picture_models
import torch

from llm_lora import image_task, picture_base
from llm_lora import recipe as recipes
from llm_lora.engines import image, picture_loading
from llm_lora.engines.events import Fit
from llm_lora.engines.picture_loading import Loaded

# Tests neither use nor fill the user's own cache.
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
    """A folder with a random base, twelve drawn pictures and a recipe; the recipe's path."""
    picture_models.make(folder / family, family)  # type: ignore[arg-type]
    drawn.folder(folder / "data", 12, (48, 40))
    path = folder / "small.yaml"
    path.write_text(RECIPE.format(family=family))
    return path


def train(recipe: Path, out: Path, *overrides: str, **options: Any) -> Fit:
    """Train in this process; `out` becomes what a run's folder is."""
    prepared = image_task.prepare(recipes.load(recipe, overrides=overrides))
    out.mkdir(parents=True, exist_ok=True)
    return image.fit(
        prepared.recipe,
        prepared.dataset,
        prepared.base,
        adapter=out / "adapter",
        checkpoints=out / "checkpoints",
        metrics=out / "metrics.jsonl",
        tensorboard=out / "tensorboard",
        samples=out / "samples",
        **options,
    )


def loaded(folder: Path) -> Loaded:
    """A base in memory."""
    return picture_loading.load(picture_base.resolve(str(folder)), "fp32")


def weights(out: Path) -> bytes:
    """The bytes of a trained adapter."""
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()
