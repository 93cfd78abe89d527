"""The official JSON Schema test suite, from the source of a jsonschema release."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from referencing import Registry, Resource, Specification
from support import package_source


class Group(NamedTuple):
    """A schema of the suite with its cases."""

    file: str
    title: str
    schema: Any
    cases: list[dict[str, Any]]


def folder() -> Path:
    """The suite's folder; downloaded if missing."""
    sha256 = "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326"
    return package_source.folder("jsonschema", "4.26.0", sha256) / "json"


def groups(draft: str) -> Iterator[Group]:
    """Every group of a draft, both required and optional."""
    root = folder() / "tests" / draft
    for path in sorted(root.rglob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            file = path.relative_to(root).as_posix()
            yield Group(file, group["description"], group["schema"], group["tests"])


def remotes(draft: str, specification: Specification[Any]) -> Registry[Any]:
    """The documents that the suite refers to, by address."""
    root = folder() / "remotes"
    registry: Registry[Any] = Registry()
    for path in sorted(root.rglob("*.json")):
        name = path.relative_to(root).as_posix()
        if name.startswith("draft") and not name.startswith(f"{draft}/"):
            continue
        contents = json.loads(path.read_text(encoding="utf-8"))
        resource = Resource.from_contents(contents, default_specification=specification)
        registry = registry.with_resource(f"http://localhost:1234/{name}", resource)
    return registry
