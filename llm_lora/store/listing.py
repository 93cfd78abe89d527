"""Published adapters and their versions as commands print them and a server sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from llm_lora.files import Json
from llm_lora.store.aliases import Alias, Canary
from llm_lora.store.published import Version


@dataclass(frozen=True)
class Standing:
    """The versions of a name that are in use; `changed` is when that last changed (UTC)."""

    name: str
    live: int | None
    previous: int | None
    canary: Canary | None
    changed: str | None

    @classmethod
    def of(cls, name: str, alias: Alias) -> Standing:
        """The standing that an alias says."""
        changed = alias.changed.at if alias.changed else None
        return cls(name, alias.live, alias.previous, alias.canary, changed)

    @classmethod
    def from_json(cls, document: Json) -> Standing:
        """A standing as `to_json` wrote it.

        Raises:
            KeyError, TypeError: it is something else.
        """
        trial = document["canary"]
        canary = None if trial is None else Canary(trial["number"], trial["share"])
        return cls(
            document["name"],
            document["live"],
            document["previous"],
            canary,
            document["changed"],
        )

    def to_json(self) -> Json:
        """What `llm-lora promote --json` prints and a server answers."""
        trial = self.canary
        return {
            "name": self.name,
            "live": self.live,
            "previous": self.previous,
            "canary": None if trial is None else {"number": trial.number, "share": trial.share},
            "changed": self.changed,
        }


@dataclass(frozen=True)
class Damaged:
    """A version that cannot be read, and why."""

    number: int
    id: str
    damaged: str

    def to_json(self) -> Json:
        """The version as a row of a listing."""
        return {"number": self.number, "id": self.id, "damaged": self.damaged}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A version in a listing.

    Attributes:
        id: its name for people, `served` on the server.
        published: when (UTC), which was `age_seconds` ago.
        passed: whether its gates passed; None without a report.
        refused: why a server refused it.
    """

    ORDER: ClassVar[tuple[str, ...]]
    """The members in the order of the JSON."""

    number: int
    id: str
    served: str
    base: str
    rank: int
    published: str
    age_seconds: int
    passed: bool | None
    refused: str | None

    @classmethod
    def from_json(cls, document: Json) -> Row:
        """A row as `to_json` wrote it.

        Raises:
            KeyError, TypeError: it is something else.
        """
        kind = ServedRow if "requests" in document else StoredRow
        return kind(**{key: document[key] for key in kind.ORDER})

    def to_json(self) -> Json:
        """The row as a JSON object."""
        return {key: getattr(self, key) for key in self.ORDER}


@dataclass(frozen=True, kw_only=True)
class StoredRow(Row):
    """A version in the listing of a store, with its held-out scores."""

    ORDER = (
        *("number", "id", "served", "task", "base", "rank", "published", "age_seconds"),
        *("passed", "refused", "schema_valid", "field_f1", "scores"),
    )

    task: str
    schema_valid: float | None
    field_f1: float | None
    scores: Json

    @classmethod
    def of(cls, version: Version, alias: Alias) -> StoredRow:
        """A version's row, under the alias of its name."""
        answered = version.manifest.answered("unconstrained")
        return cls(
            **_common(version, alias),
            task=version.task,
            schema_valid=answered.schema_valid if answered else None,
            field_f1=answered.field_f1 if answered else None,
            scores=version.manifest.scores or {},
        )


@dataclass(frozen=True, kw_only=True)
class ServedRow(Row):
    """A version in the listing of a server.

    Attributes:
        valid_rate: the share of judged answers that fitted the schema.
        loaded: whether it is loaded now.
        schema: digest of its answer schema.
    """

    ORDER = (
        *("number", "id", "served", "adapter_digest", "base", "rank", "published"),
        *("age_seconds", "passed", "refused", "requests", "valid_rate", "loaded", "schema"),
    )

    adapter_digest: str
    requests: int
    valid_rate: float | None
    loaded: bool
    schema: str | None

    @classmethod
    def of(
        cls,
        version: Version,
        alias: Alias,
        *,
        requests: int,
        valid_rate: float | None,
        loaded: bool,
        schema: str | None,
    ) -> ServedRow:
        """A version's row, under the alias of its name, with what its server knows of it."""
        return cls(
            **_common(version, alias),
            adapter_digest=version.adapter_digest,
            requests=requests,
            valid_rate=valid_rate,
            loaded=loaded,
            schema=schema,
        )


@dataclass(frozen=True)
class Listed:
    """An adapter in a listing.

    Attributes:
        problem: why its live version does not answer; None where it does.
        schemas: a server's: the answer schemas of its versions, by digest.
    """

    standing: Standing
    problem: str | None
    versions: Sequence[Row | Damaged]
    schemas: Mapping[str, object] | None = None

    @classmethod
    def from_json(cls, document: Json) -> Listed:
        """An adapter as `to_json` wrote it.

        Raises:
            KeyError, TypeError: it is something else.
        """
        return cls(
            Standing.from_json(document),
            document["problem"],
            [
                Damaged(**row) if "damaged" in row else Row.from_json(row)
                for row in document["versions"]
            ],
            document.get("schemas"),
        )

    def to_json(self) -> Json:
        """What `llm-lora adapters --json` prints and a server answers for one adapter."""
        schemas = {} if self.schemas is None else {"schemas": self.schemas}
        rows = [row.to_json() for row in self.versions]
        return {**self.standing.to_json(), "problem": self.problem, "versions": rows, **schemas}


def _common(version: Version, alias: Alias) -> dict[str, Any]:
    """The members that every row has."""
    published = version.published.at
    age = datetime.now(UTC) - datetime.fromisoformat(published)
    return {
        "number": version.number,
        "id": version.label,
        "served": version.served_name,
        "base": version.base_name,
        "rank": version.rank,
        "published": published,
        "age_seconds": round(age.total_seconds()),
        "passed": version.passed,
        "refused": alias.refused.get(version.number),
    }
