"""An image recipe with its base, schema and pictures, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_lora.adapter import folder as adapters
from llm_lora.adapter.webui import files as lora_files
from llm_lora.base import PictureBase
from llm_lora.base import image as picture_base
from llm_lora.data import CHECK
from llm_lora.data.image import PictureDataset
from llm_lora.data.image import dataset as pictures
from llm_lora.errors import UserError
from llm_lora.recipe.image import ImageRecipe
from llm_lora.run import Run
from llm_lora.schema import AnswerSchema
from llm_lora.scores.image import gates as picture_gates
from llm_lora.vision import judges
from llm_lora.weights import header


@dataclass(frozen=True)
class Prepared:
    """An image recipe with everything that it names, read and checked."""

    recipe: ImageRecipe
    base: PictureBase
    schema: AnswerSchema | None
    dataset: PictureDataset

    @property
    def resolution(self) -> int:
        """Side in pixels of the square size of training."""
        return self.recipe.data.resolution or self.base.resolution

    def inputs(self) -> dict[str, str | None]:
        """Digests of all inputs of a run."""
        start = self.recipe.train.start_from
        return {
            "dataset": self.dataset.fingerprint,
            "order of pictures": self.dataset.order,
            "base": self.base.digest,
            "schema": self.schema.digest if self.schema else None,
            "start_from": header.sampled_sha256(lora_files.weights_file(start)) if start else None,
        }


def prepare(recipe: ImageRecipe) -> Prepared:
    """Find the base, read and check the pictures; no heavy import.

    Raises:
        UserError: any problem with them.
    """
    try:
        base = base_of(recipe)
        schema = _schema(recipe)
        judges.find(recipe.judge)
        if recipe.train.start_from is not None:
            _require_start(recipe.train.start_from)
    except UserError as error:
        # Unreadable folders are reported together with it, not at the next attempt.
        raise UserError([*error.problems, *pictures.unreadable(recipe.data)]) from None
    resolution = recipe.data.resolution or base.resolution
    dataset = pictures.prepare(
        recipe,
        resolution,
        tokenizer=base.config / "tokenizer",
        learned=_learned(recipe.train.start_from),
    )
    return Prepared(recipe, base, schema, dataset)


def _schema(recipe: ImageRecipe) -> AnswerSchema | None:
    """The bounds that measurements must fit."""
    path = recipe.data.answer_schema
    if path is None:
        return None
    schema = AnswerSchema.load(path)
    picture_gates.require_known(schema)
    return schema


def base_of(recipe: ImageRecipe) -> PictureBase:
    """The base that a recipe names."""
    return picture_base.resolve(recipe.base, recipe.revision, prediction=recipe.train.prediction)


def _require_start(start: Path) -> None:
    """Require weights to start from.

    Raises:
        UserError: there are none, or they are pickled.
    """
    path = lora_files.weights_file(start)
    if not path.is_file():
        raise UserError(
            f"train.start_from: no {adapters.WEIGHTS} here" if start.is_dir()
            else "train.start_from: no such folder or file",
            where=str(start),
            fix="name the folder adapter/ of a run, or a .safetensors file",
        )  # fmt: skip
    if path.suffix != ".safetensors":
        raise UserError(
            f"train.start_from: pickled weights ({path.suffix}), which may run code on loading",
            where=str(start),
            fix="name a .safetensors file",
        )


def _learned(start: Path | None) -> frozenset[str]:
    """Digests of the pictures that an adapter learned, if it is in its run's folder."""
    homes = (start.parent, start.parent.parent) if start is not None and start.is_dir() else ()
    for home in homes:
        folder = Run(home).dataset
        if (folder / CHECK).is_file():
            return frozenset(
                one.sha256 for one in PictureDataset.read(folder, unchanged=False).train
            )
    return frozenset()
