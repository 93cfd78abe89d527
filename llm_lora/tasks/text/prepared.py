"""A text recipe with its base, schema and data, read and checked."""

from __future__ import annotations

from dataclasses import dataclass

from llm_lora.base import Base, Chat
from llm_lora.base import text as bases
from llm_lora.data.text import Dataset
from llm_lora.data.text import dataset as datasets
from llm_lora.errors import UserError
from llm_lora.example import TooFewLeft
from llm_lora.recipe.text import Recipe
from llm_lora.schema import AnswerSchema
from llm_lora.scores import gates

_TOKENS_HEADROOM = 1.25


@dataclass(frozen=True)
class Prepared:
    """A recipe with its base, schema and data, read and checked."""

    recipe: Recipe
    base: Base
    chat: Chat
    schema: AnswerSchema | None
    dataset: Dataset

    def inputs(self) -> dict[str, str | None]:
        """Digests of all inputs of a run."""
        return {
            "dataset": self.dataset.fingerprint,
            "schema": self.schema.digest if self.schema else None,
            "base": self.base.digest,
        }


def prepare(recipe: Recipe) -> Prepared:
    """Read and check the base's tokenizer, the schema and the data, without heavy imports.

    Raises:
        UserError: a mistake in any of them.
    """
    base = bases.resolve(recipe.base, recipe.revision)
    chat = Chat.load(base.path)
    path = recipe.data.answer_schema
    schema = AnswerSchema.load(path) if path is not None else None
    check, where = recipe.check, f"{recipe.name} recipe"
    if schema is not None:
        gates.require_fields(schema, [*check.fields], [*check.tolerance], where)
    dataset = datasets.prepare(recipe, schema, chat)
    try:
        gates.require_parts(check.gates(), dataset.stats.parts["held_out"], where)
    except UserError as error:
        raise TooFewLeft(error.problems, dataset.rejected) from None
    return Prepared(recipe, base, chat, schema, dataset)


def max_new_tokens(prepared: Prepared) -> int:
    """The recipe's limit, or else 25% more than the longest training answer needs."""
    if prepared.recipe.generate.max_new_tokens is not None:
        return prepared.recipe.generate.max_new_tokens
    answers = prepared.dataset.stats.tokens["answer"]
    longest = max(answers[: len(prepared.dataset.train)])
    return -(-int(longest * _TOKENS_HEADROOM) // 16) * 16
