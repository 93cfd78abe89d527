"""Imports run one way, heavy libraries stay behind the engines, and quick commands stay quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import PACKAGE

HEAVY = {"torch", "transformers", "vllm", "diffusers", "trl", "peft", "bitsandbytes", "datasets"}

# A module may import only from modules of earlier lines, or of its own line.
LAYERS = [
    ["errors"],
    ["files", "folders", "versions"],
    ["jsontext", "bulk", "repair", "intake", "yaml_source", "qa_text", "rows"],
    ["mistakes", "flat_values", "flat_recipe", "lora_prompt"],
    ["recipe_scalars", "recipe_root", "recipe_layers"],
    ["recipe_blocks", "recipe_types", "recipe_image_blocks", "recipe_image", "recipe"],
    ["assignment", "intervals"],
    ["subschemas", "bundle", "canonical", "keywords", "narrowing", "verdict", "schema"],
    ["fields", "scores", "figures"],
    ["decoding", "grammar", "features", "extent"],
    ["probes", "habits", "lint", "fit", "stricter", "inferring", "sampling"],
    ["formats", "base", "plan", "tensors"],
    ["picture_family", "picture_configs", "single_file", "picture_base"],
    [
        "arrays",
        "chance",
        "learning_curve",
        "picture_figures",
        "buckets",
        "webui",
        "lora_files",
        "webui_metadata",
    ],
    ["masks"],
    ["calibration", "gates", "picture_gates", "chat"],
    ["weighing", "preference"],
    ["duplicates", "split", "findings", "sieve", "dataset"],
    ["picture_files", "caption_table", "captions", "caption_lint"],
    ["picture_folder", "picture_likeness", "picture_split", "picture_findings", "pictures"],
    ["vision_models", "face_models", "judges", "candidates", "label_sheet"],
    ["labelling"],
    ["differences", "samples", "timing"],
    ["adapter", "charts", "envelope", "page", "report", "run", "validate"],
    ["label_review", "versus", "picture_sources"],
    ["any_base", "picture_mapping", "mapping", "llamacpp"],
    ["names", "aliases", "published", "shelf", "store"],
    ["engines"],
    ["picture_embed", "picture_page", "picture_report", "picture_versus", "rivals"],
    ["tasks", "prepared", "learning", "text_task", "image_task", "pipeline"],
    ["merge", "export", "webui_export"],
    ["serving"],
    ["cli"],
]


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "assets"]


def unit(path: Path) -> str:
    """`errors.py` → errors, `engines/text.py` → engines, the package itself → ''."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module name that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            if node.module == "llm_lora":
                names |= {f"llm_lora.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_layer() -> None:
    known = {name for layer in LAYERS for name in layer}
    assert {unit(path) for path in modules()} - known == {""}
    assert len(modules()) > 20


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    own = rank.get(unit(path), -1)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "llm_lora" and len(parts) > 1 and parts[1] in rank:
            assert rank[parts[1]] <= own, f"{path.name} imports {name}"
        if parts[0] in HEAVY:
            assert unit(path) == "engines", f"{path.name} imports {name}"


def test_tasks_are_told_apart_only_behind_the_boundary() -> None:
    for path in modules():
        if unit(path) not in ("recipe", "recipe_types", "engines"):
            assert 'task == "' not in path.read_text(), path


ROOT = PACKAGE.parent
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
