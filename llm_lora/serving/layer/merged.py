"""A merged model in the place of base and adapter: one version answers, and nothing is loaded."""

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
    """For a server whose model is the version itself, merged into its base before it started."""

    async def load(self, version: Version) -> None:
        """Nothing: the server began with it."""

    async def unload(self, version: Version) -> None:
        """Nothing: the server has no other model."""

    async def prove(self, version: Version, terms: Terms) -> None:
        """Nothing: there is no base to compare it with; merging measured it."""

    def _require_effect(self, version: Version, adapter: Adapter) -> None:
        """Nothing: merging put every weight into its place."""


def find(folder: Path, candidate: Candidate) -> tuple[Base, str]:
    """The model that was merged from a run's adapter, and the name that vLLM is to give it.

    Raises:
        UserError: no merged model is there, a file of it was changed, or it is another adapter's.
    """
    path = folder / adapters.MANIFEST
    manifest = files.read_object(path) if path.is_file() else {}
    again = f"llm-lora merge {candidate.label} --out DIR"
    if manifest.get("kind") != "merged":
        raise UserError("no merged model here", where=str(folder), fix=f"make one: {again}")
    base = bases.resolve(str(folder.resolve()))
    if base.digest != manifest["digest"]:
        raise UserError(
            "not the model that was merged: a file was changed", where=str(folder), fix=again
        )
    if manifest["adapter"]["digest"] != candidate.adapter.digest:
        raise UserError(
            f"merged from another adapter than that of {candidate.label}",
            where=str(folder),
            fix=f"name its run, or merge this one: {again}",
        )
    content = published.gather(candidate.adapter.path, candidate.report)
    return base, published.served_name(candidate.name, content.digest)
