"""The routes that are open to the outside, and who may use them; there are no others."""

from __future__ import annotations

from enum import Enum

from llm_lora.serving.errors import Refused


class Access(Enum):
    """Which key a route asks for."""

    OPEN = "open"
    USE = "use"
    ADMIN = "admin"


MODEL_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/tokenize"})
"""Routes whose body names a model."""

ROUTES: dict[str, tuple[str, Access]] = {
    "/": ("GET", Access.OPEN),
    "/health": ("GET", Access.OPEN),
    "/ready": ("GET", Access.OPEN),
    "/version": ("GET", Access.OPEN),
    "/metrics": ("GET", Access.USE),
    "/v1/models": ("GET", Access.USE),
    "/v1/adapters": ("GET", Access.USE),
    "/v1/chat/completions": ("POST", Access.USE),
    "/v1/completions": ("POST", Access.USE),
    "/tokenize": ("POST", Access.USE),
    "/admin/promote": ("POST", Access.ADMIN),
    "/admin/rollback": ("POST", Access.ADMIN),
    "/admin/canary": ("POST", Access.ADMIN),
    "/admin/load": ("POST", Access.ADMIN),
    "/admin/history": ("GET", Access.ADMIN),
}


def access(method: str, path: str) -> Access:
    """Who may use a route.

    Only the exact path counts, so that the inner app, which sees the same text, can never take it
    for another of its routes.

    Raises:
        Refused: there is no such route (404), or it takes another method (405).
    """
    found = ROUTES.get(path)
    if found is None:
        raise Refused(404, f"there is no {path[:200]} here", code="unknown_route")
    wanted, access = found
    if method != wanted:
        raise Refused(
            405,
            f"{path} takes {wanted}, not {method[:20]}",
            headers=[(b"allow", wanted.encode())],
        )
    return access
