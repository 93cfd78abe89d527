"""GET /v1/adapters: every version of this server's base, which is live, and its counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import vllm_forms as forms
from support.adapter_folders import SCHEMA
from support.layer_parts import publish

from llm_lora.base import text as bases
from llm_lora.cli import shelves
from llm_lora.serving.layer.adapters import listing
from llm_lora.serving.layer.catalog import Catalog
from llm_lora.serving.layer.metrics import Metrics
from llm_lora.store.aliases import ALIAS
from llm_lora.store.listing import Listed
from llm_lora.store.store import Store


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    digest = bases.resolve("tiny").digest
    return Catalog(Store(tmp_path / "store"), base_name="tiny", base_digest=digest)


def test_empty_store_lists_the_base_alone(catalog: Catalog) -> None:
    found = listing(catalog, Metrics(), loaded=())
    assert found == {"object": "list", "base": {"id": "tiny", "requests": 0}, "data": []}


def test_listing_tells_versions_alias_and_figures(catalog: Catalog, tmp_path: Path) -> None:
    store, metrics = catalog.store, Metrics()
    first = publish(store, tmp_path, "triage", 1, live=True)
    second = publish(store, tmp_path, "triage", 2)
    store.canary("triage", 2, 0.1, by="somebody", why="secret plans")
    store.promote("triage", 1, by="somebody")
    third = publish(store, tmp_path, "triage", 3)
    store.refuse("triage", third.number, "changes nothing")
    store.canary("triage", 2, 0.1, by="somebody", why="secret plans")
    for outcome in ("valid", "valid", "invalid", "aborted"):
        metrics.count(forms.exchange(version=first, outcome=outcome))
    (found,) = listing(catalog, metrics, loaded={second.served_name})["data"]
    assert (found["name"], found["live"], found["problem"]) == ("triage", 1, None)
    assert found["canary"] == {"number": 2, "share": 0.1}
    rows = found["versions"]
    assert [row["id"] for row in rows] == ["triage@1", "triage@2", "triage@3"]
    digests = [version.adapter_digest for version in (first, second, third)]
    assert [row["adapter_digest"] for row in rows] == digests
    assert [row["loaded"] for row in rows] == [False, True, False]
    assert [row["requests"] for row in rows] == [4, 0, 0]
    assert [row["valid_rate"] for row in rows] == [pytest.approx(2 / 3), None, None]
    assert [row["refused"] for row in rows] == [None, None, "changes nothing"]
    assert [row["passed"] for row in rows] == [True] * 3
    assert all(0 <= row["age_seconds"] < 60 for row in rows)
    assert found["schemas"] == {rows[0]["schema"]: json.loads(SCHEMA)}
    assert "somebody" not in json.dumps(found)
    assert "secret plans" not in json.dumps(found)


def test_the_command_line_shows_what_a_server_lists(
    catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = publish(catalog.store, tmp_path, "triage", 1, live=True)
    (found,) = listing(catalog, Metrics(), loaded={version.served_name})["data"]
    shelves.adapters([Listed.from_json(found)], "here")
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[:5] == ["triage@1", "live", "tiny", str(version.rank), "passed"]


def test_versions_of_another_base_are_left_out(catalog: Catalog, tmp_path: Path) -> None:
    publish(catalog.store, tmp_path, "triage", 1, live=True)
    other = Catalog(catalog.store, base_name="large", base_digest="f" * 64)
    assert listing(other, Metrics(), loaded=())["data"] == []


def test_damaged_alias_is_told_and_hides_no_other_adapter(catalog: Catalog, tmp_path: Path) -> None:
    publish(catalog.store, tmp_path, "broken", 1, live=True)
    publish(catalog.store, tmp_path, "sound", 2, live=True)
    (tmp_path / "store" / "broken" / ALIAS).write_text("{")
    fresh = Catalog(Store(tmp_path / "store"), base_name="tiny", base_digest=catalog._base_digest)
    broken, sound = listing(fresh, Metrics(), loaded=())["data"]
    assert (broken["live"], sound["live"]) == (None, 1)
    assert broken["problem"].startswith("alias.json: damaged")
    assert str(tmp_path) not in json.dumps(broken)
