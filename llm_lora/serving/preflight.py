"""Before vLLM is started: everything that would go wrong is told in one message, without torch.

vLLM takes a minute to start and then refuses late (rank, features), answers as the base would
(keys that fit nothing) or answers wrongly (another base of the same shape).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora import adapter as adapters
from llm_lora import base as bases
from llm_lora import files, mapping
from llm_lora.base import Base
from llm_lora.errors import Problem, UserError
from llm_lora.plan import Hardware
from llm_lora.serving import flags, machine, merged, sources
from llm_lora.serving.addresses import is_loopback
from llm_lora.serving.config import Limits, ServingConfig
from llm_lora.serving.exchange import OnInvalid
from llm_lora.serving.keys import API_KEYS, Keys
from llm_lora.serving.sources import Candidate, Stock


@dataclass(frozen=True)
class Wanted:
    """What somebody asks to be served, and how; nothing of it is checked yet.

    Attributes:
        sources: runs or adapter folders; or else
        store: the folder of published adapters.
        base: its name or folder; None: the one that the adapters were trained on.
        merged: what `llm-lora merge` made of the one run in `sources`; it is served in its place.
        max_adapters: versions that are loaded at once.
        context: tokens of prompt and answer together; None: as many as usual.
        open: serve without keys on an address that others reach.
        log_contents: write requests and answers into the access log as well.
        max_concurrent: requests that are answered at once.
        max_body: of a request, in MiB.
        timeout: seconds for a whole answer.
        extra: flags for vLLM as they were typed.
    """

    sources: tuple[Path, ...] = ()
    store: Path | None = None
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
    max_body: int = Limits.max_body_bytes // 2**20
    timeout: float = Limits.request_seconds
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What will be served: checked, and nothing written yet.

    Attributes:
        served: what requests will reach.
        ranks: of everything that may be promoted while the server runs.
        state: the folder for the log and the layer's configuration.
        keys: digests of the keys for use and for administration.
    """

    wanted: Wanted
    hardware: Hardware
    base: Base
    base_name: str
    context: int
    store: Path
    state: Path
    served: tuple[Candidate, ...]
    ranks: tuple[int, ...]
    keys: Keys
    warnings: tuple[str, ...]

    @property
    def url(self) -> str:
        """Where the server is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.wanted.host, self.wanted.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.wanted.port}"


class _Findings:
    """Problems and warnings, gathered so that all of them are told at once."""

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
        """Raise what was gathered."""
        if self.problems:
            raise UserError(dict.fromkeys(self.problems))


def examine(wanted: Wanted, hardware: Hardware) -> Plan:
    """Check everything; nothing is written, no model is loaded.

    Raises:
        UserError: all that would keep the server from starting or from answering rightly.
    """
    if bool(wanted.sources) == (wanted.store is not None):
        raise UserError(
            "name runs or a store: one of the two",
            fix="llm-lora serve RUN, or llm-lora serve --store STORE",
        )
    if wanted.merged is not None and (len(wanted.sources) != 1 or wanted.base is not None):
        raise UserError(
            "--merged goes with the one run that was merged, and without --base",
            fix="llm-lora serve RUN --merged DIR",
        )
    found = _Findings()
    _check_machine(wanted, hardware, found)
    keys = _keys(wanted, found)
    stock = (
        sources.of_store(wanted.store, wanted.port)
        if wanted.store is not None
        else sources.of_runs(wanted.sources, wanted.port)
    )
    found.problems += stock.problems
    found.warnings += stock.warnings
    if wanted.merged is not None:
        base, name, served = _merged(wanted.merged, stock, found)
    else:
        base = _base(wanted, stock, found)
        name = served_name(base)
        served = _of_base(stock.candidates, base, wanted, found)
        _check_names(served, name, found)
        for candidate in served:
            found.problems += mapping.problems(candidate.adapter, base)
    for candidate in served:
        _check_adapter(candidate, base, found)
    context = _context(wanted, base, found)
    _check_room(wanted, base, hardware, context, served, found)
    waiting = [one.rank for one in stock.waiting if one.base_digest == base.digest]
    found.settle()
    return Plan(
        wanted=wanted,
        hardware=hardware,
        base=base,
        base_name=name,
        context=context,
        store=stock.store,
        state=stock.state,
        served=tuple(served),
        ranks=(*(one.adapter.rank for one in served), *waiting),
        keys=keys,
        warnings=tuple(found.warnings),
    )


def served_name(base: Base) -> str:
    """The name under which requests reach the base itself: never a path of this machine."""
    return base.path.name if Path(base.name).expanduser().is_dir() else base.name


def _merged(folder: Path, stock: Stock, found: _Findings) -> tuple[Base, str, list[Candidate]]:
    """The merged model, its name, and the run that it was made of."""
    try:
        if not stock.candidates:
            raise UserError(found.problems)
        return *merged.find(folder, stock.candidates[0]), stock.candidates
    except UserError as error:
        raise UserError(dict.fromkeys([*found.problems, *error.problems])) from None


def _base(wanted: Wanted, stock: Stock, found: _Findings) -> Base:
    if wanted.base is not None:
        name, revision = wanted.base, None
    else:
        name, revision = _trained_on(stock, found)
    try:
        return bases.resolve(name, revision)
    except UserError as error:
        found.problems += error.problems
        raise UserError(dict.fromkeys(found.problems)) from None


def _trained_on(stock: Stock, found: _Findings) -> tuple[str, str | None]:
    """Name and revision of the base that all adapters were trained on."""
    origins = [(one.label, one.adapter.manifest["base"]) for one in stock.candidates]
    origins = origins or [(one.label, one.manifest["base"]) for one in stock.waiting]
    if len({told["digest"] for _, told in origins}) == 1:
        return str(origins[0][1]["name"]), origins[0][1].get("revision")
    if origins:
        listed = ", ".join(f"{label} ({told['name']})" for label, told in origins)
        found.refuse(
            f"these adapters belong to different bases: {listed}",
            fix="serve one base per server: name it with --base",
        )
    elif not found.problems:  # Else there are adapters, and it was told why they will not do.
        found.refuse("nothing here tells which base to serve", fix="name it: --base NAME or FOLDER")
    raise UserError(found.problems)


def _of_base(
    candidates: Sequence[Candidate], base: Base, wanted: Wanted, found: _Findings
) -> list[Candidate]:
    """The candidates of this base.

    A store may hold adapters of many bases: those of others than the one named are left out. One
    that was trained on a base of this name with another digest is refused: it would answer wrongly.
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


def _check_names(candidates: Sequence[Candidate], base_name: str, found: _Findings) -> None:
    for name in {one.name for one in candidates} & {base_name}:
        found.refuse(
            f"the adapter {name} has the name of the base: requests could not tell them apart",
            fix="publish it under another name: llm-lora publish RUN --as NAME",
        )


def _check_adapter(candidate: Candidate, base: Base, found: _Findings) -> None:
    adapter = candidate.adapter
    template, path = bases.chat_template(base.path)
    if adapter.manifest.get("chat_template_digest") != files.sha256(template):
        found.refuse(
            f"{candidate.label} was trained with another chat template than the base has",
            where=str(path),
            fix=f"restore the base's template ({adapter.path / adapters.TEMPLATE}), or train again",
        )
    if not candidate.passed:
        found.warnings.append(_gates(candidate))


def _gates(candidate: Candidate) -> str:
    if candidate.report is None:
        return f"{candidate.label} has no report: nothing tells how well it answers"
    failed = [_gate(gate) for gate in candidate.report["gates"] if not gate["passed"]]
    return f"{candidate.label} did not pass its gates: {', '.join(failed)}"


def _gate(gate: dict[str, Any]) -> str:
    value, threshold = gate.get("value"), gate.get("threshold")
    told = "not measured" if value is None else f"{value:.3g}"
    return f"{gate['name']} {told}" + (f" of {threshold:.3g}" if threshold is not None else "")


def _context(wanted: Wanted, base: Base, found: _Findings) -> int:
    if wanted.context is None:
        return min(flags.USUAL_CONTEXT, base.context_length)
    if wanted.context > base.context_length:
        found.refuse(
            f"--context {wanted.context} is more than {base.name} reads ({base.context_length})",
            fix=f"at most --context {base.context_length}",
        )
    return wanted.context


def _check_room(
    wanted: Wanted,
    base: Base,
    hardware: Hardware,
    context: int,
    candidates: Sequence[Candidate],
    found: _Findings,
) -> None:
    for one in candidates:
        limit = one.adapter.manifest.get("sampling", {}).get("max_new_tokens")
        if isinstance(limit, int) and limit >= context:
            found.refuse(
                f"{one.label} answers with up to {limit} tokens, which leaves no room for a "
                f"prompt in a context of {context}",
                fix=f"give more: --context {min(base.context_length, 4 * limit)}",
            )
    if len(candidates) > wanted.max_adapters:
        found.warnings.append(
            f"{len(candidates)} adapters are live or on trial, and {wanted.max_adapters} are "
            "loaded at once: the others wait for a place when asked; more places: --max-adapters"
        )
    weights = sum(path.stat().st_size for path in base.path.glob("*.safetensors"))
    memory = hardware.gpu_memory_bytes or hardware.memory_bytes
    if weights > 0.9 * memory:
        found.warnings.append(
            f"the base has {weights / 2**30:.1f} GiB of weights, this machine {hardware}: "
            "it may not fit"
        )


def _check_machine(wanted: Wanted, hardware: Hardware, found: _Findings) -> None:
    found.problems += flags.extra_problems(wanted.extra)
    found.problems += machine.problems(wanted.host, wanted.port, hardware)
    if wanted.access_log is not None and not wanted.access_log.absolute().parent.is_dir():
        found.refuse(
            "no folder for the access log", where=str(wanted.access_log), fix="make the folder"
        )
    if wanted.log_contents and wanted.access_log is None:
        found.refuse("--log-contents without an access log", fix="add --access-log FILE")


def _keys(wanted: Wanted, found: _Findings) -> Keys:
    keys = Keys()
    with found.gathered():
        keys = Keys.read(layer_config(wanted, Path()))
        if not (keys.use or wanted.open or is_loopback(wanted.host)):
            found.refuse(
                f"--host {wanted.host} lets others in, and no API keys are given",
                fix=f"--api-keys FILE (one key a line) or {API_KEYS}=KEY; "
                "--open serves others without keys",
            )
    return keys


def layer_config(
    wanted: Wanted,
    store: Path,
    base: Base | None = None,
    base_name: str = "",
    ranks: Sequence[int] = (),
) -> ServingConfig:
    """What the layer will be told; without a base, enough to read the keys."""
    return ServingConfig(
        store=store,
        base_name=base_name,
        merged=wanted.merged is not None,
        base_path=base.path if base else Path(),
        base_digest=base.digest if base else "",
        max_resident=wanted.max_adapters,
        max_rank=flags.max_rank(ranks),
        on_invalid=wanted.on_invalid,
        limits=Limits(
            max_body_bytes=wanted.max_body * 2**20,
            max_concurrent=wanted.max_concurrent,
            request_seconds=wanted.timeout,
        ),
        api_keys_file=_absolute(wanted.api_keys),
        admin_keys_file=_absolute(wanted.admin_keys),
        access_log=_absolute(wanted.access_log),
        log_contents=wanted.log_contents,
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()
