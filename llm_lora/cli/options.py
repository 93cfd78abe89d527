"""Arguments and options that several commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

PATH = click.Path(path_type=Path)

path_option = partial(click.option, type=PATH)
"""An option that takes a path."""

count_option = partial(click.option, type=click.IntRange(1), show_default=True)
"""An option that takes a number from 1 up."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
run_argument = click.argument("run", type=PATH)
runs_option = path_option(
    "--runs",
    "root",
    default=Path("runs"),
    show_default=True,
    help="Folder that holds the runs.",
)
gate_store_option = path_option(
    "--store",
    default=Path("store"),
    show_default=True,
    help="Folder of published adapters; a check.max_drop gate compares with the live one there.",
)
