"""`llm-lora doctor`: this machine's hardware and libraries, and differences from tested ones."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from llm_lora.cli.options import json_option
from llm_lora.cli.outcome import print_json, require
from llm_lora.errors import UserError

_FREE_DISK = 10 * 2**30


@dataclass(frozen=True)
class Finding:
    """The result of one check; `fix` is the remedy if there is something to fix."""

    what: str
    status: Literal["good", "note", "wrong"]
    found: str
    fix: str | None = None


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Report what is installed, missing or untested on this machine."""
    findings = examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        show(findings)
    require(not any(finding.status == "wrong" for finding in findings))


def examine() -> list[Finding]:
    """Look at Python, hardware, disk, library versions, embedded bases and the hub; no torch."""
    return [_python(), *_hardware(), _disk(), *_libraries(), _tiny(), _tiny_image(), _hub()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    return Finding(
        "Python", "good" if fine else "wrong", version, None if fine else "use 3.11 or newer"
    )


def _hardware() -> list[Finding]:
    from llm_lora.machine import detect

    machine = detect()
    memory = f"{machine.cores} cores, {machine.memory_bytes / 2**30:.1f} GiB memory"
    gpu = (
        f"{machine.gpu}, {machine.gpu_memory_bytes / 2**30:.1f} GiB"
        if machine.gpu and machine.gpu_memory_bytes
        else "none; the cpu profile uses the embedded tiny base"
    )
    bf16 = "yes" if machine.bf16 else "no; training computes in fp32, several times slower"
    return [
        Finding("Machine", "good", memory),
        Finding("NVIDIA GPU", "good" if machine.gpu else "note", gpu),
        Finding("bf16 arithmetic", "good" if machine.bf16 else "note", bf16),
    ]


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    fine = free >= _FREE_DISK
    return Finding(
        "Free disk here",
        "good" if fine else "note",
        f"{free / 2**30:.0f} GiB",
        None if fine else "free some space: a base from the hub takes 4 to 16 GiB",
    )


def _libraries() -> list[Finding]:
    """Compare the installed versions with those that llm-lora requires and was tested with."""
    # Imported here to keep `--help` quick.
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        wanted = metadata.requires("llm-lora") or []
    except metadata.PackageNotFoundError:
        return [Finding("llm-lora", "wrong", "not installed", "create the environment: make env")]
    findings = []
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            findings.append(
                Finding(
                    requirement.name, "wrong", "not installed", "create the environment: make env"
                )
            )
            continue
        fine = requirement.specifier.contains(found, prereleases=True)
        findings.append(
            Finding(
                requirement.name,
                "good" if fine else "wrong",
                found,
                None if fine else f"tested with {requirement.specifier}; install it: make env",
            )
        )
    return findings


def _tiny() -> Finding:
    from llm_lora.base import text

    try:
        tiny = text.resolve("tiny")
    except UserError as error:
        return Finding("Embedded tiny base", "wrong", str(error), "reinstall llm-lora")
    return Finding("Embedded tiny base", "good", f"{tiny.architecture}, {tiny.digest[:12]}")


def _tiny_image() -> Finding:
    from llm_lora.base import image

    what = "Embedded tiny image"
    try:
        tiny = image.resolve("tiny")
    except UserError as error:
        return Finding(what, "wrong", str(error), "reinstall llm-lora")
    found = f"{tiny.family}, {tiny.resolution} pixels, {tiny.digest[:12]}"
    return Finding(what, "good", found)


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("Model hub", "note", "offline (HF_HUB_OFFLINE is set)")
    return Finding(
        "Model hub", "good", "online; contacted only for models that are not on this machine"
    )


def show(findings: list[Finding]) -> None:
    """Print the findings, one per line, each with its remedy below."""
    from llm_lora.cli.console import console

    marks = {"good": "[green]✓[/]", "note": "[yellow]·[/]", "wrong": "[red]✗[/]"}
    for finding in findings:
        console.print(f"{marks[finding.status]} {finding.what:<20} {finding.found}")
        if finding.fix:
            console.print(f"    → {finding.fix}")
