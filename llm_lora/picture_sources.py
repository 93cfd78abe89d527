"""Sources for painting: adapters by run, folder or file, and their base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora import adapter as adapters
from llm_lora import base as bases
from llm_lora import picture_base
from llm_lora import run as runs
from llm_lora.errors import Problem, UserError
from llm_lora.picture_base import PictureBase

_SETTINGS = ("steps", "guidance", "negative_prompt", "width", "height", "scheduler")


@dataclass(frozen=True)
class Source:
    """An adapter: its name in prompts, its path, and its manifest where it has one."""

    name: str
    path: Path
    manifest: dict[str, Any] | None

    @property
    def settings(self) -> dict[str, Any]:
        """The sampling settings of its recipe."""
        sampling = (self.manifest or {}).get("sampling", {})
        return {key: sampling[key] for key in _SETTINGS if key in sampling}


def find(path: Path, name: str | None = None, step: int | None = None) -> Source:
    """The adapter that a user means by a path.

    Args:
        path: a run, its folder `adapter`, or a .safetensors file.
        name: its name in prompts; None: its own name, or that of its file.
        step: for a run: the adapter as saved after so many steps.

    Raises:
        UserError: it is missing, damaged, or not for pictures.
    """
    if step is not None and (path.is_file() or (path / adapters.WEIGHTS).is_file()):
        raise UserError(
            "--step needs a run, but this is an adapter", where=str(path), fix="name the run"
        )
    if path.is_file():
        return Source(name or path.stem, path, None)
    if not (path / adapters.WEIGHTS).is_file():
        here = runs.find(path)
        here.read(here.fit)
        path = here.adapter_after(step)
    if not (path / adapters.MANIFEST).is_file():
        return Source(name or path.name, path, None)
    manifest = adapters.read(path).manifest
    if "sampling" not in manifest or "steps" not in manifest["sampling"]:
        raise UserError(
            "this adapter is for text, not for pictures",
            where=str(path),
            fix="talk to it: llm-lora chat RUN",
        )
    return Source(name or str(manifest["name"]), path, manifest)


def base_of(sources: Sequence[Source], named: str | None = None) -> PictureBase:
    """The base that all these adapters are for.

    Args:
        sources: adapters.
        named: a base that the user names, instead of that of the adapters.

    Raises:
        UserError: no base is known, or adapters were trained on another one (lists all).
    """
    told = [source.manifest["base"] for source in sources if source.manifest]
    if named is not None:
        # Some files do not state their prediction type, but the adapter does.
        prediction = told[0]["prediction"] if told else "auto"
        base = picture_base.resolve(named, prediction=prediction)
    elif told:
        first = told[0]
        base = picture_base.resolve(
            first["name"], first["revision"], prediction=first["prediction"]
        )
    else:
        raise UserError(
            "no base to paint with is named",
            fix='name a run before the prompt, as in llm-lora generate RUN "a harbour", or give '
            "--base BASE",
        )
    others = [
        Problem(
            f"{source.name} was trained on {source.manifest['base']['name']}, not on {base.name}",
            str(source.path),
            "use adapters of one base",
        )
        for source in sources
        if source.manifest and source.manifest["base"]["digest"] != base.digest
    ]
    if others:
        raise UserError(others)
    return base


def own_name(path: Path) -> str:
    """The name of an adapter: from its folder's manifest, or that of its file."""
    if (path / adapters.MANIFEST).is_file():
        return str(bases.read_object(path / adapters.MANIFEST).get("name", path.name))
    return path.name if path.is_dir() else path.stem
