"""What the reports of every task have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from llm_lora.record import Key, Record
from llm_lora.run import Run
from llm_lora.scores import Gate


@dataclass(frozen=True)
class RecipeIdentity(Record):
    """The recipe that a report is about."""

    name: str
    digest: str
    profile: str | None


@dataclass(frozen=True)
class BaseIdentity(Record):
    """The frozen base that the adapter was trained on."""

    name: str
    digest: str


@dataclass(frozen=True)
class AdapterIdentity(Record):
    """The adapter that a report is about."""

    digest: str
    rank: int


@dataclass(frozen=True)
class Report(Record):
    """A held-out report: the content of `report.json`.

    `held_out` is the number of held-out examples, by part. `seconds` is the time that the whole
    command took, `peak_memory_bytes` the peak of the whole run.
    """

    recipe: RecipeIdentity
    base_identity: Annotated[BaseIdentity, Key("base")]
    adapter_identity: Annotated[AdapterIdentity, Key("adapter")]
    held_out: Mapping[str, int]
    gates: tuple[Gate, ...]
    passed: bool
    seconds: float
    peak_memory_bytes: int

    @classmethod
    def of(cls, run: Run) -> Self:
        """The report of a run.

        Raises:
            UserError: the run has none yet, or it is damaged or of another version.
        """
        return cls.from_json(
            run.read(run.report), run.report, f"rewrite it: llm-lora evaluate {run.folder}"
        )

    def headline(self) -> dict[str, Any]:
        """The adapter's main scores, which are stored with it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Versus(Record):
    """How the adapters of two runs differ; `ours` and `theirs` are the runs' folders."""

    ours: str
    theirs: str
