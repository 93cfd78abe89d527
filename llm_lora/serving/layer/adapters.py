"""The answer of `GET /v1/adapters`: every published version, which is live, and its counts."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from llm_lora import files
from llm_lora.adapter import folder as adapter
from llm_lora.errors import UserError
from llm_lora.serving.layer.catalog import Catalog
from llm_lora.serving.layer.loader import what
from llm_lora.serving.layer.metrics import Metrics
from llm_lora.store import ALIAS, Alias, Version


def listing(catalog: Catalog, metrics: Metrics, *, loaded: Collection[str]) -> dict[str, Any]:
    """The adapters that a server knows, as JSON; reads files, so keep it off the event loop.

    Adapters that were trained on another base are left out. `loaded` holds the served names of
    the loaded versions. Who published a version, and why, is only in the history, which needs an
    admin key.
    """
    rows = (_adapter(catalog, name, metrics, loaded) for name in catalog.store.names())
    return {
        "object": "list",
        "base": {"id": catalog.base_name, "requests": metrics.totals(None).requests},
        "data": [row for row in rows if row["versions"]],
    }


def _adapter(
    catalog: Catalog, name: str, metrics: Metrics, loaded: Collection[str]
) -> dict[str, Any]:
    try:
        alias, problem = catalog.store.alias(name), None
    except UserError as error:
        alias, problem = Alias(), f"{ALIAS}: {what(error)}"
    schemas = {}
    versions = []
    for version in filter(catalog.serves, catalog.store.versions(name)):
        path = version.folder / adapter.SCHEMA
        digest = None
        if path.is_file():
            text = files.read_text(path)
            digest = files.sha256(text)
            schemas[digest] = json.loads(text)
        if version.number == alias.live:
            problem = catalog.problem(version)
        row = _version(version, alias, metrics)
        versions.append({**row, "loaded": version.served_name in loaded, "schema": digest})
    canary = alias.canary
    return {
        "name": name,
        "live": alias.live,
        "previous": alias.previous,
        "canary": {"number": canary.number, "share": canary.share} if canary else None,
        "changed": alias.changed["at"] if alias.changed else None,
        "problem": problem,
        "versions": versions,
        "schemas": schemas,
    }


def _version(version: Version, alias: Alias, metrics: Metrics) -> dict[str, Any]:
    totals = metrics.totals(version)
    published = datetime.fromisoformat(version.published["at"])
    return {
        "number": version.number,
        "id": version.label,
        "served": version.served_name,
        "adapter_digest": version.adapter_digest,
        "base": version.base_name,
        "rank": version.rank,
        "published": version.published["at"],
        "age_seconds": round((datetime.now(UTC) - published).total_seconds()),
        "passed": version.passed,
        "refused": alias.refused.get(version.number),
        "requests": totals.requests,
        "valid_rate": totals.valid_rate,
    }
