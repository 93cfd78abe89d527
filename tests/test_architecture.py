"""Imports run one way, heavy libraries stay behind the engines, and quick commands stay quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import pytest
from support import imports
from support.places import ROOT

HEAVY = {"torch", "transformers", "vllm", "diffusers", "trl", "peft", "bitsandbytes", "datasets"}

LAYERS = """
errors task versions
files lora_prompt machine record
chance example recipe run schema weights
base progress scores
adapter grammar vision
data store
report validate
label
engines
tasks
export pipeline
serving
api
cli
"""
"""A package may import only from the packages of earlier lines."""

MODULES = sorted(imports.modules())


def test_every_package_has_a_layer() -> None:
    assert {imports.top(module) for module in MODULES} - {""} == set(LAYERS.split())


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    rank = {name: i for i, line in enumerate(LAYERS.splitlines()) for name in line.split()}
    own = imports.top(module)
    for one in imports.imports(module):
        other = imports.top(one.module)
        if own and other not in ("", own):
            assert rank[other] < rank[own], f"{module}:{one.line} imports {one.module}"


@pytest.mark.parametrize("module", MODULES)
def test_only_engines_import_heavy_libraries(module: str) -> None:
    if imports.top(module) != "engines":
        assert not imports.external(module) & HEAVY


@pytest.mark.parametrize("module", MODULES)
def test_other_packages_are_entered_through_their_door(module: str) -> None:
    inside = imports.package(module)
    for one in imports.imports(module):
        home = imports.package(one.source)
        if inside == home or inside.startswith(f"{home}.") or home == "llm_lora":
            continue
        place = f"{module}:{one.line}"
        assert imports.is_package(one.source), f"{place} imports from inside {home}: {one.source}"
        if not imports.is_package(one.module):
            assert one.name in imports.door(one.source), f"{place}: {one.name} is private to {home}"


def test_what_a_door_offers_is_there_and_used() -> None:
    used = {use for module in MODULES for use in imports.uses(module)}
    for package in filter(imports.is_package, MODULES):
        for name, module in imports.door(package).items():
            assert module in imports.modules(), f"{package}: no module {module}"
            if module != f"{package}.{name}":
                assert name in defined(module), f"{module} defines no {name}"
            # The names of the package itself are for users; test_python_api.py pins them.
            assert package == imports.ROOM or (package, name) in used, (
                f"{package}: nobody imports {name}"
            )


def defined(module: str) -> set[str]:
    """Names that a module defines at its top level."""
    names: set[str] = set()
    body = ast.parse(imports.modules()[module].read_text()).body
    for node in [
        *body,
        *(one for block in body if isinstance(block, ast.If) for one in block.body),
    ]:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {one.id for target in targets for one in ast.walk(target)
                          if isinstance(one, ast.Name)}  # fmt: skip
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def test_no_imports_run_in_a_circle() -> None:
    edges = {module: {one.module for one in imports.imports(module)} for module in MODULES}
    assert imports.circles(edges) == []


def test_no_folder_is_too_full_to_find_anything() -> None:
    folders = Counter(path.parent for path in imports.modules().values())
    assert max(folders.values()) <= 25


def test_tasks_are_told_apart_only_behind_the_boundary() -> None:
    for module, path in imports.modules().items():
        if imports.top(module) not in ("recipe", "engines", "tasks"):
            assert 'task == "' not in path.read_text(), module


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert imports.circles(edges) == [{"b", "c"}]


SCHEMA = "data_templates/medical_qa/answer.schema.json"


LIBRARIES = "import click, jsonschema_rs, rich.console, rich.markup, rich.table"
"""What every command that prints a table needs, whatever is ours."""
USUAL = 0.07
"""Processor seconds that Python takes for them on the machine that the limits were set on."""


def slowness(surroundings: dict[str, str]) -> float:
    """How many times slower than that machine this one is at the moment; 1 where it is not."""
    code = f"import time; {LIBRARIES}; print(time.process_time())"
    command = [sys.executable, "-c", code]
    tries = [
        subprocess.run(command, capture_output=True, check=True, env=surroundings).stdout
        for _ in range(3)
    ]
    return max(1.0, min(map(float, tries)) / USUAL)


def run_light(surroundings: dict[str, str], *arguments: str) -> tuple[int, float, str]:
    """Exit code, processor seconds and heavy modules of `llm-lora` in a fresh process."""
    code = (
        "import atexit, sys, time; sys.argv = ['llm-lora', *sys.argv[1:]]\n"
        f"heavy = {HEAVY!r}\n"
        "atexit.register(lambda: print(time.process_time(), sorted(heavy & set(sys.modules)), "
        "file=sys.stderr))\n"
        "from llm_lora.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=surroundings,
    )
    seconds, _, heavy = done.stderr.splitlines()[-1].partition(" ")
    return done.returncode, float(seconds), heavy


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("train", "--help"), 0),
        (("train", "no-such-recipe.yaml"), 2),
        (("train", "recipes/medical_qa.yaml", "--set", "lora.rnak=many"), 2),
        (("train", "recipes/style_lora.yaml", "--set", "lora.rank=many"), 2),
        (("validate", "tests/data/answers.jsonl", "--schema", SCHEMA), 1),
    ],
    ids=["help", "train help", "no recipe", "unknown setting", "wrong value", "validate"],
)
def test_quick_commands_are_quick_and_light(
    arguments: tuple[str, ...], code: int, surroundings: dict[str, str]
) -> None:
    tries = [run_light(surroundings, *arguments) for _ in range(4)]
    assert {(got, heavy) for got, _, heavy in tries} == {(code, "[]")}
    # Processor time, so that a busy machine does not fail it; 0.3 s is the promise to users.
    assert min(seconds for _, seconds, _ in tries) <= 0.3 * slowness(surroundings)


def test_schema_lint_is_light_and_takes_under_half_a_second(surroundings: dict[str, str]) -> None:
    tries = [run_light(surroundings, "schema", "lint", SCHEMA) for _ in range(4)]
    assert {(got, heavy) for got, _, heavy in tries} == {(0, "[]")}
    assert min(seconds for _, seconds, _ in tries) <= 0.5 * slowness(surroundings)


@pytest.mark.parametrize("name", ["medical_qa", "style_lora"])
def test_data_check_needs_no_heavy_library(name: str, surroundings: dict[str, str]) -> None:
    code, _, heavy = run_light(
        surroundings, "data", "check", f"recipes/{name}.yaml", "--profile", "cpu"
    )
    assert (code, heavy) == (0, "[]")
