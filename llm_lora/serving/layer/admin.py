"""Administration over HTTP: moving aliases, loading ahead, the history."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from llm_lora.adapter import AnyBase
from llm_lora.adapter import base as any_base
from llm_lora.errors import UserError
from llm_lora.files import Json
from llm_lora.serving.layer.catalog import Catalog
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.loader import Unfit
from llm_lora.serving.layer.residents import Residents
from llm_lora.serving.layer.text import read_object
from llm_lora.store import Alias, Event, Standing, UnknownAdapter, Version, is_name

_FIELDS = {
    "/admin/promote": {"name", "version", "force", "why"},
    "/admin/rollback": {"name", "why"},
    "/admin/canary": {"name", "version", "share", "force", "why"},
    "/admin/load": {"name", "version"},
}


class Admin:
    """Carries out admin calls.

    A version is loaded and probed before an alias moves to it, so that no request waits for the
    load and none is answered by an adapter without effect.
    """

    def __init__(
        self,
        catalog: Catalog,
        residents: Residents,
        *,
        base_path: Path,
        prediction: str = "auto",
    ) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._residents = residents
        self._base_path = base_path
        self._prediction = prediction

    async def post(self, path: str, body: bytes, by: str) -> Json:
        """Answer a POST route.

        Raises:
            Refused: the body is invalid (400), the version is unknown (404), the store or the
                server refuses (409, 422, 503), or the store cannot be written (503, 507).
        """
        asked = _Asked(path, read_object(body))
        if path != "/admin/load" and asked.name == self._catalog.base_name:
            raise Refused(
                409,
                f"{asked.name} is also the name of the base, which answers instead; "
                "publish the adapter under another name",
                param="name",
                code="name_of_the_base",
            )
        try:
            if path == "/admin/rollback":
                return (await self._rollback(asked, by)).to_json()
            version = await asyncio.to_thread(self._store.version, asked.name, asked.version)
            if not self._catalog.serves(version):
                raise Refused(409, self._catalog.unlike(version), param="version")
            if path == "/admin/load":
                self._residents.release(await self._residents.acquire(version))
                return {"name": version.name, "loaded": version.number}
            return (await self._move(path, asked, version, by)).to_json()
        except UnknownAdapter as error:
            raise Refused(404, str(error), code="adapter_not_found") from None
        except UserError as error:
            raise _no(error) from None

    async def history(self, query: bytes) -> Json:
        """Answer GET /admin/history.

        Raises:
            Refused: the name is missing (400) or not in the store (404).
        """
        names = parse_qs(query.decode("ascii", "replace")).get("name", [])
        if len(names) != 1:
            raise Refused(400, "`name` is missing: call /admin/history?name=NAME", param="name")
        try:
            events = await asyncio.to_thread(self._events, names[0])
        except UserError as error:
            raise Refused(404, str(error), param="name") from None
        return {"object": "list", "data": [event.to_json() for event in events]}

    def _events(self, name: str) -> list[Event]:
        """The history of a name; it is kept when all versions are removed."""
        events = self._store.history(name)
        if not events:
            self._store.alias(name)  # Raises an error that lists the known names.
        return events

    async def _move(self, path: str, asked: _Asked, version: Version, by: str) -> Standing:
        """Promote a version or put it on trial."""
        name, number, force, why = version.name, version.number, asked.force, asked.why

        def base() -> AnyBase:
            where = str(self._base_path)
            return any_base.resolve(version.task, where, prediction=self._prediction)

        def promote() -> Alias:
            return self._store.promote(name, number, by=by, why=why, force=force, base=base())

        def canary() -> Alias:
            return self._store.canary(
                name, number, asked.share, by=by, why=why, force=force, base=base()
            )

        if path == "/admin/canary" and asked.share == 0:
            return Standing.of(name, await asyncio.to_thread(canary))
        return await self._swap(version, promote if path == "/admin/promote" else canary, force)

    async def _rollback(self, asked: _Asked, by: str) -> Standing:
        name = asked.name
        previous = (await asyncio.to_thread(self._store.alias, name)).previous
        if previous is None:
            alias = await asyncio.to_thread(self._store.rollback, name, by=by, why=asked.why)
            return Standing.of(name, alias)
        version = await asyncio.to_thread(self._store.version, name, previous)
        return await self._swap(
            version, lambda: self._store.rollback(name, by=by, why=asked.why), force=True
        )

    async def _swap(self, version: Version, move: Callable[[], Alias], force: bool) -> Standing:
        """Load a version, then move the alias to it; `force`: also where it has no effect."""
        # Loaded first, so that requests find it ready once the alias has moved. Held until then,
        # because an idle version that no alias points to is the first to be evicted.
        resident = None
        try:
            resident = await self._residents.acquire(version)
        except Unfit:
            if not force:
                raise
        try:
            alias = await asyncio.to_thread(move)
        finally:
            if resident is not None:
                self._residents.release(resident)
        if resident is None:
            self._residents.forget_failure(version)
            self._residents.prepare(version)
        return Standing.of(version.name, alias)


class _Asked:
    """The members of an admin call, each checked when it is read."""

    def __init__(self, path: str, fields: Json) -> None:
        unknown = fields.keys() - _FIELDS[path]
        if unknown:
            known = ", ".join(sorted(_FIELDS[path]))
            raise Refused(400, f"unknown member {min(unknown)[:60]!r}; {path} takes {known}")
        self._fields = fields

    @property
    def name(self) -> str:
        name = str(self._of("name", str, "a valid adapter name"))
        if not is_name(name):
            raise Refused(400, "name: not a valid adapter name", param="name")
        return name

    @property
    def version(self) -> int:
        number: int = self._of("version", int, "a version number")
        if not 0 < number < 10**6:
            raise Refused(400, "version: not a version number", param="version")
        return number

    @property
    def share(self) -> float:
        share: float = self._of("share", (int, float), "a number from 0 to 1")
        if not 0 <= share <= 1:
            raise Refused(400, "share: not a number from 0 to 1", param="share")
        return float(share)

    @property
    def force(self) -> bool:
        return bool(self._of("force", bool, "true or false", False))

    @property
    def why(self) -> str:
        return str(self._of("why", str, "a string", ""))

    def _of(
        self, name: str, kind: type | tuple[type, ...], wanted: str, default: object = None
    ) -> Any:
        value = self._fields.get(name)
        if value is None:
            value = default
        # In Python True is an int; in JSON it is no number.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise Refused(400, f"{name}: not {wanted}", param=name)
        return value


def _no(error: UserError) -> Refused:
    """The reply to a failed alias move: a refusal, or a store that could not be written."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
        return Refused(409, str(error), code="refused_by_store")
    status = 507 if cause.errno in (errno.ENOSPC, errno.EDQUOT) else 503
    return Refused(status, str(error), code="store_failed")
