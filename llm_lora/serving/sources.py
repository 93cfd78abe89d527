"""The adapters to serve: live versions of a store, or runs and adapter folders."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llm_lora import run as runs
from llm_lora.adapter import MADE, Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.errors import Problem, UserError
from llm_lora.files import Json
from llm_lora.machine import user
from llm_lora.run import Run
from llm_lora.store import Store, Version, suggest_name

_WHY = "llm-lora serve"
_LONGEST_EXAMPLE = 300  # Characters; longer ones clutter a terminal.


@dataclass(frozen=True)
class Candidate:
    """An adapter that requests will reach.

    Attributes:
        name: the name that requests use.
        label: its name in messages, such as `medical-qa@3`, or the folder of a run.
        home: the folder of the run or adapter; None where it is in a store.
        example: a message to try it with.
    """

    name: str
    label: str
    adapter: Adapter
    report: Json | None
    home: Path | None = None
    example: str | None = None

    @property
    def passed(self) -> bool:
        """Whether its report says that the gates passed."""
        return self.report is not None and bool(self.report["passed"])


@dataclass
class Stock:
    """The adapters found. Problems prevent serving, warnings do not.

    Attributes:
        store: the store that the server will read.
        state: the folder for its log and the layer's configuration.
        waiting: versions that are not live, but may be promoted while the server runs.
    """

    store: Path
    state: Path
    candidates: list[Candidate] = field(default_factory=list)
    waiting: list[Version] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def tasks(sources: Sequence[Path], store: Path | None) -> set[str]:
    """The tasks of the adapters in runs or a store; unreadable ones are left out."""
    found = set()
    if store is not None:
        shelf = Store(store)
        return {version.task for name in shelf.names() for version in shelf.versions(name)}
    for source in sources:
        with suppress(UserError):
            found.add(_own(source).adapter.task)
    return found


def of_store(folder: Path, port: int, task: str = "text") -> Stock:
    """The live versions and those on trial of one task, verified; others are skipped.

    Raises:
        UserError: the folder is missing.
    """
    if not folder.is_dir():
        raise UserError(
            "not a store", where=str(folder), fix="make one: llm-lora publish RUN --as NAME"
        )
    folder = folder.absolute()
    # A folder for each server, because several may share the store.
    stock = Stock(folder, folder / ".serving" / _server(port))
    store = Store(folder)
    for name in store.names():
        try:
            if {version.task for version in store.versions(name)} - {task}:
                stock.warnings.append(f"{name} is not served: it is not for {MADE[task]}")
                continue
            _add(store, name, stock)
        except UserError as error:
            stock.problems += error.problems
    if not stock.candidates and not stock.waiting:
        stock.warnings.append("the store is empty: until a promotion only the base is served")
    return stock


def of_runs(sources: Sequence[Path], port: int, task: str = "text") -> Stock:
    """Runs or adapter folders, with a store of their own inside the first one's folder."""
    stock = Stock(store=Path(), state=Path())
    for source in sources:
        try:
            own = _own(source)
            if own.adapter.task != task:
                what = f"this adapter is for {MADE[own.adapter.task]}, not for {MADE[task]}"
                fix = "serve text and pictures from separate servers"
                raise UserError(what, where=str(source), fix=fix)
            stock.candidates.append(own)
        except UserError as error:
            stock.problems += error.problems
    if stock.candidates and (home := stock.candidates[0].home):
        names = list(dict.fromkeys(one.name for one in stock.candidates))
        # One store for each combination: adapters of another one must not be served too.
        shared = home / "serving" / ("-".join(names) if len(names) > 1 else "")
        stock.store, stock.state = shared / "store", shared / _server(port)
    return stock


def publish(candidates: Sequence[Candidate], folder: Path) -> None:
    """Publish runs and adapters to their own store and promote them; of a name the last one wins.

    The user named the run, so failed gates do not stop it (the history records them). A server's
    refusal does: the adapter would answer like the base.

    Raises:
        UserError: a server refused a version, the disk is full, or the folder is not writable.
    """
    store, by = Store(folder), user()
    refused, versions = [], []
    for one in candidates:
        version = store.publish(one.adapter.path, one.name, report=one.report, by=by, why=_WHY)
        versions.append(version)
        if (refusal := store.alias(one.name).refused.get(version.number)) is not None:
            refused.append(_refused(one, version, refusal, folder))
    if refused:
        raise UserError(refused)
    for version in versions:
        store.promote(version.name, version.number, by=by, why=_WHY, force=True)


def _server(port: int) -> str:
    """The name of a server's own folder."""
    return f"{socket.gethostname()}-{port}"


def _refused(one: Candidate, version: Version, refusal: str, folder: Path) -> Problem:
    return Problem(
        f"a server has refused it: {refusal}",
        one.label,
        "train it again; to serve it anyway: "
        f"llm-lora promote {version.name} {version.number} --store {folder} --force",
    )


def _add(store: Store, name: str, stock: Stock) -> None:
    alias = store.alias(name)
    if alias.live is None:
        stock.warnings.append(
            f"{name} has no live version: requests for it get 404 until one is promoted "
            f"(llm-lora promote {name} NUMBER)"
        )
    reachable = {alias.live, alias.canary.number if alias.canary else None}
    for number in store.numbers(name):
        if number in reachable:
            version = store.version(name, number)
            store.verify(version)
            adapter = adapters.read(version.folder)
            stock.candidates.append(Candidate(name, version.label, adapter, version.report))
            continue
        try:
            stock.waiting.append(store.version(name, number))
        except UserError as error:  # It serves no requests yet.
            stock.warnings.append(f"{name}@{number} cannot be promoted: {error}")


def is_run_or_adapter(path: Path) -> bool:
    """Whether the path is that of a run or an adapter folder; a store is neither."""
    places = (path / adapters.CONFIG, path / "recipe.yaml", path / runs.LATEST / "recipe.yaml")
    return any(place.is_file() for place in places)


def _own(source: Path) -> Candidate:
    """A run, given by its folder or its adapter folder, or a stand-alone adapter folder."""
    is_adapter = (source / adapters.CONFIG).is_file()
    folder = source.resolve().parent if is_adapter else source
    if is_adapter and not (folder / "recipe.yaml").is_file():
        adapter = adapters.read(source.resolve())
        return Candidate(_name(adapter), str(source), adapter, report=None, home=adapter.path)
    run = runs.find(folder)
    adapter = adapters.read(run.adapter)
    return Candidate(
        name=_name(adapter),
        label=str(source),
        adapter=adapter,
        report=run.read(run.report),
        home=run.folder,
        example=_example(run),
    )


def _name(adapter: Adapter) -> str:
    """The recipe's name, even if the folder was copied elsewhere."""
    return suggest_name(adapter.manifest.name)


def _example(run: Run) -> str | None:
    """A short held-out message or caption of the run, to try the server with."""
    try:
        with (run.dataset / "held_out.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        messages = [row.get("caption") or row["messages"][-1]["content"] for row in rows]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    short = [text for text in messages if len(text) <= _LONGEST_EXAMPLE]
    return short[0] if short else None
