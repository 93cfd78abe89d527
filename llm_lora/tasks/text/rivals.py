"""The live version of an adapter's name, prepared for comparison with the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_lora.adapter import folder as adapters
from llm_lora.base import Base, Chat
from llm_lora.errors import UserError
from llm_lora.example import Example, Message
from llm_lora.schema import AnswerSchema
from llm_lora.scores import Rival
from llm_lora.store import Store, UnknownAdapter, Version


@dataclass(frozen=True)
class Opponent:
    """A live version that the engine can run: same base, same chat template."""

    version: Version

    @property
    def schema(self) -> AnswerSchema | None:
        """The schema that a server enforces for it."""
        path = self.version.folder / adapters.SCHEMA
        return AnswerSchema.load(path) if path.is_file() else None

    def prompts(self, held_out: Sequence[Example], system: str | None) -> list[tuple[Message, ...]]:
        """The held-out prompts under its own system prompt instead of the recipe's."""
        own = self.version.manifest.system
        put = (Message("system", own),) if own else ()
        return [
            (*put, *example.prompt[1:])
            if example.prompt[0] == Message("system", system or "")
            else example.prompt
            for example in held_out
        ]


def find(root: Path, name: str, base: Base, chat: Chat) -> tuple[Rival, Opponent | None]:
    """The live version of a name in the store, and an `Opponent` if the engine can run it.

    Raises:
        UserError: the name is not allowed.
    """
    store = Store(root)
    try:
        version = store.version(name)
        store.verify(version)
    except UnknownAdapter:
        return Rival(), None
    except UserError as error:
        return Rival(name, problem=error.problems[0].what), None
    problem = ""
    if version.base_digest != base.digest:
        problem = f"it is an adapter of another base, {version.base_name}"
    elif version.manifest.chat_template_digest != chat.template_digest:
        problem = "it was trained with another chat template"
    rival = Rival(version.label, version.digest, problem)
    return rival, None if problem else Opponent(version)
