"""One published version: a folder that is complete or absent, and never changes.

version.json    written last: what is published, size and digest of every file
removed.json    replaces version.json once the version was removed; its number stays taken
report.json     the held-out report that the adapter is judged by, where it has one
…               the adapter's files, as trained
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llm_lora import files
from llm_lora.adapter import Adapter, Manifest
from llm_lora.adapter import folder as adapters
from llm_lora.errors import Problem, UserError
from llm_lora.files import Json
from llm_lora.scores import AT_MOST
from llm_lora.store.aliases import Event, sync
from llm_lora.weights import safetensors_header

VERSION = "version.json"
REMOVED = "removed.json"
REPORT = "report.json"
_ADAPTER = (
    adapters.WEIGHTS,
    adapters.CONFIG,
    adapters.MANIFEST,
    adapters.SCHEMA,
    adapters.TEMPLATE,
)


@dataclass(frozen=True)
class Version:
    """A published version: complete, immutable, never renumbered.

    `digest` (64 hex digits) covers all its files: weights, how they are applied, schema, template,
    prompt, sampling and report; so equal digests mean equal versions, and the other way round.
    `modules` is how many modules are adapted.
    """

    name: str
    number: int
    digest: str
    folder: Path
    base_name: str
    base_digest: str
    rank: int
    modules: int
    published: Event = field(compare=False)
    manifest: Manifest = field(compare=False, repr=False)
    report: Json | None = field(compare=False, repr=False)

    @property
    def served_name(self) -> str:
        """Its name on the server: stands for exactly these bytes, for ever."""
        return served_name(self.name, self.digest)

    @property
    def label(self) -> str:
        """Its name for people: `medical-qa@3`."""
        return f"{self.name}@{self.number}"

    @property
    def task(self) -> str:
        """The task of its base: text or image."""
        return self.manifest.task

    @property
    def adapter_digest(self) -> str:
        """Digest of the weights and of how they are applied, as in the run's report."""
        return str(self.manifest.digest)

    @property
    def passed(self) -> bool | None:
        """Whether the report's gates passed; None where there is no report."""
        return None if self.report is None else bool(self.report["passed"])


@dataclass(frozen=True)
class Content:
    """The content to publish; `sums` holds the digest of each file by its name."""

    adapter: Adapter
    report: Json | None
    sums: dict[str, str]

    @property
    def digest(self) -> str:
        """The digest that the version will have."""
        return _digest(self.sums)


def served_name(name: str, digest: str) -> str:
    """The name on the server of the version with this digest."""
    return f"{name}@{digest[:12]}"


def gather(folder: Path, report: Json | None) -> Content:
    """Read and verify an adapter folder and its report.

    Raises:
        UserError: the adapter is incomplete or damaged, or the report is another adapter's.
    """
    # Digests first, then verification: a later change shows in the copy's digests.
    try:
        sums = _sums(folder)
    except PermissionError as error:
        raise UserError(
            "no permission to read this file",
            where=str(error.filename),
            fix="check its owner and mode",
        ) from None
    adapter = adapters.read(folder)
    sums.pop(REPORT, None)
    if report is not None:
        _require_report(report, adapter)
        sums[REPORT] = files.sha256(_text(report))
    return Content(adapter, report, sums)


def build(folder: Path, content: Content, *, name: str, number: int, event: Event) -> None:
    """Fill a new folder with a version, version.json last, all of it synced to disk.

    Raises:
        OSError: the disk is full or the folder is not writable.
        UserError: the adapter was changed while it was being copied.
    """
    adapter, report = content.adapter, content.report
    folder.mkdir(parents=True)
    for file in content.sums:
        if file == REPORT and report is not None:
            (folder / file).write_text(_text(report), encoding="utf-8")
        else:
            shutil.copyfile(adapter.path / file, folder / file)
        _seal(folder / file)
    if _sums(folder) != content.sums:
        raise UserError(
            "changed while it was being copied", where=str(adapter.path), fix="publish it again"
        )
    bits = adapter.manifest.base.bits
    document = {
        "format": 1,
        "name": name,
        "number": number,
        "digest": content.digest,
        "base": {"name": adapter.base_name, "digest": adapter.base_digest},
        "rank": adapter.rank,
        "modules": len(adapter.modules),
        "form": f"adapter trained over a base in {bits} bits" if bits else "adapter",
        "passed": None if report is None else report["passed"],
        "scores": adapter.manifest.scores,
        "published": event.to_json(),
        "files": {
            file: {"bytes": (folder / file).stat().st_size, "sha256": sha}
            for file, sha in content.sums.items()
        },
    }
    (folder / VERSION).write_text(_text(document), encoding="utf-8")
    _seal(folder / VERSION)
    sync(folder)


def read(folder: Path, name: str, number: int) -> Version:
    """A version from its folder; everything but the contents of files is checked.

    Raises:
        UserError: version.json is damaged or of another version; a file is missing or truncated.
    """
    path, told = folder / VERSION, folder / adapters.MANIFEST
    document = _json(path)
    try:
        listed = {
            file: (entry["bytes"], entry["sha256"]) for file, entry in document["files"].items()
        }
        version = Version(
            name=document["name"],
            number=document["number"],
            digest=document["digest"],
            folder=folder,
            base_name=document["base"]["name"],
            base_digest=document["base"]["digest"],
            rank=document["rank"],
            modules=document["modules"],
            published=Event.from_json(document["published"]),
            manifest=Manifest.from_json(_json(told), told),
            report=_json(folder / REPORT) if REPORT in listed else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _damaged(path, "damaged") from None
    if (version.name, version.number) != (name, number):
        raise _damaged(path, f"this is {version.label} in the place of {name}@{number}")
    if version.digest != _digest({file: sha for file, (_, sha) in listed.items()}):
        raise _damaged(path, "its digest does not match the files that it lists")
    for file, (size, _) in listed.items():
        found = (folder / file).stat().st_size if (folder / file).is_file() else None
        if found != size:
            raise _damaged(
                folder / file, "missing" if found is None else f"{found:,} bytes, not {size:,}"
            )
    safetensors_header(folder / adapters.WEIGHTS)
    return version


def verify(version: Version) -> None:
    """Read every byte of a version.

    Raises:
        UserError: a file is not the one that was published.
    """
    found = _sums(version.folder)
    for file, entry in _json(version.folder / VERSION)["files"].items():
        if found.get(file) != entry["sha256"]:
            raise _damaged(version.folder / file, "the file differs from the published one")


def objections(version: Version, refusal: str | None, live: Version | None) -> Iterator[Problem]:
    """Reasons against making a version live, which `force` overrides.

    `refusal` is why a server refused it; `live` is the version that it would replace, and must be
    the one that its report compares it with, if any.
    """
    where, fix = version.label, "improve the training, or use --force, which the history records"
    if version.report is None:
        yield Problem("published without a report, so its quality is unknown", where, fix)
    else:
        for gate in version.report["gates"]:
            if not gate["passed"]:
                value, wanted = gate.get("value"), gate.get("threshold")
                most = "at most " if gate["name"] in AT_MOST else ""
                told = "not measured" if value is None else value
                what = f"gate {gate['name']} failed: {told}, wanted {most}{wanted}"
                yield Problem(what, where, fix)
        rival = version.report.get("published")
        if rival and live and live.digest not in (rival["digest"], version.digest):
            yield Problem(
                f"its report compares it with {rival['label'] or 'nothing (nothing was live)'}, "
                f"but {live.label} is live",
                where,
                "rewrite the report (llm-lora evaluate RUN) and publish it, or use --force",
            )
    if refusal is not None:
        yield Problem(f"refused by a server: {refusal}", where, fix)


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a complete version that was not removed."""
    return (folder / VERSION).is_file() and not (folder / REMOVED).is_file()


def remove(folder: Path, event: Event) -> None:
    """Remove a version, damaged or not; its number stays taken.

    Raises:
        OSError: a file cannot be deleted.
        UserError: the disk is full or the folder is not writable.
    """
    document: Json = {}
    with suppress(UserError):
        document = _json(folder / VERSION)
    # removed.json first: from here on no reader accepts the version, and whatever a crash leaves
    # undone, the next writer's sweep finishes.
    files.write_json(folder / REMOVED, document | {"removed": event.to_json()})
    sync(folder)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Finish a removal that was begun; discard a half-written removed.json."""
    for path in folder.glob(f".{REMOVED}.*"):
        path.unlink()
    if (folder / REMOVED).is_file():
        # version.json first: the rest must not pass for a version.
        for path in sorted(folder.iterdir(), key=lambda path: path.name != VERSION):
            if path.name != REMOVED:
                path.unlink()


def events(folder: Path) -> list[Event]:
    """The events of a version (published, perhaps removed), as far as its files show."""
    with suppress(UserError):
        path = folder / REMOVED
        document = _json(path if path.is_file() else folder / VERSION)
        found = []
        for key in ("published", "removed"):
            with suppress(ValueError):
                found.append(Event.from_json(document.get(key)))
        return found
    return []


def require_task(adapter: Adapter, name: str, versions: Sequence[Version]) -> None:
    """Require that all versions of a name have one task: no alias moves from text to pictures.

    Raises:
        UserError: the name's versions have another task.
    """
    others = {version.task for version in versions} - {adapter.task}
    if others:
        raise UserError(
            f"this adapter is for {adapters.MADE[adapter.task]}, but the name has adapters for "
            f"{adapters.MADE[min(others)]}",
            where=name,
            fix="publish it under another name: --as NAME",
        )


def _require_report(report: Json, adapter: Adapter) -> None:
    """Refuse anything but a report about these weights."""
    where, fix = str(adapter.path), "rewrite it: llm-lora evaluate RUN"
    try:
        judged = str(report["adapter"]["digest"])
        whole = all(gate["name"] and "passed" in gate for gate in report["gates"])
        whole = whole and isinstance(report["passed"], bool)
    except (KeyError, TypeError):
        whole, judged = False, ""
    if not whole:
        raise UserError("the report beside it is not a held-out report", where=where, fix=fix)
    if judged != adapter.digest:
        raise UserError(
            f"the report is about other weights ({judged[:12]}) than these ({adapter.digest[:12]})",
            where=where,
            fix=fix,
        )


def _sums(folder: Path) -> dict[str, str]:
    present = (name for name in (*_ADAPTER, REPORT) if (folder / name).is_file())
    return {name: files.file_sha256(folder / name) for name in present}


def _digest(sums: dict[str, str]) -> str:
    return files.sha256("".join(f"{name} {sums[name]}\n" for name in sorted(sums)))


def _text(document: Json) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _seal(path: Path) -> None:
    """Sync a file to disk and make it read-only."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(0o444)


def _json(path: Path) -> Json:
    try:
        value = json.loads(files.read_bytes(path))
    except ValueError:
        raise _damaged(path, "damaged") from None
    if not isinstance(value, dict):
        raise _damaged(path, "damaged")
    return value


def _damaged(path: Path, what: str) -> UserError:
    return UserError(what, where=str(path), fix="publish the adapter again, then remove this one")
