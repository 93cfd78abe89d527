"""The models that judge an image adapter, found before training starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from llm_lora.errors import Problem, UserError
from llm_lora.recipe.image import ImageJudge
from llm_lora.vision import models as vision_models
from llm_lora.vision.models import FaceModel, VisionModel

T = TypeVar("T")

_CLIP = "name tiny, or a CLIP model such as openai/clip-vit-large-patch14 or its folder"
_DINO = "write faces, or name a DINO model such as facebook/dinov2-small or its folder"


@dataclass(frozen=True)
class Judges:
    """Models that compare pictures; `likeness` is None if the embedder also does that."""

    embedder: VisionModel
    likeness: VisionModel | FaceModel | None


def find(judge: ImageJudge) -> Judges:
    """Find the models that a recipe names.

    Raises:
        UserError: a model is missing, is of another kind, or is incomplete.
    """
    problems: list[Problem] = []

    def found(setting: str, name: str, search: Callable[[], T], fix: str | None) -> T | None:
        try:
            return search()
        except UserError as error:
            where = f"judge.{setting}: {name}"
            problems.extend(Problem(one.what, where, fix or one.fix) for one in error.problems)
            return None

    embedder = found(
        "embedder", judge.embedder, lambda: vision_models.resolve(judge.embedder, "clip"), _CLIP
    )
    name = judge.likeness
    likeness: VisionModel | FaceModel | None = None
    if name == vision_models.FACES:
        likeness = found("likeness", name, vision_models.resolve_faces, None)
    elif name is not None:
        likeness = found(
            "likeness", name, lambda: vision_models.resolve(name, *vision_models.DINO), _DINO
        )
    if problems or embedder is None:
        raise UserError(problems)
    return Judges(embedder, likeness)
