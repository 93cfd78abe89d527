"""`llm-lora recipe`: work on recipes themselves."""

from __future__ import annotations

from pathlib import Path

import click

from llm_lora import files


@click.group()
def recipe() -> None:
    """Work on recipes themselves."""


@recipe.command("convert")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write it to this file, with paths that hold there.",
)
def convert(file: Path, out: Path | None) -> None:
    """Print a recipe of lora-scripts in the form of this toolkit.

    What every key became stands above it. Paths hold in the working directory, or where --out is.
    """
    from llm_lora import recipe as recipes

    text = recipes.convert(file, out.parent if out else Path())
    if out is None:
        click.echo(text, nl=False)
        return
    files.require_new(out)
    files.write_text(out, text)
    click.echo(f"wrote {out}")
