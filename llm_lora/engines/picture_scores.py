"""Measuring an adapter that paints: it paints what it never saw, and its pictures are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llm_lora.engines.events import Fit, Listener, Progress, silent
from llm_lora.engines.painting import Painter, Settings
from llm_lora.engines.picture_sheets import Pixels, sheet, write_picture
from llm_lora.picture_base import PictureBase
from llm_lora.pictures import PictureDataset
from llm_lora.recipe_image import ImageRecipe

STRENGTHS = "strengths.png"

_HELD_OUT = 4
"""Captions of held-out pictures to paint, where the recipe has no prompts."""


def judge(
    recipe: ImageRecipe,
    dataset: PictureDataset,
    base: PictureBase,
    *,
    adapter: Path,
    pictures: Path,
    fit: Fit,
    listener: Listener = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure an adapter.

    Args:
        recipe: prompts, seeds, strengths, and how to paint.
        dataset: held-out pictures.
        base: the frozen pipeline.
        adapter: the adapter's folder.
        pictures: where to write what was painted.
        fit: what training did.
        listener: told about progress.
        tell: told every decision, as a sentence.

    Returns:
        `scores`: a figure for each dimension that was measured; `reasons`: why others were not;
        `strengths`: for each strength, `strength` and `change`, the root mean square difference
        from the pictures of the bare base in steps of 0 to 255.

    Raises:
        UserError: the adapter does not fit, or memory ran out.
    """
    prompts = recipe.judge.prompts or tuple(
        picture.caption for picture in dataset.held_out[:_HELD_OUT]
    )
    asked = [prompt for prompt in prompts for _ in range(recipe.judge.seeds)]
    seeds = [recipe.generate.seed + i for _ in prompts for i in range(recipe.judge.seeds)]
    resolution = recipe.data.resolution or base.resolution
    settings = Settings.of(recipe.generate, resolution)
    painter = Painter(base, [(adapter, 1.0)], recipe.train.precision)
    tell(f"{len(asked)} pictures at {len(recipe.judge.strengths)} strengths")
    columns: list[list[Pixels]] = []
    for number, strength in enumerate(recipe.judge.strengths):
        columns += painter.strengths(asked, [strength], settings, seeds)
        listener(Progress("painting", number + 1, len(recipe.judge.strengths)))
    shown = [column[:: recipe.judge.seeds] for column in columns]
    titles = [f"{strength:g}" for strength in recipe.judge.strengths]
    write_picture(pictures / STRENGTHS, sheet(shown, titles))
    bare = columns[0]
    changes = [_change(column, bare) for column in columns]
    rises = [later > earlier for earlier, later in pairwise(changes)]
    return {
        "scores": {"strength": sum(rises) / len(rises)},
        "strengths": [
            {"strength": strength, "change": round(change, 3)}
            for strength, change in zip(recipe.judge.strengths, changes, strict=True)
        ],
    }


def _change(pictures: Sequence[Pixels], others: Sequence[Pixels]) -> float:
    """The root mean square difference of two lists of pictures."""
    apart = np.stack(pictures).astype(np.float32) - np.stack(others).astype(np.float32)
    return float(np.sqrt(np.mean(apart**2)))
