"""Checks before vLLM starts; one message reports every problem, without importing torch.

vLLM takes a minute to start, and then refuses late (rank, features), answers like the base (keys
that match no weight) or answers wrongly (another base of the same shape).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.base import Base
from llm_lora.base import text as bases
from llm_lora.errors import UserError
from llm_lora.machine import Hardware
from llm_lora.serving.launch import machine, plans
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.launch.plans import Findings, Wanted
from llm_lora.serving.launch.vllm import Plan
from llm_lora.serving.layer import merged
from llm_lora.serving.sources import Candidate, Stock

__all__ = ["Plan", "Wanted", "examine"]


def examine(wanted: Wanted, hardware: Hardware) -> Plan:
    """Check everything; nothing is written, no model is loaded.

    Raises:
        UserError: every problem that would keep the server from starting or answering
            correctly.
    """
    plans.check_sources(wanted)
    if wanted.merged is not None and (len(wanted.sources) != 1 or wanted.base is not None):
        raise UserError(
            "--merged needs exactly the one run that was merged, and no --base",
            fix="llm-lora serve RUN --merged DIR",
        )
    found = Findings()
    found.problems += flags.extra_problems(wanted.extra)
    found.problems += machine.problems(wanted.host, wanted.port, hardware)
    plans.check_log(wanted, found)
    keys = plans.find_keys(wanted, found)
    stock = plans.look(wanted, "text", found)
    if wanted.merged is not None:
        base, name, served = _merged(wanted.merged, stock, found)
    else:
        any_base = plans.find_base(wanted, "text", stock, found)
        assert isinstance(any_base, Base)
        base, name = any_base, plans.served_name(any_base)
        served = plans.find_served(wanted, stock, base, name, found)
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
        base_digest=base.digest,
        context=context,
        store=stock.store,
        state=stock.state,
        served=tuple(served),
        ranks=(*(one.adapter.rank for one in served), *waiting),
        keys=keys,
        warnings=tuple(found.warnings),
    )


def _merged(folder: Path, stock: Stock, found: Findings) -> tuple[Base, str, list[Candidate]]:
    """The merged model, its name, and the run that it was made from."""
    try:
        if not stock.candidates:
            raise UserError(found.problems)
        return *merged.find(folder, stock.candidates[0]), stock.candidates
    except UserError as error:
        raise UserError(dict.fromkeys([*found.problems, *error.problems])) from None


def _check_adapter(candidate: Candidate, base: Base, found: Findings) -> None:
    adapter = candidate.adapter
    template, path = bases.chat_template(base.path)
    if adapter.manifest.chat_template_digest != files.sha256(template):
        found.refuse(
            f"{candidate.label} was trained with a chat template other than that of the base",
            where=str(path),
            fix=f"restore the base's template ({adapter.path / adapters.TEMPLATE}), or train again",
        )
    plans.check_gates(candidate, found)


def _context(wanted: Wanted, base: Base, found: Findings) -> int:
    if wanted.context is None:
        return min(flags.USUAL_CONTEXT, base.context_length)
    if wanted.context > base.context_length:
        found.refuse(
            f"--context {wanted.context} exceeds the {base.context_length} tokens of {base.name}",
            fix=f"use --context {base.context_length} or less",
        )
    return wanted.context


def _check_room(
    wanted: Wanted,
    base: Base,
    hardware: Hardware,
    context: int,
    candidates: Sequence[Candidate],
    found: Findings,
) -> None:
    for one in candidates:
        limit = one.adapter.manifest.sampling.get("max_new_tokens")
        if isinstance(limit, int) and limit >= context:
            found.refuse(
                f"{one.label} answers with up to {limit} tokens, which leaves no room for a "
                f"prompt in a context of {context}",
                fix=f"raise it: --context {min(base.context_length, 4 * limit)}",
            )
    plans.check_places(wanted, candidates, found)
    weights = sum(path.stat().st_size for path in base.path.glob("*.safetensors"))
    memory = hardware.gpu_memory_bytes or hardware.memory_bytes
    if weights > 0.9 * memory:
        found.warnings.append(
            f"the base has {weights / 2**30:.1f} GiB of weights and may not fit: "
            f"this machine has {hardware}"
        )
