"""The base of an adapter, for any task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from llm_lora.adapter.manifest import Manifest
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
    """Find a base and check that it can take adapters of a task.

    Args:
        task: text or image.
        name: "tiny" (embedded), a folder, for images also a file, or a model on the hub.
        revision: branch, tag or commit on the hub.
        prediction: prediction type of an image base; "auto" uses the base's own.
        download: whether a model may be downloaded from the hub.

    Raises:
        UserError: it does not exist or is unsuitable.
    """
    return _RESOLVE[task](name, revision, prediction, download)


def trained_on(manifest: Manifest, *, download: bool = True) -> AnyBase:
    """The base that a manifest names, in its current state.

    Raises:
        UserError: as `resolve`.
    """
    told = manifest.base
    return resolve(
        manifest.task,
        told.name,
        told.revision,
        prediction=told.prediction,
        download=download,
    )


def at_hand(manifest: Manifest) -> AnyBase | None:
    """The base that an adapter was trained on, if this machine has it; never downloads it."""
    with suppress(UserError):
        base = trained_on(manifest, download=False)
        return base if base.digest == manifest.base.digest else None
    return None
