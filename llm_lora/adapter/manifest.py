"""The manifest of an adapter, `llm_lora.json`: what it was trained on, and how it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llm_lora.errors import UserError
from llm_lora.files import Json
from llm_lora.task import TASKS

Setting = str | int | float | None
"""One setting of generation."""


@dataclass(frozen=True)
class Origin:
    """The base that an adapter was trained on.

    Attributes:
        name: an embedded base, a folder, or a model on the hub, there at `revision`.
        bits: text: how it was quantised in training.
        prediction: image: its prediction type.
    """

    name: str
    digest: str
    revision: str | None = None
    architecture: str | None = None
    bits: int | None = None
    prediction: str = "auto"


@dataclass(frozen=True)
class Answered:
    """The headline figures of held-out answers.

    `field_f1` is None where an earlier version scored them: it counted values that both sides
    left out as right, so its figure is another one.
    """

    schema_valid: float
    field_f1: float | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an adapter was trained on, and how it is used.

    Attributes:
        name: the recipe's.
        digest: of the weights and of PEFT's configuration.
        chat_template_digest, chat_template_options, system: text: how prompts were written.
        trigger: image: the words that stand for what was learned.
        sampling: the recipe's settings of generation.
        scores: held-out scores, in the form of the task's report; None before evaluation.
    """

    name: str = ""
    task: str = "text"
    digest: str | None
    base: Origin
    schema_digest: str | None = None
    chat_template_digest: str | None = None
    chat_template_options: Mapping[str, object] = field(default_factory=dict)
    system: str | None = None
    trigger: str | None = None
    sampling: Mapping[str, Setting] = field(default_factory=dict)
    dataset_fingerprint: str | None = None
    recipe_digest: str | None = None
    scores: Json | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Json, where: Path) -> Manifest:
        """A manifest as `to_json` wrote it; other programs' adapters may leave out all but the
        base.

        Raises:
            UserError: it names no base.
        """
        base = document.get("base")
        if not isinstance(base, dict) or not {"name", "digest"} <= base.keys():
            raise UserError(
                "the manifest names no base", where=str(where), fix="train it with llm-lora"
            )
        return cls(
            name=str(document.get("name", "")),
            task=str(document.get("task", "text")),
            digest=document.get("digest"),
            base=Origin(
                name=str(base["name"]),
                digest=str(base["digest"]),
                revision=base.get("revision"),
                architecture=base.get("architecture"),
                bits=base.get("bits"),
                prediction=base.get("prediction", "auto"),
            ),
            schema_digest=document.get("schema_digest"),
            chat_template_digest=document.get("chat_template_digest"),
            chat_template_options=document.get("chat_template_options") or {},
            system=document.get("system"),
            trigger=document.get("trigger"),
            sampling=document.get("sampling") or {},
            dataset_fingerprint=document.get("dataset_fingerprint"),
            recipe_digest=document.get("recipe_digest"),
            scores=document.get("scores"),
            versions=document.get("versions") or {},
        )

    def to_json(self) -> Json:
        """The manifest as it is written beside the weights."""
        base = self.base
        return {
            "format": 1,
            "name": self.name,
            "task": self.task,
            "digest": self.digest,
            "base": {
                "name": base.name,
                "revision": base.revision,
                "digest": base.digest,
                "architecture": base.architecture,
                **{key: getattr(base, key) for key in TASKS[self.task].of_base},
            },
            "schema_digest": self.schema_digest,
            **{key: getattr(self, key) for key in TASKS[self.task].of_task},
            "sampling": self.sampling,
            "dataset_fingerprint": self.dataset_fingerprint,
            "recipe_digest": self.recipe_digest,
            "scores": self.scores,
            "versions": self.versions,
        }

    def answered(self, *forms: str) -> Answered | None:
        """Figures over all held-out answers of the first of these forms that has any."""
        for form in forms:
            if parts := (self.scores or {}).get(form):
                whole = parts.get("all")
                if not whole:
                    return None
                comparable = "precision" in whole
                return Answered(whole["schema_valid"], whole["field_f1"] if comparable else None)
        return None
