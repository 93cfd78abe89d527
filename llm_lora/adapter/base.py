"""The base that an adapter was trained on, whatever its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from llm_lora.adapter import folder as adapters
from llm_lora.base import Base, PictureBase
from llm_lora.base import image as picture_base
from llm_lora.base import text as bases
from llm_lora.errors import UserError

AnyBase = Base | PictureBase


def _text(name: str, revision: str | None, _: str, download: bool) -> AnyBase:
    return bases.resolve(name, revision, download=download)


def _image(name: str, revision: str | None, prediction: str, download: bool) -> AnyBase:
    return picture_base.resolve(name, revision, prediction=prediction, download=download)


_RESOLVE: dict[str, Callable[[str, str | None, str, bool], AnyBase]] = {
    "text": _text,
    "image": _image,
}


def resolve(
    task: str,
    name: str,
    revision: str | None = None,
    *,
    prediction: str = "auto",
    download: bool = True,
) -> AnyBase:
    """Find a base and check that adapters of a task can be put on it.

    Args:
        task: text or image.
        name: "tiny" (embedded), a folder, for pictures also a file, or a model on the hub.
        revision: branch, tag or commit on the hub.
        prediction: what the UNet of a base for pictures predicts, over what the base says.
        download: whether a model of the hub may be fetched.

    Raises:
        UserError: it is not there, or it does not do.
    """
    return _RESOLVE[task](name, revision, prediction, download)


def trained_on(manifest: Mapping[str, Any], *, download: bool = True) -> AnyBase:
    """The base that a manifest names, as it is found now.

    Raises:
        UserError: as `resolve`.
    """
    told = manifest["base"]
    return resolve(
        adapters.task_of(manifest),
        str(told["name"]),
        told.get("revision"),
        prediction=told.get("prediction", "auto"),
        download=download,
    )


def at_hand(manifest: Mapping[str, Any]) -> AnyBase | None:
    """The very base that an adapter was trained on, where this machine has it; never fetched."""
    with suppress(UserError):
        base = trained_on(manifest, download=False)
        return base if base.digest == manifest["base"]["digest"] else None
    return None
