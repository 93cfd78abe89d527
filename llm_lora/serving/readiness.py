"""The answer of `GET /ready`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_lora.files import Json


@dataclass(frozen=True)
class Readiness:
    """Whether a server answers for all live versions.

    Attributes:
        missing: why a version is not served yet, by its label.
        refused: why a version was refused, by its label.
    """

    ready: bool
    missing: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Json) -> Readiness:
        """The answer of a server, which tells the details only to those who have a key."""
        return cls(
            bool(document.get("ready")), document.get("missing", {}), document.get("refused", {})
        )

    def to_json(self) -> Json:
        """The answer with all details."""
        return {"ready": self.ready, "missing": self.missing, "refused": self.refused}
