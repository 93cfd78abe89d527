"""The answer of `GET /v1/adapters`: every published version, which is live, and its counts."""

from __future__ import annotations

import json
from collections.abc import Collection

from llm_lora import files
from llm_lora.adapter import folder as adapter
from llm_lora.errors import UserError
from llm_lora.files import Json
from llm_lora.serving.layer.catalog import Catalog
from llm_lora.serving.layer.loader import what
from llm_lora.serving.layer.metrics import Metrics
from llm_lora.store import ALIAS, Alias, Listed, ServedRow, Standing


def listing(catalog: Catalog, metrics: Metrics, *, loaded: Collection[str]) -> Json:
    """The adapters that a server knows, as JSON; reads files, so keep it off the event loop.

    Adapters that were trained on another base are left out. `loaded` holds the served names of
    the loaded versions. Who published a version, and why, is only in the history, which needs an
    admin key.
    """
    found = (_adapter(catalog, name, metrics, loaded) for name in catalog.store.names())
    return {
        "object": "list",
        "base": {"id": catalog.base_name, "requests": metrics.totals(None).requests},
        "data": [one.to_json() for one in found if one.versions],
    }


def _adapter(catalog: Catalog, name: str, metrics: Metrics, loaded: Collection[str]) -> Listed:
    try:
        alias, problem = catalog.store.alias(name), None
    except UserError as error:
        alias, problem = Alias(), f"{ALIAS}: {what(error)}"
    schemas = {}
    rows = []
    for version in filter(catalog.serves, catalog.store.versions(name)):
        path = version.folder / adapter.SCHEMA
        digest = None
        if path.is_file():
            text = files.read_text(path)
            digest = files.sha256(text)
            schemas[digest] = json.loads(text)
        if version.number == alias.live:
            problem = catalog.problem(version)
        totals = metrics.totals(version)
        rows.append(
            ServedRow.of(
                version,
                alias,
                requests=totals.requests,
                valid_rate=totals.valid_rate,
                loaded=version.served_name in loaded,
                schema=digest,
            )
        )
    return Listed(Standing.of(name, alias), problem, rows, schemas)
