"""The package as others install it: a wheel with everything in it, from an index of one's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.places import ROOT

from llm_lora import files

pytestmark = pytest.mark.slow

INSTALLED = "import llm_lora.base.image as p; print(p.resolve('tiny').family, p.__file__)"


def pip(*arguments: object) -> None:
    """pip without the settings of the machine."""
    command = [sys.executable, "-m", "pip", "--isolated", "-q", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "llm_lora", source / "llm_lora", ignore=ignored)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", source / "dist", source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "llm_lora").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == package
    assert {"llm_lora/assets/tiny_image/model_index.json", "llm_lora/cli/__main__.py"} <= held


def test_it_installs_from_an_index_and_runs_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    project = tmp_path / "simple" / "llm-lora"
    project.mkdir(parents=True)
    shutil.copy(wheel, project)
    link = f'<a href="{wheel.name}#sha256={files.file_sha256(wheel)}">{wheel.name}</a>'
    (project / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    index = (tmp_path / "simple").as_uri()
    pip("install", "--no-deps", "--index-url", index, "--target", target, "llm-lora")
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*command: object) -> str:
        arguments = [*map(str, command)]
        return subprocess.run(
            arguments, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert " train " in run(target / "bin" / "llm-lora", "--help")
    family, _, place = run(sys.executable, "-c", INSTALLED).partition(" ")
    assert family == "sd1" and Path(place.strip()).is_relative_to(target)
