"""The check before serving: the task, as the adapters imply it, then all else."""

from __future__ import annotations

from llm_lora.errors import UserError
from llm_lora.machine import Hardware
from llm_lora.serving import sources
from llm_lora.serving.launch.plans import AnyPlan, Wanted
from llm_lora.task import TASKS, load


def examine(wanted: Wanted, hardware: Hardware) -> AnyPlan:
    """Plan what will be served; nothing is written, no model is loaded.

    Raises:
        UserError: text and image adapters were found, and no task is named; or everything that
            would keep the server from starting or from answering correctly.
    """
    preflight = load(TASKS[wanted.task or _task(wanted)].preflight)
    plan: AnyPlan = preflight.examine(wanted, hardware)
    return plan


def _task(wanted: Wanted) -> str:
    found = sources.tasks(wanted.sources, wanted.store)
    if len(found) > 1:
        raise UserError(
            "found both text and image adapters; a server serves one base",
            fix="choose with --task text or --task image; serve the others from a second server",
        )
    return found.pop() if found else "text"
