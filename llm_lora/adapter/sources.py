"""Inputs of image generation: adapters (runs, folders or files), and the base they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_lora import files
from llm_lora import run as runs
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.manifest import Manifest
from llm_lora.base import PictureBase
from llm_lora.base import image as picture_base
from llm_lora.errors import Problem, UserError

_SETTINGS = ("steps", "guidance", "negative_prompt", "width", "height", "scheduler")


@dataclass(frozen=True)
class Source:
    """An adapter: its name in prompts, its path, and its manifest if it has one."""

    name: str
    path: Path
    manifest: Manifest | None

    @property
    def settings(self) -> dict[str, object]:
        """The generation settings of its recipe."""
        sampling = self.manifest.sampling if self.manifest else {}
        return {key: sampling[key] for key in _SETTINGS if key in sampling}


def find(path: Path, name: str | None = None, step: int | None = None) -> Source:
    """Find the adapter that a path refers to.

    Args:
        path: a run, its folder `adapter`, or a .safetensors file.
        name: its name; if None, the name in its manifest, or its file's name.
        step: of a run: the adapter as saved after this many steps.

    Raises:
        UserError: there is none, it is damaged, or it is not an image adapter.
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
    if "steps" not in manifest.sampling:
        raise UserError(
            "this adapter is for text, not for pictures",
            where=str(path),
            fix="talk to it: llm-lora chat RUN",
        )
    return Source(name or manifest.name, path, manifest)


def base_of(sources: Sequence[Source], named: str | None = None) -> PictureBase:
    """Find the common base of these adapters.

    Args:
        sources: adapters.
        named: a base named by the user, which overrides the adapters' own.

    Raises:
        UserError: no base is known, or adapters were trained on another one (all of them).
    """
    told = [source.manifest.base for source in sources if source.manifest]
    if named is not None:
        # Some base files do not state their prediction type; the adapter knows it.
        prediction = told[0].prediction if told else "auto"
        base = picture_base.resolve(named, prediction=prediction)
    elif told:
        first = told[0]
        base = picture_base.resolve(first.name, first.revision, prediction=first.prediction)
    else:
        raise UserError(
            "no base to generate with",
            fix='name a run before the prompt, as in llm-lora generate RUN "a harbour", or give '
            "--base BASE",
        )
    others = [
        Problem(
            f"{source.name} was trained on {source.manifest.base.name}, not on {base.name}",
            str(source.path),
            "use adapters of one base",
        )
        for source in sources
        if source.manifest and source.manifest.base.digest != base.digest
    ]
    if others:
        raise UserError(others)
    return base


def own_name(path: Path) -> str:
    """An adapter's own name: from its folder's manifest, or its file name."""
    if (path / adapters.MANIFEST).is_file():
        return str(files.read_object(path / adapters.MANIFEST).get("name", path.name))
    return path.name if path.is_dir() else path.stem
