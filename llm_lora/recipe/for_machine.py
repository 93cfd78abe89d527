"""Recipes read for this machine: `auto` picks the profile that fits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_lora import machine
from llm_lora.recipe.loading import Read, read

AUTO = "auto"


def read_for_machine(path: Path, overrides: Sequence[str], profile: str) -> tuple[Read, str]:
    """The recipe under the chosen profile, and the reason for that choice.

    Args:
        path: the YAML file.
        overrides: as for `read`.
        profile: the name of a profile, or `auto` for the one that fits this machine.

    Raises:
        UserError: a mistake in the recipe, or none of its profiles fits this machine.
    """
    reason = "chosen with --profile"

    def pick(names: tuple[str, ...]) -> str:
        nonlocal reason
        choice = machine.pick_profile(names, machine.detect())
        reason = choice.reason
        return choice.name

    found = read(path, overrides=overrides, profile=pick if profile == AUTO else profile)
    return found, reason
