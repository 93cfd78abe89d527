"""A recipe with everything that it names, read and checked; and who watches the work on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llm_lora import base as bases
from llm_lora import dataset as datasets
from llm_lora import gates
from llm_lora.base import Base
from llm_lora.chat import Chat
from llm_lora.dataset import Dataset
from llm_lora.engines.events import Progress
from llm_lora.recipe import Recipe
from llm_lora.run import Run
from llm_lora.schema import AnswerSchema

_TOKENS_HEADROOM = 1.25


class Watcher(Protocol):
    """Whoever shows the pipeline's progress: the command line, or nobody."""

    def stage(self, title: str) -> None:
        """A new stage begins."""

    def say(self, text: str) -> None:
        """A decision or a fact worth a line."""

    def progress(self, progress: Progress) -> None:
        """Work goes on."""

    def checked(self, dataset: Dataset) -> None:
        """The dataset passed its check."""

    def began(self, here: Run) -> None:
        """The run's folder is there; from now on it can be resumed."""


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything that it names, read and checked."""

    recipe: Recipe
    base: Base
    chat: Chat
    schema: AnswerSchema | None
    dataset: Dataset


def prepare(recipe: Recipe) -> Prepared:
    """Read the base's tokenizer, the schema and the data, and check them; no heavy import.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    base = bases.resolve(recipe.base, recipe.revision)
    chat = Chat.load(base.path)
    path = recipe.data.answer_schema
    schema = AnswerSchema.load(path) if path is not None else None
    if schema is not None:
        check, where = recipe.check, f"{recipe.name} recipe"
        gates.require_fields(schema, [*check.fields], [*check.tolerance], where)
    return Prepared(recipe, base, chat, schema, datasets.prepare(recipe, schema, chat))


def max_new_tokens(prepared: Prepared) -> int:
    """The recipe's limit, or else what the longest training answer needs, with a quarter more."""
    if prepared.recipe.generate.max_new_tokens is not None:
        return prepared.recipe.generate.max_new_tokens
    answers = prepared.dataset.stats["tokens"]["answer"]
    longest = max(answers[: len(prepared.dataset.train)])
    return -(-int(longest * _TOKENS_HEADROOM) // 16) * 16
