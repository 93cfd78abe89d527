"""The package as others install it: from a wheel or an sdist, with what it declares and no more."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from support.places import ROOT

import install
from llm_lora import files

pytestmark = pytest.mark.slow

INSTALLED = "import llm_lora.base.image as p; print(p.resolve('tiny').family, p.__file__)"
BESIDE = ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
"""What is built from, beside the package."""
TYPES = ("llm_lora/notes.pyi", "llm_lora/cli/notes.pyi")
"""Stubs at any depth; these are made for the test."""


def pip(*arguments: object) -> None:
    """pip without the settings of the machine."""
    command = [sys.executable, "-m", "pip", "--isolated", "-q", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull})


def held(wheel: Path) -> set[str]:
    """The files of a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def package() -> set[str]:
    """The files of the checkout's package, and the stubs made for the test."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "llm_lora").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return found.union(TYPES)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("source")
    for name in BESIDE:
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "llm_lora", copy / "llm_lora", ignore=ignored)
    for name in TYPES:
        (copy / name).touch()
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (built,) = (source / "dist").glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel, built from the sdist as an index's users may build it."""
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", sdist.parent, sdist)
    (built,) = sdist.parent.glob("*.whl")
    return built


def test_the_sdist_holds_the_package_and_what_it_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in names if ".egg-info/" not in name} == package() | {*BESIDE} | made


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    assert held(wheel) == package()
    assert {
        "llm_lora/assets/tiny_image/model_index.json",
        "llm_lora/cli/__main__.py",
        "llm_lora/py.typed",
        *TYPES,
    } <= held(wheel)


def test_the_wheel_says_its_licence_and_carries_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (place,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = Parser().parsestr(archive.read(place).decode())
        text = archive.read(str(Path(place).parent / "licenses" / "LICENSE")).decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert text == (ROOT / "LICENSE").read_text()
    assert {"serve", "gguf", "faces"} <= set(metadata.get_all("Provides-Extra", []))


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


# With what it declares, and without vLLM

EVERY_MODULE = """
import importlib, pkgutil, sys
import llm_lora
for module in pkgutil.walk_packages(llm_lora.__path__, "llm_lora."):
    if not module.name.endswith(".__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            print(module.name, error.name)
"""


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel and the dependencies that it declares.

    Packages come from the index that the machine is set up for, in the versions of the lock.
    """
    folder = tmp_path_factory.mktemp("bare")
    lock = (install.REQUIREMENTS / "cpu.txt").read_text().splitlines(keepends=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(line for line in lock if not line.startswith("vllm")))
    environment = folder / "venv"
    python = environment / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    into = [uv, "pip", "install", "-q", "--python", python, "-c", constraints]
    torch = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, environment], check=True)
    # As install.py does: the CPU build from the configured index, else from PyTorch's own.
    command = [*torch, "-c", constraints, f"{install.TORCH}+cpu"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        subprocess.run([*into, "--torch-backend", "cpu", install.TORCH], check=True)
    subprocess.run([*into, wheel], check=True)
    return python.parent


def asked(bare: Path, folder: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and everything printed by the installed `llm-lora`, run in a folder."""
    done = subprocess.run(
        [bare / "llm-lora", *map(str, arguments)],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


def test_without_vllm_every_module_imports_that_needs_no_extra(bare: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [bare / "python", "-I", "-c", EVERY_MODULE],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert {missing for _, missing in map(str.split, done.stdout.splitlines())} <= {"dlib", "vllm"}


def test_without_vllm_data_are_judged_and_recipes_read(bare: Path, tmp_path: Path) -> None:
    for name in ("recipes", "data_templates"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "tests" / "data" / "answers.jsonl", tmp_path)
    flat = ROOT / "tests" / "flat_recipes" / "style.yaml"
    schema = "data_templates/medical_qa/answer.schema.json"
    assert asked(bare, tmp_path, "--help")[0] == 0
    code, told = asked(bare, tmp_path, "validate", "answers.jsonl", "--schema", schema)
    assert (code, told.splitlines()[-1]) == (
        1,
        "3 of 5 answers valid (60.0%), 1 not fitting the schema, 1 not JSON",
    )
    for name in ("medical_qa", "style_lora"):
        recipe = f"recipes/{name}.yaml"
        code, told = asked(bare, tmp_path, "data", "check", recipe, "--profile", "cpu")
        assert code == 0 and re.search(r"\d+ train · .*\d+ held out", told)
    code, told = asked(bare, tmp_path, "recipe", "convert", flat)
    assert code == 0 and "task: image" in told


def test_without_vllm_a_server_is_asked_and_none_is_started(bare: Path, tmp_path: Path) -> None:
    code, told = asked(bare, tmp_path, "promote", "triage", "1", "--url", "http://127.0.0.1:9")
    assert code == 2 and "cannot reach the server" in told
    (tmp_path / "store").mkdir()
    code, told = asked(bare, tmp_path, "serve", "--store", "store", "--base", "tiny")
    assert code == 2 and "vLLM is not installed" in told and "llm-lora[serve]" in told
    code, told = asked(bare, tmp_path, "doctor")
    assert code == 0 and "vllm" not in told
