"""Imports run one way, heavy libraries stay behind the engines, and quick commands stay quick."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llm_lora"
HEAVY = {"torch", "transformers", "vllm", "diffusers", "trl", "peft", "bitsandbytes", "datasets"}

# A module may import only from modules of earlier lines, or of its own line.
LAYERS = [
    ["errors"],
    ["files", "versions"],
    ["jsontext", "yaml_source", "rows"],
    ["mistakes", "recipe_types", "recipe_layers", "recipe"],
    ["subschemas", "canonical", "verdict", "schema", "fields", "scores"],
    ["formats", "base", "plan"],
    ["chat"],
    ["duplicates", "split", "findings", "sieve", "dataset"],
    ["adapter", "charts", "page", "report", "run", "validate"],
    ["engines"],
    ["pipeline", "serving"],
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


def loaded_by(*arguments: str) -> tuple[float, str]:
    """Seconds and heavy modules of one `llm-lora` command in a fresh process."""
    code = (
        "import sys; sys.argv = ['llm-lora', *sys.argv[1:]]\n"
        "from llm_lora.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    return time.perf_counter() - started, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("train", "--help"),
        ("train", "no-such-recipe.yaml"),
        (
            "validate",
            "tests/data/answers.jsonl",
            "--schema",
            "data_templates/medical_qa/answer.schema.json",
        ),
    ],
    ids=["help", "train help", "recipe error", "validate"],
)
def test_quick_commands_are_quick_and_light(arguments: tuple[str, ...]) -> None:
    seconds, heavy = min(loaded_by(*arguments) for _ in range(3))
    assert heavy == "HEAVY []"
    assert seconds < 0.5


def test_data_check_needs_no_heavy_library() -> None:
    _, heavy = loaded_by("data", "check", "recipes/medical_qa.yaml", "--profile", "cpu")
    assert heavy == "HEAVY []"
