"""The report of an image adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from llm_lora.record import Key
from llm_lora.report import document
from llm_lora.report.document import Report
from llm_lora.scores.image import Dimension, Embedder, Response


@dataclass(frozen=True)
class BaseIdentity(document.BaseIdentity):
    """The base, with the family of its architecture."""

    family: str


@dataclass(frozen=True)
class AdapterIdentity(document.AdapterIdentity):
    """The adapter: `modules` is the number of adapted ones, `bytes` the size of its file."""

    alpha: float
    modules: int
    bytes: int
    trigger: str | None


@dataclass(frozen=True)
class ImageReport(Report):
    """The content of `report.json`: `report.scores["fidelity"]`, say.

    `scores` has a figure for each dimension, None where it could not be measured, and `reasons`
    why not. `dimensions` are the basis of each figure, `strengths` the effects of each strength.
    """

    base_identity: Annotated[BaseIdentity, Key("base")]
    adapter_identity: Annotated[AdapterIdentity, Key("adapter")]
    dimensions: tuple[Dimension, ...]
    strengths: tuple[Response, ...]
    embedder: Embedder | None
    prompts: tuple[str, ...]
    scores: Mapping[str, float | None]
    reasons: Mapping[str, str]

    ORDER = (
        *("recipe", "base_identity", "adapter_identity", "held_out", "dimensions", "strengths"),
        *("embedder", "prompts", "scores", "reasons", "gates", "passed", "seconds"),
        "peak_memory_bytes",
    )

    def headline(self) -> dict[str, float | None]:
        """The figure of each dimension."""
        return dict(self.scores)
