"""What a task of any kind reads from the folder of a trained run to reopen it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from llm_lora import recipe as recipes
from llm_lora.adapter import folder as adapters
from llm_lora.errors import UserError
from llm_lora.recipe import AnyRecipe
from llm_lora.run import Run
from llm_lora.schema import AnswerSchema

Model = TypeVar("Model", bound="AnyRecipe")


def recipe_of(here: Run, model: type[Model], *, other: str, fix: str) -> Model:
    """The recipe of a trained run.

    Args:
        here: the run.
        model: the model of the recipes of the task.
        other: the message about a run of another task, whose name replaces {task}.
        fix: advice for that message.

    Raises:
        UserError: training is not finished, or the run is of another task.
    """
    here.require_trained()
    recipe = recipes.load(here.recipe)
    if not isinstance(recipe, model):
        raise UserError(other.format(task=recipe.task), where=str(here.folder), fix=fix)
    return recipe


def schema_of(adapter: Path) -> AnswerSchema | None:
    """The schema that is stored with an adapter."""
    path = adapter / adapters.SCHEMA
    return AnswerSchema.load(path) if path.is_file() else None
