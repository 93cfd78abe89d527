"""What contributors are told and given: links lead somewhere, targets exist, forms are valid."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from support.places import ROOT
from test_docs import anchors

PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES.append(ROOT / ".github" / "pull_request_template.md")
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
SCRIPTS = Path(sys.executable).parent


def targets() -> set[str]:
    """What `make` can be asked for."""
    found = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    return set(found[1].split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_files_and_targets_are_there(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if not path.startswith("https:"):
            assert (page.parent / path).exists(), link
            assert not anchor or anchor in anchors(page.parent / path), link
    for path in re.findall(r"`((?:docs|tests|recipes|requirements|serve)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    code = "\n".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))
    assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= targets()


def test_the_makefile_explains_every_target_for_tests() -> None:
    text = (ROOT / "Makefile").read_text()
    assert {"check", "test", "test-fast", "test-long"} <= targets()
    for target in targets():
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
        if target.startswith(("check", "test")):
            assert re.search(rf"^# make {target} ", text, re.MULTILINE), target


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_for_issues_fits_its_schema(form: Path) -> None:
    kind = "config" if form.stem == "config" else "forms"
    command = [SCRIPTS / "check-jsonschema", "--builtin-schema", f"vendor.github-issue-{kind}"]
    done = subprocess.run([*command, form], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commits_are_checked_by_the_tools_of_the_environment() -> None:
    repositories = YAML(typ="safe").load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [one["repo"] for one in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]
    for hook in hooks:
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/") and (SCRIPTS / Path(tool).name).exists()


def test_the_changelog_has_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version[1]]
