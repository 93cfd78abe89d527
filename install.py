#!/usr/bin/env python3
"""Make the environment: `python3 install.py` (or `make env`) fills .venv from the committed lock.

Standard library only. CUDA builds where an NVIDIA GPU is found, CPU builds elsewhere; running it
again changes nothing unless the lock, pyproject.toml or the machine's kind changed.

    python3 install.py            make or update .venv
    python3 install.py --lock     rewrite requirements/cpu.txt and cuda.txt after a change of
                                  pyproject.toml; --lock --upgrade takes the newest of everything
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMP = VENV / "llm-lora.stamp"
REQUIREMENTS = ROOT / "requirements"
EXCLUDES = REQUIREMENTS / "excludes-cpu.txt"
UV = "uv==0.13.8"
TORCH = "torch==2.13.0"
OLDEST_PYTHON = (3, 11)


def main() -> None:
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"install: Python 3.11 or newer is needed, this is {found} ({sys.executable})")
    kind = "cuda" if has_nvidia_gpu() else "cpu"
    if "--lock" in sys.argv[1:]:
        make_venv()
        lock()
        return
    stamp = wanted_stamp(kind)
    if STAMP.is_file() and STAMP.read_text() == stamp:
        return
    started = time.monotonic()
    say(f"{kind} builds: {'an NVIDIA GPU was found' if kind == 'cuda' else 'no NVIDIA GPU found'}")
    make_venv()
    if kind == "cpu":
        install_cpu_torch()
    # The lock is complete, so nothing needs resolving, and nothing it leaves out can creep in.
    uv("pip", "install", "--no-deps", "-r", str(REQUIREMENTS / f"{kind}.txt"))
    uv("pip", "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    STAMP.write_text(stamp)
    say(f"ready after {time.monotonic() - started:.0f} s: {BIN.relative_to(ROOT)}/llm-lora --help")


def has_nvidia_gpu() -> bool:
    """True if the NVIDIA driver lists at least one GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def wanted_stamp(kind: str) -> str:
    """Changes when the environment has to be made anew."""
    digest = hashlib.sha256()
    for path in (Path(__file__), ROOT / "pyproject.toml", REQUIREMENTS / f"{kind}.txt"):
        digest.update(path.read_bytes())
    return f"{kind} {sys.version_info[:2]} {digest.hexdigest()}\n"


def make_venv() -> None:
    """A virtual environment with uv and the build backend in it."""
    pip = [str(BIN / "python"), "-m", "pip", "--version"]
    works = (BIN / "python").exists() and not subprocess.run(
        pip, capture_output=True, check=False
    ).returncode
    if not works:
        try:
            venv.create(VENV, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            sys.exit(
                "install: this Python cannot make virtual environments; install its venv package "
                "(Debian, Ubuntu: apt-get install python3-venv) and try again"
            )
    run(str(BIN / "python"), "-m", "pip", "install", "-q", UV, "setuptools>=77", "wheel")


def install_cpu_torch() -> None:
    """torch without CUDA: from the configured package index, else from PyTorch's own."""
    pip = [str(BIN / "python"), "-m", "pip", "install", "-q"]
    if subprocess.run([*pip, f"{TORCH}+cpu"], capture_output=True, check=False).returncode:
        uv("pip", "install", "--torch-backend", "cpu", TORCH)


def lock() -> None:
    """Resolve pyproject.toml for both kinds of machine."""
    common = ["pip", "compile", "--python-version", "3.11", "--no-header", "--no-annotate"]
    common += ["--python-platform", "x86_64-unknown-linux-gnu", "--extra", "dev"]
    common += ["pyproject.toml", *(["--upgrade"] if "--upgrade" in sys.argv[1:] else [])]
    cpu = ["requirements/cpu.in", "--excludes", str(EXCLUDES)]
    uv(*common, *cpu, "-o", "requirements/cpu.txt", "-q")
    uv(*common, "requirements/cuda.in", "-o", "requirements/cuda.txt", "-q")


def uv(*arguments: str) -> None:
    python = ("--python", str(BIN / "python")) if arguments[1] == "install" else ()
    run(str(BIN / "uv"), *arguments[:2], *python, *arguments[2:])


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"install: failed with exit code {done.returncode}: {' '.join(command)}")


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


if __name__ == "__main__":
    main()
