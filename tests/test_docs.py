"""What the documents point to is there: files, headings, commands and their options."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from support.module_names import is_module, names
from support.places import ROOT

from llm_lora.cli.commands import app

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
MORE = [
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
    *sorted((ROOT / "pretraining").glob("*/README.md")),
]
_FOLDERS = "llm_lora|tests|benchmarks|pretraining|recipes|docs|data_templates|requirements|serve"
_PATH = re.compile(rf"(?<![\w/.-])(?:{_FOLDERS})/[\w./-]*")
_DOTTED = re.compile(r"(?<![\w/.-])(?:llm_lora|benchmarks|pretraining)(?:\.[a-zA-Z_]\w*)+")
NOT_MODULES = {"llm_lora.json", "llm_lora.answer_schema"}
"""A file of every adapter, and a key in the metadata of an exported model."""
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"(?:^ *|`|\$ )llm-lora ((?:[a-z][a-z-]*[a-z] ?)+)(.*?)(?=[`|#]|$)", re.MULTILINE
)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def anchors(page: Path) -> set[str]:
    """What links may point to behind a #, as GitHub makes it of headings."""
    text = _FENCED.sub("", page.read_text())
    plain = (re.sub(r"[`*]|\[|\]\([^)]*\)", "", found[1]) for found in _HEADING.finditer(text))
    return {re.sub(r"[^\w\- ]", "", one.strip().lower()).replace(" ", "-") for one in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = []
    for found in _LINK.finditer(_FENCED.sub("", page.read_text())):
        path, _, anchor = found[1].partition("#")
        if path.startswith(("http:", "https:")):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(found[1])
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_with_its_options(page: Path) -> None:
    for found in _COMMAND.finditer(page.read_text()):
        command: click.Command = app
        for word in found[1].split():
            if isinstance(command, click.Group):
                assert word in command.commands, found[0]
                command = command.commands[word]
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        assert {*_OPTION.findall(found[2])} <= known | {"--help", "--version"}, found[0]


@pytest.mark.parametrize("page", [*PAGES, *MORE], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_and_module_is_there(page: Path) -> None:
    text = page.read_text()
    paths = {found[0].rstrip(".") for found in _PATH.finditer(text)}
    # Modules are also named by their path without its ending.
    assert {path for path in paths if not any(map(Path.exists, _places(path)))} == set()
    dotted = {found[0] for found in _DOTTED.finditer(text)} - NOT_MODULES
    assert {name for name in dotted if not _is_known(name)} == set()


def _places(path: str) -> tuple[Path, Path]:
    return ROOT / path, ROOT / f"{path}.py"


def _is_known(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    return is_module(name) or attribute in names(module)
