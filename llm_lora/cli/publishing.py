"""Commands on the store: publish, promote, rollback, canary, retire, remove and listings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_lora.cli.options import PATH, json_option, path_option
from llm_lora.cli.outcome import print_json

if TYPE_CHECKING:
    from llm_lora.serving import Client
    from llm_lora.store import Alias, Damaged, Listed, Row, Standing, Store, Version

_store_option = path_option(
    "--store",
    "root",
    default=Path("store"),
    show_default=True,
    help="Folder of published adapters.",
)
_url_option = click.option("--url", metavar="URL", help="Use a running server instead.")
_why_option = click.option("--why", metavar="TEXT", default="", help="Reason, for the history.")
_force_option = click.option(
    "--force", is_flag=True, help="Proceed despite failed gates; the history records it."
)
_name_argument = click.argument("name")
_number_argument = click.argument("number", metavar="VERSION", type=click.IntRange(1, 999_999))


def _share(_: click.Context, __: click.Parameter, text: str) -> float:
    """A share of the requests: 10% or 0.1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise click.BadParameter(
            f"{text!r} is not a share; write 10% or 0.1, or 0 to end the trial"
        )
    return share


@click.command()
@click.argument("source", metavar="RUN|ADAPTER", type=PATH)
@click.option(
    "--as", "name", metavar="NAME", help="Name in the store.  [default: the recipe's name]"
)
@_store_option
@click.option("--promote", "and_promote", is_flag=True, help="Make it live at once.")
@_force_option
@_why_option
@json_option
def publish(
    source: Path,
    name: str | None,
    root: Path,
    and_promote: bool,
    force: bool,
    why: str,
    as_json: bool,
) -> None:
    """Publish a run's adapter and report to the store.

    They become the next version of NAME, which is not live until it is promoted. The same content
    is never published twice.
    """
    from llm_lora.store import Store, StoredRow, base_at_hand, publishable, suggest_name

    found = publishable(source)
    name = name if name is not None else suggest_name(found.name)
    store = Store(root)
    base = base_at_hand(found.folder)
    version = store.publish(found.folder, name, report=found.report, by=_user(), why=why, base=base)
    alias = store.alias(name)
    if and_promote:
        alias = store.promote(name, version.number, by=_user(), why=why, force=force, base=base)
    if as_json:
        print_json(StoredRow.of(version, alias).to_json())
    else:
        _tell_published(version, alias, mapped=base is not None)


@click.command()
@_name_argument
@_number_argument
@_store_option
@_url_option
@_force_option
@_why_option
@json_option
def promote(
    name: str, number: int, root: Path, url: str | None, force: bool, why: str, as_json: bool
) -> None:
    """Make a version live; the previous one is kept for rollback.

    Refused if a gate of its report failed, unless forced, or if its weights have no effect.
    """
    if url is not None:
        _ask(
            url, as_json, lambda client: client.promote(name, number, why=why or None, force=force)
        )
        return
    from llm_lora.store import Store, base_at_hand

    store = Store(root)
    version = store.version(name, number)
    base = base_at_hand(version.folder)
    alias = store.promote(name, number, by=_user(), why=why, force=force, base=base)
    _tell_alias(name, alias, as_json=as_json, unmapped=None if base else version)


@click.command()
@_name_argument
@_store_option
@_url_option
@_why_option
@json_option
def rollback(name: str, root: Path, url: str | None, why: str, as_json: bool) -> None:
    """Make the previous version live again. A second rollback undoes the first."""
    if url is not None:
        _ask(url, as_json, lambda client: client.rollback(name, why=why or None))
        return
    from llm_lora.store import Store

    alias = Store(root).rollback(name, by=_user(), why=why)
    _tell_alias(name, alias, as_json=as_json)


@click.command()
@_name_argument
@_number_argument
@click.option(
    "--share", callback=_share, required=True, help="Share of requests, 10% or 0.1; 0 ends it."
)
@_store_option
@_url_option
@_force_option
@_why_option
@json_option
def canary(
    name: str,
    number: int,
    share: float,
    root: Path,
    url: str | None,
    force: bool,
    why: str,
    as_json: bool,
) -> None:
    """Send a share of the requests to a version on trial."""
    if url is not None:
        _ask(
            url,
            as_json,
            lambda client: client.canary(name, number, share, why=why or None, force=force),
        )
        return
    from llm_lora.store import Store, base_at_hand

    store = Store(root)
    version = store.version(name, number)
    base = base_at_hand(version.folder) if share else None
    alias = store.canary(name, number, share, by=_user(), why=why, force=force, base=base)
    _tell_alias(name, alias, as_json=as_json, unmapped=version if share and not base else None)


@click.command()
@_store_option
@_url_option
@json_option
def adapters(root: Path, url: str | None, as_json: bool) -> None:
    """List published adapters with versions, state, gates and scores.

    With --url, list a running server's adapters: what is loaded, and request counts.
    """
    from llm_lora.cli import shelves

    if url is not None:
        from llm_lora.serving import Client

        with Client(url) as client:
            found = client.adapters()
    else:
        from llm_lora.store import Store

        store = Store(root)
        found = [_adapter(store, name) for name in store.names()]
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        shelves.adapters(found, url or str(root))


@click.command()
@_name_argument
@_store_option
@_url_option
@json_option
def history(name: str, root: Path, url: str | None, as_json: bool) -> None:
    """Show every change under a name: who, when and why."""
    from llm_lora.cli import shelves

    if url is not None:
        from llm_lora.serving import Client

        with Client(url) as client:
            events = client.history(name)
    else:
        from llm_lora.store import Store

        events = Store(root).history(name)
    if as_json:
        print_json([event.to_json() for event in events])
    else:
        shelves.history(name, events)


@click.command()
@_name_argument
@_store_option
@_why_option
@json_option
def retire(name: str, root: Path, why: str, as_json: bool) -> None:
    """Take a name out of service. `rollback` brings it back."""
    from llm_lora.store import Store

    alias = Store(root).retire(name, by=_user(), why=why)
    _tell_alias(name, alias, as_json=as_json)


@click.command()
@_name_argument
@_number_argument
@_store_option
@_why_option
def remove(name: str, number: int, root: Path, why: str) -> None:
    """Delete a version that is not in use. Its number is never reused."""
    from llm_lora.store import Store

    Store(root).remove(name, number, by=_user(), why=why)
    click.echo(f"{name}@{number} removed")


def _user() -> str:
    """The user and host that run this command."""
    # Imported here to keep `--help` quick.
    from llm_lora.machine import account

    return account()


def _ask(url: str, as_json: bool, order: Callable[[Client], Standing]) -> None:
    """Send a command to a running server and print the response."""
    from llm_lora.cli import shelves
    from llm_lora.serving import Client

    with Client(url) as client:
        answer = order(client)
    if as_json:
        print_json(answer.to_json())
    else:
        shelves.alias(answer)


def _tell_published(version: Version, alias: Alias, *, mapped: bool) -> None:
    from llm_lora.cli import shelves

    shelves.published(version, alias, mapped=mapped)


def _tell_alias(name: str, alias: Alias, *, as_json: bool, unmapped: Version | None = None) -> None:
    from llm_lora.cli import shelves
    from llm_lora.store import Standing

    state = Standing.of(name, alias)
    if as_json:
        print_json(state.to_json())
    else:
        shelves.alias(state)
        if unmapped is not None:
            shelves.unmapped(unmapped)


def _adapter(store: Store, name: str) -> Listed:
    """One adapter in the form that a server lists, without the fields only a server knows."""
    from llm_lora.errors import UserError
    from llm_lora.store import Alias, Damaged, Listed, Standing, StoredRow

    problem = None
    try:
        alias = store.alias(name)
    except UserError as error:
        alias, problem = Alias(), str(error)
    rows: list[Row | Damaged] = []
    for number in store.numbers(name):
        try:
            rows.append(StoredRow.of(store.version(name, number), alias))
        except UserError as error:
            rows.append(Damaged(number, f"{name}@{number}", str(error)))
    return Listed(Standing.of(name, alias), problem, rows)
