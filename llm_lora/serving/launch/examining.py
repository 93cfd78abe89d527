"""The check before serving: the task, as the adapters imply it, then all else."""

from __future__ import annotations

from collections.abc import Callable

from llm_lora.errors import UserError
from llm_lora.machine import Hardware
from llm_lora.serving import sources
from llm_lora.serving.launch import image as picture_preflight
from llm_lora.serving.launch import text as preflight
from llm_lora.serving.launch.plans import AnyPlan, Wanted

_EXAMINE: dict[str, Callable[[Wanted, Hardware], AnyPlan]] = {
    "text": preflight.examine,
    "image": picture_preflight.examine,
}


def examine(wanted: Wanted, hardware: Hardware) -> AnyPlan:
    """Plan what will be served; nothing is written, no model is loaded.

    Raises:
        UserError: text and image adapters were found, and no task is named; or everything that
            would keep the server from starting or from answering correctly.
    """
    return _EXAMINE[wanted.task or _task(wanted)](wanted, hardware)


def _task(wanted: Wanted) -> str:
    found = sources.tasks(wanted.sources, wanted.store)
    if len(found) > 1:
        raise UserError(
            "found both text and image adapters; a server serves one base",
            fix="choose with --task text or --task image; serve the others from a second server",
        )
    return found.pop() if found else "text"
