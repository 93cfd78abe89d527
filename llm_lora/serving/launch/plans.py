"""Requests to serve, plans and shared checks, for every task."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora.adapter import AnyBase, Manifest
from llm_lora.adapter import base as any_base
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.mapping import text as mapping
from llm_lora.errors import Problem, UserError
from llm_lora.files import Json
from llm_lora.machine import Hardware, is_loopback
from llm_lora.serving import sources
from llm_lora.serving.layer import API_KEYS, Keys, Limits, OnInvalid, ServingConfig
from llm_lora.serving.sources import Candidate, Stock


@dataclass(frozen=True)
class Wanted:
    """What to serve, and how, as requested; nothing is checked yet.

    Attributes:
        sources: runs or adapter folders; or else
        store: the folder of published adapters.
        task: text or image; None: what the adapters are for.
        base: its name or folder; None: the base that the adapters were trained on.
        merged: the model that `llm-lora merge` made of the one run in `sources`, served instead.
        max_adapters: versions that are loaded at once.
        context: tokens of prompt and answer together; None: the default.
        open: serve without keys on an address that other machines reach.
        log_contents: write requests and answers into the access log as well.
        max_concurrent: requests that are answered at once.
        max_waiting: requests that may wait for one of those to end; None: the default.
        max_body: of a request, in MiB.
        timeout: seconds for a complete answer.
        extra: flags for vLLM as typed.
    """

    sources: tuple[Path, ...] = ()
    store: Path | None = None
    task: str | None = None
    base: str | None = None
    merged: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    max_adapters: int = 4
    context: int | None = None
    api_keys: Path | None = None
    admin_keys: Path | None = None
    open: bool = False
    on_invalid: OnInvalid = "flag"
    access_log: Path | None = None
    log_contents: bool = False
    max_concurrent: int = Limits.max_concurrent
    max_waiting: int | None = None
    max_body: int = Limits.max_body_bytes // 2**20
    timeout: float = Limits.request_seconds
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnyPlan(ABC):
    """What will be served: checked, but with nothing written yet.

    Attributes:
        served: the adapters that requests will reach.
        state: the folder for the log and the layer's configuration.
        keys: digests of the keys for use and for administration.
    """

    wanted: Wanted
    hardware: Hardware
    base_name: str
    base_digest: str
    store: Path
    state: Path
    served: tuple[Candidate, ...]
    keys: Keys
    warnings: tuple[str, ...]

    @property
    def url(self) -> str:
        """The URL of the server on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.wanted.host, self.wanted.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.wanted.port}"

    @property
    def places(self) -> str:
        """The room for adapters, in words."""
        return f"{self.wanted.max_adapters} adapters at once"

    @property
    @abstractmethod
    def server(self) -> str:
        """The server's name in messages."""

    @property
    @abstractmethod
    def form(self) -> str:
        """Short description of how the base is served."""

    @abstractmethod
    def told(self, candidate: Candidate) -> str:
        """Short description of one adapter."""

    @abstractmethod
    def request(self, candidate: Candidate | None) -> tuple[str, Json]:
        """Path and body of a request to try an adapter or the base."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command that starts the server."""

    @abstractmethod
    def config(self) -> ServingConfig:
        """The layer's configuration."""


class Findings:
    """Problems and warnings, gathered so that all are reported at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.problems += error.problems

    def refuse(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problems.append(Problem(what, where, fix))

    def settle(self) -> None:
        """Raise the gathered problems."""
        if self.problems:
            raise UserError(dict.fromkeys(self.problems))


def check_sources(wanted: Wanted) -> None:
    """Require runs or a store, not both.

    Raises:
        UserError: both were named, or neither.
    """
    if bool(wanted.sources) == (wanted.store is not None):
        raise UserError(
            "give either runs or a store",
            fix="llm-lora serve RUN, or llm-lora serve --store STORE",
        )


def look(wanted: Wanted, task: str, found: Findings) -> Stock:
    """Find what there is to serve; problems and warnings become findings.

    Raises:
        UserError: there is no such store.
    """
    stock = (
        sources.of_store(wanted.store, wanted.port, task)
        if wanted.store is not None
        else sources.of_runs(wanted.sources, wanted.port, task)
    )
    found.problems += stock.problems
    found.warnings += stock.warnings
    return stock


def served_name(base: AnyBase) -> str:
    """The name under which requests reach the base itself: never a path of this machine."""
    return base.path.name if Path(base.name).expanduser().exists() else base.name


def trained_on(stock: Stock, found: Findings) -> Manifest:
    """The manifest of an adapter whose base is that of all of them.

    Raises:
        UserError: they have several bases, or none.
    """
    manifests = [(one.label, one.adapter.manifest) for one in stock.candidates]
    manifests = manifests or [(one.label, one.manifest) for one in stock.waiting]
    origins = [(label, manifest.base) for label, manifest in manifests]
    if len({told.digest for _, told in origins}) == 1:
        return manifests[0][1]
    if origins:
        listed = ", ".join(f"{label} ({told.name})" for label, told in origins)
        found.refuse(
            f"these adapters belong to different bases: {listed}",
            fix="serve one base per server: name it with --base",
        )
    elif not found.problems:  # Otherwise there are adapters, and why they are unusable is reported.
        found.refuse("no adapter names a base to serve", fix="name it: --base NAME or FOLDER")
    raise UserError(found.problems)


def find_base(wanted: Wanted, task: str, stock: Stock, found: Findings) -> AnyBase:
    """The base that was named, or else the one that all adapters were trained on.

    Raises:
        UserError: it cannot be used; with every problem found so far.
    """
    try:
        if wanted.base is None:
            return any_base.trained_on(trained_on(stock, found))
        told = {one.adapter.manifest.base.prediction for one in stock.candidates}
        prediction = told.pop() if len(told) == 1 else "auto"
        return any_base.resolve(task, wanted.base, prediction=prediction)
    except UserError as error:
        raise UserError(dict.fromkeys([*found.problems, *error.problems])) from None


def find_served(
    wanted: Wanted, stock: Stock, base: AnyBase, base_name: str, found: Findings
) -> list[Candidate]:
    """The adapters of this base, each mapped onto it."""
    served = of_base(stock.candidates, base, wanted, found)
    check_names(served, base_name, found)
    for candidate in served:
        found.problems += mapping.problems(candidate.adapter, base)
    return served


def of_base(
    candidates: Sequence[Candidate], base: AnyBase, wanted: Wanted, found: Findings
) -> list[Candidate]:
    """The candidates of this base.

    A store may hold adapters of many bases: those of bases other than the named one are left out.
    An adapter trained on a base of this name with another digest is refused: its answers would be
    wrong.
    """
    mine = [one for one in candidates if one.adapter.base_digest == base.digest]
    for one in candidates:
        if one in mine:
            continue
        elsewhere = wanted.store is not None and one.adapter.base_name != base.name
        if elsewhere and mine:
            found.warnings.append(
                f"{one.label} is not served: it was trained on {one.adapter.base_name}"
            )
        else:
            with found.gathered():
                adapters.require_base(one.adapter, base)
    return mine


def check_names(candidates: Sequence[Candidate], base_name: str, found: Findings) -> None:
    for name in {one.name for one in candidates} & {base_name}:
        found.refuse(
            f"the adapter {name} has the same name as the base, so requests cannot reach both",
            fix="publish it under another name: llm-lora publish RUN --as NAME",
        )


def check_gates(candidate: Candidate, found: Findings) -> None:
    """Warn of adapters without a report, or with failed gates."""
    if not candidate.passed:
        found.warnings.append(_gates(candidate))


def _gates(candidate: Candidate) -> str:
    if candidate.report is None:
        return f"{candidate.label} has no report: the quality of its answers is unknown"
    failed = [_gate(gate) for gate in candidate.report["gates"] if not gate["passed"]]
    return f"{candidate.label} did not pass its gates: {', '.join(failed)}"


def _gate(gate: Json) -> str:
    value, threshold = gate.get("value"), gate.get("threshold")
    told = "not measured" if value is None else f"{value:.3g}"
    return f"{gate['name']} {told}" + (f" of {threshold:.3g}" if threshold is not None else "")


def check_places(wanted: Wanted, candidates: Sequence[Candidate], found: Findings) -> None:
    """Warn where more adapters are live than fit at once."""
    if len(candidates) > wanted.max_adapters:
        found.warnings.append(
            f"{len(candidates)} adapters are live or on trial, but only {wanted.max_adapters} are "
            "loaded at once: requests for others wait for a place; raise it with --max-adapters"
        )


def check_log(wanted: Wanted, found: Findings) -> None:
    """Refuse an access log that cannot be written as asked."""
    if wanted.access_log is not None and not wanted.access_log.absolute().parent.is_dir():
        found.refuse(
            "the folder of the access log is missing",
            where=str(wanted.access_log),
            fix="create the folder",
        )
    if wanted.log_contents and wanted.access_log is None:
        found.refuse("--log-contents needs an access log", fix="add --access-log FILE")


def find_keys(wanted: Wanted, found: Findings) -> Keys:
    """The API keys, which a server that other machines reach must have."""
    keys = Keys()
    with found.gathered():
        keys = Keys.read(layer_config(wanted, Path()))
        if not (keys.use or wanted.open or is_loopback(wanted.host)):
            found.refuse(
                f"--host {wanted.host} accepts other machines, but there are no API keys",
                fix=f"--api-keys FILE (one key a line) or {API_KEYS}=KEY; "
                "--open accepts requests from other machines without a key",
            )
    return keys


def layer_config(
    wanted: Wanted,
    store: Path,
    base: AnyBase | None = None,
    base_name: str = "",
    *,
    limits: Limits | None = None,
    **more: Any,
) -> ServingConfig:
    """The layer's configuration; without a base, enough of it to read the keys.

    `limits` replaces the default limits, `more` are settings of one task.
    """
    return ServingConfig(
        store=store,
        base_name=base_name,
        base_path=base.path if base else Path(),
        base_digest=base.digest if base else "",
        max_resident=wanted.max_adapters,
        limits=limits or limits_of(wanted),
        api_keys_file=_absolute(wanted.api_keys),
        admin_keys_file=_absolute(wanted.admin_keys),
        access_log=_absolute(wanted.access_log),
        log_contents=wanted.log_contents,
        **more,
    )


def limits_of(wanted: Wanted) -> Limits:
    """The requested limits."""
    waiting = Limits.max_waiting if wanted.max_waiting is None else wanted.max_waiting
    return Limits(
        max_body_bytes=wanted.max_body * 2**20,
        max_concurrent=wanted.max_concurrent,
        max_waiting=waiting,
        request_seconds=wanted.timeout,
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()
