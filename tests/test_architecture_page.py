"""docs/architecture.md and CONTRIBUTING.md: the picture is drawn from the code, all names exist."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest
from support import imports
from support.places import ROOT

PAGE = ROOT / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """The script that draws the picture."""
    spec = importlib.util.spec_from_file_location("drawing", ROOT / "docs" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_the_one_that_the_code_draws(drawing: ModuleType) -> None:
    drawn = drawing.drawn(drawing.graph())
    assert drawn == drawing.PICTURE.read_text(), "run: python docs/architecture.py"


def test_arrows_point_downward_and_leave_out_only_what_follows(drawing: ModuleType) -> None:
    edges = {"top": {"left", "right", "leaf"}, "left": {"leaf"}, "right": {"leaf"}, "leaf": set()}
    assert drawing.rows(edges) == [["leaf"], ["left", "right"], ["top"]]
    kept = {"top": {"left", "right"}, "left": {"leaf"}, "right": {"leaf"}, "leaf": set()}
    assert drawing.reduced(edges) == kept


def test_every_package_is_described(drawing: ModuleType) -> None:
    described = re.findall(r"^\| `(\w+)` \| \S", PAGE.read_text(), re.MULTILINE)
    assert sorted(described) == sorted(drawing.graph())


def test_every_module_that_the_page_names_exists() -> None:
    text = PAGE.read_text()
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", text[text.index("## The life of a") :]))
    files = {"report.json", "report.html"}
    assert named >= {"pipeline", "serving.layer", "engines.image"}
    assert {one for one in named - files if f"llm_lora.{one}" not in imports.modules()} == set()


def test_every_place_that_contributors_are_sent_to_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    places = set(re.findall(r"`(llm_lora/[\w/]+)`", text))
    assert len(places) > 15
    assert [one for one in places
            if not (ROOT / one).is_dir() and not (ROOT / f"{one}.py").is_file()] == []  # fmt: skip
