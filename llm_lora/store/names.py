"""The rules for names of published adapters."""

from __future__ import annotations

import re
import unicodedata

from llm_lora.errors import UserError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHOWN = 80


def is_name(text: str) -> bool:
    """Whether an adapter may have this name."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """The name, if adapters may have it: `[a-z0-9][a-z0-9-]{0,62}`.

    Raises:
        UserError: they may not; proposes the nearest allowed name.
    """
    if is_name(name):
        return name
    nearest = suggest_name(name)
    raise UserError(
        "not a valid adapter name: use 1 to 63 of a-z, 0-9 and -, not starting with -",
        where=ascii(name[:_SHOWN]),
        fix=f"write {nearest}" if nearest else "choose a name like medical-qa",
    )


def suggest_name(text: str) -> str:
    """The nearest allowed name (`Medical_QA v2` → `medical-qa-v2`), or "" where nothing is left."""
    plain = unicodedata.normalize("NFKD", text[:1000]).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:63].strip("-")
