"""The held-out report of a text adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from llm_lora.record import Key, Record
from llm_lora.report import document
from llm_lora.report.document import Report
from llm_lora.scores import Comparison, Forms, Latency, Parts, Reliability, Rival


@dataclass(frozen=True)
class AdapterIdentity(document.AdapterIdentity):
    """The adapter, with the bits of a weight of its base."""

    bits: int


@dataclass(frozen=True)
class Decoding(Record):
    """The time spent on the constraint: in all for compiling, and per step for masks."""

    compile_seconds: float
    mask_seconds_per_step: float


@dataclass(frozen=True)
class ModelComparison(Comparison):
    """The differences of two sets of answers; `ours` and `theirs` are each a model and a form."""

    ours: tuple[str, str]
    theirs: tuple[str, str]

    ORDER = ("ours", "theirs", *Comparison.ORDER)


@dataclass(frozen=True)
class TextReport(Report):
    """The content of `report.json`: `report.adapter.constrained.all.field_f1`, say.

    `scores` has the figures of every model that answered, `calibration` those whose engine gave
    probabilities, by model and form. `baselines` has those of answers that need no model, by name
    (`scores.BASELINES`), `findings` what is to be known before any figure. `rival` is the live
    version, if the recipe compares with it; `latency` and `decoding` are None where they were not
    measured.
    """

    adapter_identity: Annotated[AdapterIdentity, Key("adapter")]
    rival: Annotated[Rival | None, Key("published")]
    scores: Mapping[str, Forms]
    baselines: Mapping[str, Parts]
    findings: tuple[str, ...]
    comparisons: tuple[ModelComparison, ...]
    calibration: Mapping[str, Mapping[str, Reliability]]
    latency: Latency | None
    decoding: Decoding | None

    ORDER = (
        *("recipe", "base_identity", "adapter_identity", "rival", "held_out", "findings", "scores"),
        *("baselines", "comparisons", "calibration", "latency", "gates", "passed", "seconds"),
        *("peak_memory_bytes", "decoding"),
    )

    @property
    def base(self) -> Forms:
        """The figures of the frozen base."""
        return self.scores["base"]

    @property
    def adapter(self) -> Forms:
        """The figures of the adapter."""
        return self.scores["adapter"]

    @property
    def published(self) -> Forms | None:
        """The figures of the live version, if it answered."""
        return self.scores.get("published")

    def headline(self) -> dict[str, Any]:
        """Form → part → the adapter's main figures."""
        return {
            form: {part: figures.headline() for part, figures in found.parts.items()}
            for form, found in self.adapter.forms.items()
        }
