"""The official JSON Schema test suite, as the pinned release of jsonschema ships it in its source.

It comes from the package index that pip is set up for, checked by its hash, once; then it lies in
the user's cache folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from referencing import Registry, Resource, Specification

RELEASE = "jsonschema-4.26.0"
REQUIREMENT = (
    "jsonschema==4.26.0 "
    "--hash=sha256:0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326"
)
# What pip says where no index answers at all.
_UNREACHABLE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")


class Group(NamedTuple):
    """A schema of the suite with its cases."""

    file: str
    title: str
    schema: Any
    cases: list[dict[str, Any]]


def folder() -> Path:
    """The suite's folder; fetched if it is not here yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm-lora"
    suite = cache / RELEASE / "json"
    if not (suite / "tests").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(cache)
    return suite


def _fetch(cache: Path) -> None:
    wanted = cache / "suite-requirement.txt"
    wanted.write_text(REQUIREMENT)
    # --no-deps keeps pip from asking for anything else's source.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += [
        "--no-binary",
        "jsonschema",
        "--require-hashes",
        "-r",
        str(wanted),
        "-d",
        str(cache),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if any(sign in done.stderr for sign in _UNREACHABLE):
            pytest.skip("no package index can be reached, so the official suite is not here")
        pytest.fail(f"the official suite could not be fetched:\n{done.stderr}")
    with tarfile.open(cache / f"{RELEASE}.tar.gz") as archive:
        archive.extractall(cache, filter="data")


def groups(draft: str) -> Iterator[Group]:
    """Every group of a draft, required and optional ones."""
    root = folder() / "tests" / draft
    for path in sorted(root.rglob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            file = path.relative_to(root).as_posix()
            yield Group(file, group["description"], group["schema"], group["tests"])


def remotes(draft: str, specification: Specification[Any]) -> Registry[Any]:
    """The documents that the suite refers to, under the addresses that it gives them."""
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
