"""Written datasets: the folder that holds a checked dataset, and what is the same in every one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_lora import files
from llm_lora.data.finding import Finding, by_reason
from llm_lora.errors import UserError
from llm_lora.example import Rejected

CHECK = "check.json"
QUARANTINE = "quarantine.jsonl"

Side = TypeVar("Side", bound=str)

Fields = dict[str, Any]
"""A JSON object of one of the files."""


@dataclass(frozen=True)
class Check:
    """What the data check found out about all sides together; the contents of `check.json`.

    `stats` are the task's own figures.
    """

    fingerprint: str
    rejected: tuple[Rejected, ...]
    findings: tuple[Finding, ...]
    stats: Fields

    def to_json(self) -> Fields:
        return {
            "fingerprint": self.fingerprint,
            **self.stats,
            "rejected_by_reason": [asdict(group) for group in by_reason(self.rejected)],
            "findings": [asdict(finding) for finding in self.findings],
        }


def write(folder: Path, sides: Mapping[Side, Iterable[Fields]], check: Check) -> None:
    """Write a file of rows for each side, then the rows set aside, then `check.json`.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    for side, rows in sides.items():
        files.write_jsonl(folder / f"{side}.jsonl", rows)
    files.write_jsonl(folder / QUARANTINE, map(asdict, check.rejected))
    files.write_json(folder / CHECK, check.to_json())


def read(folder: Path, sides: Sequence[Side]) -> tuple[dict[Side, list[Fields]], Check]:
    """Read what `write` wrote: the rows of each side, and the check.

    Raises:
        UserError: a file is missing.
        ValueError, KeyError, TypeError, AttributeError: a file is damaged (see `undamaged`).
    """
    check = json.loads(files.read_text(folder / CHECK))
    rows = {side: _rows(folder / f"{side}.jsonl") for side in sides}
    rejected = tuple(Rejected(**row) for row in _rows(folder / QUARANTINE))
    findings = tuple(Finding(**row) for row in check.pop("findings"))
    fingerprint = check.pop("fingerprint")
    del check["rejected_by_reason"]
    return rows, Check(fingerprint, rejected, findings, check)


@contextmanager
def undamaged(folder: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged dataset folder into one message.

    Raises:
        UserError: a file cannot be read as what it should be.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the dataset folder is damaged: {error!r}", where=str(folder), fix="train again"
        ) from None


def require_unchanged(folder: Path, written: str, found: str) -> None:
    """Require the fingerprint that a dataset was written with.

    Raises:
        UserError: its rows now have another one.
    """
    if written != found:
        raise UserError(
            "the dataset was changed after it was checked", where=str(folder), fix="train again"
        )


def _rows(path: Path) -> list[Fields]:
    # Split at "\n" only: splitlines would also split at other line breaks inside texts.
    return [json.loads(line) for line in files.read_text(path).split("\n") if line]
