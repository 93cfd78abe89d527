"""Benchmark of merged model against adapter on this machine's vLLM, with the base as a yardstick.

A merged model and its base do the same arithmetic, so the difference between the two is
measurement noise; an adapter's cost counts only where it is larger. The forms take turns, in
opposite order each round, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_lora import files, versions
from llm_lora.adapter import Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.mapping import text as mapping
from llm_lora.base import Base
from llm_lora.base import text as bases
from llm_lora.errors import UserError
from llm_lora.export import merge
from llm_lora.machine import Hardware, free_port
from llm_lora.progress import Watcher
from llm_lora.run import Run
from llm_lora.serving.client import as_json
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.measure import load, trial
from llm_lora.serving.measure.load import Load
from llm_lora.tasks.text import Prepared
from llm_lora.weights import tensors

MERGED, BASE, ADAPTER, MIXED = "merged", "base", "adapter", "mixed"
FORMS = (MERGED, BASE, ADAPTER, MIXED)
"""The merged model, the bare base, one unmerged adapter, several adapters in every batch."""

_MODEL = "base"
_NOISE = 0.02
"""Differences below this count as noise, even where the measured noise is smaller."""
_CHEAP = 0.15
"""The largest share of throughput that swapping without a restart is worth."""
_NUMBER_BYTES = 2
"""Bytes per adapter weight: the server keeps 16 bits."""


@dataclass(frozen=True)
class Settings:
    """How to measure: `requests` for each form and round, `connections` at a time, answers of
    `tokens` tokens (None: as long as the run's own), `adapters` in the mixed batches."""

    requests: int = 64
    connections: int = 8
    rounds: int = 2
    adapters: int = 4
    tokens: int | None = None


@dataclass
class _Form:
    """Measurements of one form, over all rounds."""

    loads: list[Load] = field(default_factory=list)
    memory_bytes: int = 0
    cache_tokens: int | None = None


def measure(
    here: Run, prepared: Prepared, hardware: Hardware, settings: Settings, watch: Watcher
) -> dict[str, Any]:
    """Measure all forms of a run's adapter.

    Args:
        here: a finished run; `prepared` what it was made from.
        hardware: of this machine.
        settings: how much to measure.
        watch: receives progress.

    Returns:
        figures by form, the memory of one adapter, how many fit, and advice.

    Raises:
        UserError: the adapter cannot be merged or served, or vLLM does not start.
    """
    adapter = adapters.read(here.adapter)
    adapters.require_base(adapter, prepared.base)
    mapping.effect(adapter, prepared.base)
    found = {form: _Form() for form in FORMS}
    with files.workspace(here.folder / "bench") as space:
        merge.merge(here, space / MERGED, watch, measure=False)
        bench = _Bench(prepared, adapter, hardware, settings, space)
        merged = bases.resolve(str(space / MERGED))
        turns: list[tuple[Base, tuple[str, ...]]] = [
            (merged, (MERGED,)),
            (prepared.base, (BASE,)),
            (prepared.base, (ADAPTER, MIXED)),
        ]
        for number in range(settings.rounds):
            for base, forms in turns if number % 2 == 0 else reversed(turns):
                watch.stage(f"Round {number + 1} of {settings.rounds}: {' and '.join(forms)}")
                bench.take_turn(base, forms, found)
                for form in forms:
                    last = found[form].loads[-1]
                    watch.say(f"{form}: {last.tokens_per_second:,.0f} tokens/s")
        return bench.document(found) | {"run": str(here.folder)}


class _Bench:
    """State that all turns share."""

    def __init__(
        self,
        prepared: Prepared,
        adapter: Adapter,
        hardware: Hardware,
        settings: Settings,
        space: Path,
    ) -> None:
        self._adapter = adapter
        self._base = prepared.base
        self._hardware = hardware
        self._settings = settings
        self._space = space
        self._context = min(flags.USUAL_CONTEXT, prepared.base.context_length)
        lengths = prepared.dataset.stats.tokens["answer"]
        self._tokens = settings.tokens or round(statistics.median(lengths))
        self._prompts = [as_json(example.prompt) for example in prepared.dataset.held_out]

    def take_turn(self, base: Base, forms: Sequence[str], found: Mapping[str, _Form]) -> None:
        """Start a server, warm it up, measure the forms that it serves, stop it."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = flags.engine(base, _MODEL, "127.0.0.1", port, self._context, self._hardware)
        names = [f"adapter-{number + 1}" for number in range(self._settings.adapters)]
        if ADAPTER in forms:
            command += flags.lora(len(names), [self._adapter.rank], self._hardware)
            command += ["--lora-modules", *(f"{name}={self._adapter.path}" for name in names)]
        models = {ADAPTER: names[:1], MIXED: names}
        log = self._space / f"{forms[0]}.log"
        with trial.running(command, flags.environment(os.environ), url, log) as server:
            for form in forms:
                self._ask(url, models.get(form, [_MODEL]), self._settings.connections * 2)
                found[form].loads.append(
                    self._ask(url, models.get(form, [_MODEL]), self._settings.requests)
                )
                found[form].memory_bytes = trial.memory_bytes(server)
                found[form].cache_tokens = trial.cache_tokens(url)

    def _ask(self, url: str, models: Sequence[str], count: int) -> Load:
        """Ask held-out prompts with answers of equal length: the same work for every form."""
        bodies = [
            {
                "model": models[number % len(models)],
                "messages": self._prompts[number % len(self._prompts)],
                "temperature": 0,
                "max_tokens": self._tokens,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            for number in range(count)
        ]
        found = load.run(url, bodies, concurrency=self._settings.connections)
        if found.failures:
            raise UserError(
                f"{len(found.failures)} of {count} requests failed: {found.failures[0]}",
                where=", ".join(models),
            )
        return found

    def document(self, found: Mapping[str, _Form]) -> dict[str, Any]:
        """All measurements and the advice that follows from them."""
        forms = {
            name: load.joined(form.loads).summary()
            | {
                "rounds_tokens_per_second": [round(one.tokens_per_second, 1) for one in form.loads],
                "memory_bytes": form.memory_bytes,
                "cache_tokens": form.cache_tokens,
            }
            for name, form in found.items()
        }
        slot = slot_bytes(self._base, self._adapter.rank)
        document = {
            "format": 1,
            "machine": str(self._hardware),
            "versions": versions.installed(),
            "base": self._base.name,
            "rank": self._adapter.rank,
            "settings": asdict(self._settings) | {"tokens": self._tokens},
            "forms": forms,
            "slot_bytes": slot,
            "adapters_fit": self._fit(slot, forms[ADAPTER]["cache_tokens"]),
        }
        return document | {"advice": advise(document)}

    def _fit(self, slot: int, cache_tokens: int | None) -> int | None:
        """How many adapters fit beside the cache that the connections need.

        On a GPU slots take room from the key-value cache, on a CPU from free memory.
        """
        if self._hardware.gpu is None:
            import psutil

            return int(psutil.virtual_memory().available) // slot
        if cache_tokens is None:
            return None
        spare = cache_tokens - self._settings.connections * self._context
        token = flags.token_bytes(bases.read_config(self._base.path)) // 2
        return self._settings.adapters + max(spare, 0) * token // slot


def slot_bytes(base: Base, rank: int) -> int:
    """Approximate bytes of one loaded adapter: both halves at every linear layer of the base,
    whether or not the adapter changes it, at the server's next rank."""
    rows = mapping.server_rank(rank)
    return sum(
        rows * sum(tensor.shape) * _NUMBER_BYTES
        for name, tensor in tensors.of_model(base.path).items()
        if len(tensor.shape) == 2
        and name.removesuffix(".weight").rpartition(".")[2] not in mapping.EMBEDDINGS
    )


def advise(document: Mapping[str, Any]) -> list[str]:
    """Advice on which form to serve, in sentences."""
    speed = {name: form["tokens_per_second"] for name, form in document["forms"].items()}
    apart = abs(1 - speed[BASE] / speed[MERGED])
    noise = max(apart, _NOISE)
    cost = 1 - speed[ADAPTER] / speed[MERGED]
    found = [
        f"merged model and bare base, which do the same work, differ by {apart:.1%}: "
        f"differences below {noise:.1%} count as noise"
    ]
    if cost <= noise:
        found.append(
            "the unmerged adapter has no measurable cost here: serve adapters, which "
            "are promoted and rolled back without a restart"
        )
    elif cost <= _CHEAP:
        found.append(
            f"the unmerged adapter costs {cost:.0%} of the throughput: serve adapters unless you "
            "need that share; a merged model needs a restart for every new version"
        )
    else:
        found.append(
            f"the unmerged adapter costs {cost:.0%} of the throughput: with one adapter that "
            "rarely changes, merge it (llm-lora merge); with several, or frequent versions, one "
            "base with adapters still takes less memory than one merged model each"
        )
    several = 1 - speed[MIXED] / speed[ADAPTER]
    count = document["settings"]["adapters"]
    if several > noise:
        found.append(f"{count} adapters in one batch cost another {several:.0%}")
    if (fit := document["adapters_fit"]) is not None:
        found.append(
            f"an adapter of rank {document['rank']} takes about "
            f"{document['slot_bytes'] / 2**20:.1f} MiB while it is loaded; about {fit:,} fit"
        )
    return found
