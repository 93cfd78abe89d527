"""Names of the project's modules and what these define, read without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from support.places import ROOT


def source(module: str) -> Path | None:
    """The file of a module, for a package that of the names it makes public."""
    path = ROOT.joinpath(*module.split("."))
    tried = path.with_suffix(".py"), path / "__init__.pyi", path / "__init__.py"
    return next((one for one in tried if one.is_file()), None)


@cache
def names(module: str) -> frozenset[str]:
    """What a module defines or imports at its top level, read without importing it."""
    path = source(module)
    return frozenset(_bound(ast.parse(path.read_text()).body)) if path else frozenset()


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (one.asname or one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.If | ast.Try):
            yield from _bound([*node.body, *node.orelse])
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for one in (found for target in targets for found in ast.walk(target)):
                if isinstance(one, ast.Name):
                    yield one.id


def is_module(name: str) -> bool:
    """Whether a dotted name is that of a file or folder."""
    return source(name) is not None or ROOT.joinpath(*name.split(".")).is_dir()
