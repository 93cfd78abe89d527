"""Adapted modules that a base lacks, or has in another shape, as problems for any task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llm_lora.adapter.base import AnyBase
from llm_lora.adapter.folder import WEIGHTS, Adapter
from llm_lora.errors import Problem


def misfits(
    adapter: Adapter,
    base: AnyBase,
    missing: Sequence[str],
    unlike: Sequence[str],
    *,
    lacking: str,
    effect: str = "",
    fix: str,
) -> Iterator[Problem]:
    """One problem for the modules that are missing, one for those of another shape.

    Args:
        adapter: the adapter.
        base: the base that it does not fit.
        missing: names of modules that the base lacks.
        unlike: names and shapes of modules that have another shape there.
        lacking: says of modules that they are missing, before the base's name.
        effect: what would happen otherwise.
        fix: the remedy.
    """
    total, where = len(adapter.modules), str(adapter.path / WEIGHTS)
    if missing:
        yield Problem(
            f"{len(missing)} of {total} adapted modules {lacking} {base.name}, "
            f"the first: {missing[0]}{effect}",
            where,
            fix,
        )
    if unlike:
        yield Problem(
            f"{len(unlike)} of {total} adapted modules have another shape in {base.name}, "
            f"the first: {unlike[0]}",
            where,
            fix,
        )
