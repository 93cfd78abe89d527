"""Serving of a merged model: one version answers, and nothing is loaded."""

from __future__ import annotations

from pathlib import Path

from llm_lora import files
from llm_lora.adapter import Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.base import Base
from llm_lora.base import text as bases
from llm_lora.errors import UserError
from llm_lora.serving.layer.loader import Loader
from llm_lora.serving.layer.terms import Terms
from llm_lora.serving.sources import Candidate
from llm_lora.store import Version, published


class Whole(Loader):
    """A loader for a server whose model is the version itself, merged before the start."""

    async def load(self, version: Version) -> None:
        """Do nothing: the server started with it."""

    async def unload(self, version: Version) -> None:
        """Do nothing: the server has no other model."""

    async def prove(self, version: Version, terms: Terms) -> None:
        """Do nothing: there is no base to compare it with; merging measured it."""

    def _require_effect(self, version: Version, adapter: Adapter) -> None:
        """Do nothing: merging mapped every weight."""


def find(folder: Path, candidate: Candidate) -> tuple[Base, str]:
    """The model that was merged from a run's adapter, and its name in vLLM.

    Raises:
        UserError: there is no merged model, a file of it was changed, or it was merged from another
            adapter.
    """
    path = folder / adapters.MANIFEST
    manifest = files.read_object(path) if path.is_file() else {}
    again = f"llm-lora merge {candidate.label} --out DIR"
    if manifest.get("kind") != "merged":
        raise UserError("not a merged model", where=str(folder), fix=f"make one: {again}")
    base = bases.resolve(str(folder.resolve()))
    if base.digest != manifest["digest"]:
        raise UserError("a file of the merged model was changed", where=str(folder), fix=again)
    if manifest["adapter"]["digest"] != candidate.adapter.digest:
        raise UserError(
            f"merged from an adapter other than that of {candidate.label}",
            where=str(folder),
            fix=f"name its run, or merge this one: {again}",
        )
    content = published.gather(candidate.adapter.path, candidate.report)
    return base, published.served_name(candidate.name, content.digest)
