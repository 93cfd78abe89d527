"""API keys: one set for use, another for administration, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.types import Scope

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.serving.layer.asgi import header
from llm_lora.serving.layer.config import ServingConfig
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.routes import Access

API_KEYS = "LLM_LORA_API_KEYS"
ADMIN_KEYS = "LLM_LORA_ADMIN_KEYS"
"""Environment variables that hold keys, separated by commas."""

SHORTEST = 16
"""Fewest characters of a key; shorter ones can be guessed."""

_OTHERS = 0o007


@dataclass(frozen=True)
class Keys:
    """Digests of the keys; with none set for use, anyone who reaches the server may use it."""

    use: tuple[bytes, ...] = ()
    admin: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, config: ServingConfig, environment: Mapping[str, str] = os.environ) -> Keys:
        """The keys of the files that the configuration names, and of the environment.

        Raises:
            UserError: a file cannot be read, is open to others, or holds no key; a key is too
                short, has characters that a header cannot carry, or serves both purposes.
        """
        use = _gather(config.api_keys_file, API_KEYS, environment)
        admin = _gather(config.admin_keys_file, ADMIN_KEYS, environment)
        if set(use) & set(admin):
            raise UserError(
                "the same key is set for use and for administration",
                fix="use different keys for administration",
            )
        return cls(use, admin)

    def admits(self, scope: Scope) -> bool:
        """Whether a request to an open route may see details that are for key holders."""
        return not self.use or _among(_given(scope), (*self.use, *self.admin))

    def check(self, scope: Scope, access: Access) -> str:
        """Let a request pass, and return its key's name: the first digits of the digest.

        Raises:
            Refused: no key or a wrong one (401), or one that is not for this (403).
        """
        if access is Access.OPEN or (access is Access.USE and not self.use):
            return ""
        if access is Access.ADMIN and not self.admin:
            raise Refused(
                403,
                "the admin routes are disabled: the server has no admin keys; start it with "
                f"--admin-keys FILE or {ADMIN_KEYS}, or use the command line on its machine",
            )
        given = _given(scope)
        use, admin = _among(given, self.use), _among(given, self.admin)
        if not (use or admin):
            raise Refused(
                401,
                "this route needs an API key: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        if not (admin if access is Access.ADMIN else use):
            wanted = "administration" if access is Access.ADMIN else "use"
            raise Refused(403, f"this key does not permit {wanted}", code="wrong_key")
        return given.hex()[:8]


def any_for_use(path: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """A plain key for use, from the file or the environment; None where there is none.

    Raises:
        UserError: as for `Keys.read`.
    """
    return next(iter(_keys(path, API_KEYS, environment)), None)


def _given(scope: Scope) -> bytes:
    """Digest of the key that a request carries; of an empty text where it carries none."""
    values = header(scope, b"authorization")
    scheme, _, key = (values[0] if len(values) == 1 else b"").partition(b" ")
    return hashlib.sha256(key.strip() if scheme.lower() == b"bearer" else b"").digest()


def _among(given: bytes, keys: Iterable[bytes]) -> bool:
    """Whether a digest is one of the keys', in a time that does not reveal which."""
    found = False
    for key in keys:
        found |= hmac.compare_digest(given, key)
    return found


def _gather(path: Path | None, variable: str, environment: Mapping[str, str]) -> tuple[bytes, ...]:
    keys = _keys(path, variable, environment)
    return tuple(dict.fromkeys(hashlib.sha256(key.encode()).digest() for key in keys))


def _keys(path: Path | None, variable: str, environment: Mapping[str, str]) -> list[str]:
    keys: list[str] = []
    if path is not None:
        keys += _from_file(path)
    if variable in environment:
        found = [key.strip() for key in environment[variable].split(",") if key.strip()]
        if not found:
            raise UserError("set, but holds no key", where=variable, fix="unset it, or add a key")
        _check(found, variable)
        keys += found
    return keys


def _from_file(path: Path) -> list[str]:
    text = files.read_text(path)
    if path.stat().st_mode & _OTHERS:
        raise UserError(
            "other users may read or write this key file",
            where=str(path),
            fix=f"chmod o-rwx {path}",
        )
    lines = (line.strip() for line in text.splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError("this file holds no key", where=str(path), fix="write one key per line")
    _check(keys, str(path))
    return keys


def _check(keys: Iterable[str], where: str) -> None:
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"key {number} is not {SHORTEST} or more ASCII characters without spaces",
                where=where,
                fix="make one: python -c 'import secrets; print(secrets.token_urlsafe())'",
            )
