"""The import graph of the package, read from its source: modules, doors and who imports whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support.places import PACKAGE

ROOM = "llm_lora"


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is where it is defined, `source` what the statement names."""

    source: str
    name: str | None
    module: str
    line: int


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the package by its dotted name; a package goes by the name of its folder."""
    return {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def dotted(path: Path) -> str:
    """`llm_lora/store/names.py` → llm_lora.store.names, `llm_lora/store/__init__.py` → …store."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_package(module: str) -> bool:
    """Whether the module is a folder's `__init__.py`."""
    return modules()[module].name == "__init__.py"


def package(module: str) -> str:
    """The package that a module belongs to; a package belongs to itself."""
    return module if is_package(module) else module.rpartition(".")[0]


def top(module: str) -> str:
    """llm_lora.store.names → store; the package itself → ''."""
    return module.split(".")[1] if "." in module else ""


@cache
def door(name: str) -> Mapping[str, str]:
    """The public names of a package with the module that defines each, read from its stub."""
    stub = modules()[name].with_suffix(".pyi")
    if not stub.is_file():
        return {}
    names: dict[str, str] = {}
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            inner = f"{name}.{node.module}" if node.module else name
            for alias in node.names:
                names[alias.name] = inner if node.module else f"{name}.{alias.name}"
    return names


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What a module imports from this project, also inside functions and for type checking."""
    return tuple(_imports(ast.parse(modules()[module].read_text())))


def _imports(tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == ROOM:
                    yield Import(alias.name, None, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            source = node.module or ""
            if source.partition(".")[0] != ROOM:
                continue
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found = inner if inner in modules() else door(source).get(alias.name, source)
                yield Import(source, alias.name, found, node.lineno)


def uses(module: str) -> set[tuple[str, str]]:
    """Names used of packages: imported from their doors, or written behind the package's name."""
    tree = ast.parse(modules()[module].read_text())
    packages: dict[str, str] = {}
    found: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found.add((node.module, alias.name))
                packages[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add((packages.get(node.value.id, ""), node.attr))
    return found


def external(module: str) -> set[str]:
    """Top-level names of what a module imports from elsewhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - {ROOM}


def circles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """Strongly connected groups of more than one node (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                groups.append(set(stack[at:]))
            del stack[at:]

    for node in edges:
        if node not in number:
            visit(node)
    return groups
