"""The allow-list of routes, with the key that each one needs."""

from __future__ import annotations

from enum import Enum

from llm_lora.serving.layer.errors import Refused
from llm_lora.task import TASKS


class Access(Enum):
    """The kind of key that a route needs."""

    OPEN = "open"
    USE = "use"
    ADMIN = "admin"


_COMMON: dict[str, tuple[str, Access]] = {
    "/": ("GET", Access.OPEN),
    "/health": ("GET", Access.OPEN),
    "/ready": ("GET", Access.OPEN),
    "/version": ("GET", Access.OPEN),
    "/metrics": ("GET", Access.USE),
    "/v1/models": ("GET", Access.USE),
    "/v1/adapters": ("GET", Access.USE),
    "/admin/promote": ("POST", Access.ADMIN),
    "/admin/rollback": ("POST", Access.ADMIN),
    "/admin/canary": ("POST", Access.ADMIN),
    "/admin/load": ("POST", Access.ADMIN),
    "/admin/history": ("GET", Access.ADMIN),
}

MODEL_ROUTES = frozenset(path for task in TASKS.values() for path in task.routes)
"""Routes whose body names a model."""

ROUTES: dict[str, dict[str, tuple[str, Access]]] = {
    name: {**_COMMON, **dict.fromkeys(task.routes, ("POST", Access.USE))}
    for name, task in TASKS.items()
}
"""Method and key of every route of a server, by its task."""


def access(method: str, path: str, task: str = "text") -> Access:
    """Who may use a route of a server for a task.

    Only the exact path counts: the inner app sees the same text, and must never take it for another
    of its routes.

    Raises:
        Refused: the route is unknown (404), or takes another method (405).
    """
    found = ROUTES[task].get(path)
    if found is None:
        raise Refused(404, f"unknown route {path[:200]}", code="unknown_route")
    wanted, access = found
    if method != wanted:
        raise Refused(
            405,
            f"{path} takes {wanted}, not {method[:20]}",
            headers=[(b"allow", wanted.encode())],
        )
    return access
