"""`llm-lora recipe`: conversion of lora-scripts recipes."""

from __future__ import annotations

from pathlib import Path

import click

from llm_lora.cli.options import PATH, path_option


@click.group()
def recipe() -> None:
    """Convert recipes."""


@recipe.command("convert")
@click.argument("file", type=PATH)
@path_option("--out", metavar="FILE", help="Write to this file, with paths relative to its folder.")
def convert(file: Path, out: Path | None) -> None:
    """Convert a lora-scripts recipe to an llm-lora recipe and print it.

    Comments at the top list how each key was converted. Paths are relative to the working
    directory, or to the folder of --out.
    """
    from llm_lora import files
    from llm_lora import recipe as recipes

    text = recipes.convert(file, out.parent if out else Path())
    if out is None:
        click.echo(text, nl=False)
        return
    files.require_new(out)
    files.write_text(out, text)
    click.echo(f"wrote {out}")
