"""Checks before a picture server starts; one message reports every problem."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from llm_lora.base import PictureBase
from llm_lora.files import Json
from llm_lora.machine import Hardware
from llm_lora.serving.launch import machine, plans
from llm_lora.serving.launch.plans import AnyPlan, Findings, Wanted
from llm_lora.serving.layer import Limits, ServingConfig
from llm_lora.serving.sources import Candidate

_MODULE = "llm_lora.serving.painter"
_WAITING = 64
"""Default number of waiting requests: one is painted at a time."""

_TEXT_ONLY = {
    "merged": "--merged",
    "context": "--context",
    "on_invalid": "--on-invalid",
    "max_concurrent": "--max-concurrent",
    "extra": "--extra-vllm",
}
"""Settings that only a text server has, by option."""

_ANY_RANK = 2**20


@dataclass(frozen=True, kw_only=True)
class PicturePlan(AnyPlan):
    """A server for pictures."""

    base: PictureBase

    @property
    def server(self) -> str:
        return "painter"

    @property
    def form(self) -> str:
        side = self.base.resolution
        return f"{self.base.family}, {side}x{side} pixels · {self.places}"

    def told(self, candidate: Candidate) -> str:
        manifest = candidate.adapter.manifest
        how, trigger = manifest.sampling, manifest.trigger
        said = f"{how.get('width')}x{how.get('height')} in {how.get('steps')} steps"
        return f"{said} · trigger {trigger}" if trigger else said

    def request(self, candidate: Candidate | None) -> tuple[str, Json]:
        return "/v1/images/generations", {
            "model": candidate.name if candidate else self.base_name,
            "prompt": (candidate.example if candidate else None) or "a red circle",
            "seed": 0,
        }

    def command(self) -> list[str]:
        where = ("--host", self.wanted.host, "--port", str(self.wanted.port))
        return [sys.executable, "-m", _MODULE, *where]

    def config(self) -> ServingConfig:
        wanted = self.wanted
        return plans.layer_config(
            wanted,
            self.store,
            self.base,
            self.base_name,
            limits=Limits(
                max_body_bytes=wanted.max_body * 2**20,
                max_concurrent=1,
                max_waiting=_WAITING if wanted.max_waiting is None else wanted.max_waiting,
                # The time limit of an answer also bounds the wait in the queue.
                queue_wait_seconds=wanted.timeout,
                request_seconds=wanted.timeout,
            ),
            task="image",
            prediction=self.base.prediction,
            resolution=self.base.resolution,
            max_rank=_ANY_RANK,
            # No probe: every weight was mapped onto the base, and the painter itself adds it.
            probe=False,
        )


def examine(wanted: Wanted, hardware: Hardware) -> PicturePlan:
    """Check everything; nothing is written, no model is loaded.

    Raises:
        UserError: every problem that would keep the server from starting or painting correctly.
    """
    plans.check_sources(wanted)
    found = Findings()
    _check_options(wanted, found)
    found.problems += machine.picture_problems(wanted.host, wanted.port)
    plans.check_log(wanted, found)
    keys = plans.find_keys(wanted, found)
    stock = plans.look(wanted, "image", found)
    base = plans.find_base(wanted, "image", stock, found)
    assert isinstance(base, PictureBase)
    name = plans.served_name(base)
    served = plans.find_served(wanted, stock, base, name, found)
    for candidate in served:
        plans.check_gates(candidate, found)
    plans.check_places(wanted, served, found)
    found.settle()
    return PicturePlan(
        wanted=wanted,
        hardware=hardware,
        base=base,
        base_name=name,
        base_digest=base.digest,
        store=stock.store,
        state=stock.state,
        served=tuple(served),
        keys=keys,
        warnings=tuple(found.warnings),
    )


def _check_options(wanted: Wanted, found: Findings) -> None:
    usual = Wanted()
    for name, option in _TEXT_ONLY.items():
        if getattr(wanted, name) != getattr(usual, name):
            found.refuse(f"{option} only applies to text", fix="leave it out for pictures")
