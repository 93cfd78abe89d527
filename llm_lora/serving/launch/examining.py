"""Which kind of server is wanted, which the adapters tell, and whether it can be had."""

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
    """What will be served; nothing is written, no model is loaded.

    Raises:
        UserError: adapters for text and for pictures, and none of the two is named; or all that
            would keep the server from starting or from answering rightly.
    """
    return _EXAMINE[wanted.task or _task(wanted)](wanted, hardware)


def _task(wanted: Wanted) -> str:
    found = sources.tasks(wanted.sources, wanted.store)
    if len(found) > 1:
        raise UserError(
            "here are adapters for text and for pictures, and a server has one base",
            fix="name one: --task text or --task image; the other gets a server of its own",
        )
    return found.pop() if found else "text"
