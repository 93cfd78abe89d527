"""The store from Python: publishing, promoting and rolling back versions of an adapter."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from llm_lora import machine
from llm_lora.store import Store, Version, base_at_hand, publishable, suggest_name


def publish(
    run: str | PathLike[str],
    name: str | None = None,
    *,
    store: str | PathLike[str] = "store",
    why: str = "",
) -> Version:
    """Publish a run's adapter and report as the next version of a name, which is not live yet.

    The same content again returns the existing version.

    Args:
        run: a run, its folder, or an adapter folder.
        name: the name in the store; None: the recipe's name.
        store: the folder of published adapters.
        why: the reason, for the history.

    Raises:
        UserError: the run is not finished, or its adapter or report is damaged.
    """
    found = publishable(Path(run))
    return Store(Path(store)).publish(
        found.folder,
        suggest_name(found.name) if name is None else name,
        report=found.report,
        by=machine.account(),
        why=why,
        base=base_at_hand(found.folder),
    )


def promote(
    name: str,
    version: int | Version,
    *,
    store: str | PathLike[str] = "store",
    why: str = "",
    force: bool = False,
) -> Version:
    """Make a version live; the previous one is kept for `rollback`.

    Args:
        name: the name in the store.
        version: the version or its number.
        store: the folder of published adapters.
        why: the reason, for the history.
        force: promote it even if a gate of its report failed; the history records it.

    Raises:
        UserError: unknown or damaged version, weights without effect, or failed gates.
    """
    shelf = Store(Path(store))
    found = shelf.version(name, version.number if isinstance(version, Version) else version)
    shelf.promote(
        name,
        found.number,
        by=machine.account(),
        why=why,
        force=force,
        base=base_at_hand(found.folder),
    )
    return found


def rollback(name: str, *, store: str | PathLike[str] = "store", why: str = "") -> Version:
    """Make the previous version live again, and return it. A second rollback undoes the first.

    Raises:
        UserError: there is no previous version, or it is damaged.
    """
    shelf = Store(Path(store))
    alias = shelf.rollback(name, by=machine.account(), why=why)
    return shelf.version(name, alias.live)
