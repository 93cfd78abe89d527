"""`llm-lora merge` and `llm-lora export`: merged models, and adapters for other programs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from llm_lora.cli.options import count_option, json_option, path_option, run_argument
from llm_lora.cli.outcome import print_json
from llm_lora.errors import UserError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

into_option = click.option(
    "--into",
    metavar="BASE",
    default="auto",
    show_default=True,
    help="dequantised (the base after NF4 quantisation), original, or auto: the closer of the two.",
)
measure_option = click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Compare with the trained form on held-out answers; loads the model into memory.",
)


@click.command()
@run_argument
@path_option("--out", metavar="DIR", required=True, help="New folder.")
@into_option
@measure_option
@click.option(
    "--shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="Maximum size of a weight file, e.g. 500MB.",
)
@json_option
def merge(run: Path, out: Path, into: str, measure: bool, shard_size: str, as_json: bool) -> None:
    """Merge a run's adapter into its base model.

    The adapter was trained on the base in NF4. It can be merged into the dequantised NF4 base or
    into the original one. Both are measured against the trained form, and the closer one is kept.
    """
    from llm_lora import run as runs
    from llm_lora.cli.show import live as show
    from llm_lora.export import merge as merging

    shard_bytes = _bytes(shard_size)
    merging.check_into(into)
    here = runs.find(run)
    with show.Live(quiet=as_json) as watch:
        manifest = merging.merge(
            here, out, watch, into=into, measure=measure, shard_bytes=shard_bytes
        )
    if as_json:
        print_json({"out": str(out), **manifest["merged"]})
        return
    _show_figures(manifest)
    _say("\n[bold]{}[/]\nNext: [bold]llm-lora serve {} --merged {}[/]", out, run, out)


@click.command()
@run_argument
@path_option("--peft", metavar="DIR", help="Folder for PEFT.")
@path_option("--gguf", metavar="FILE", help="GGUF file for llama.cpp.")
@path_option("--ollama", metavar="DIR", help="Folder for Ollama.")
@path_option("--vllm", metavar="DIR", help="Folder for vLLM.")
@path_option("--webui", metavar="DIR", help="For images: the models/Lora folder of a WebUI.")
@count_option(
    "--step",
    metavar="N",
    help="With --webui: the adapter as saved after N steps (train.keep).",
)
@click.option("--merged", is_flag=True, help="With --gguf or --ollama: write the merged model.")
@into_option
@measure_option
def export(
    run: Path,
    peft: Path | None,
    gguf: Path | None,
    ollama: Path | None,
    vllm: Path | None,
    webui: Path | None,
    step: int | None,
    merged: bool,
    into: str,
    measure: bool,
) -> None:
    """Export a run's adapter for another program.

    Choose one of --peft, --gguf, --ollama and --vllm for text, or --webui for images.
    """
    from llm_lora import run as runs
    from llm_lora.cli.show import live as show
    from llm_lora.export import exporting as exports
    from llm_lora.export import merge as merging
    from llm_lora.export.webui import file as webui_export

    asked = {"--peft": peft, "--gguf": gguf, "--ollama": ollama, "--vllm": vllm, "--webui": webui}
    chosen = {option: path for option, path in asked.items() if path is not None}
    if len(chosen) != 1:
        raise UserError(
            f"exactly one of {', '.join(asked)} is needed, not {len(chosen)}", fix="give one"
        )
    if merged and not (gguf or ollama):
        raise UserError(
            "--merged needs --gguf or --ollama", fix="for a merged folder, use llm-lora merge"
        )
    if step is not None and not webui:
        raise UserError("--step needs --webui", fix="leave it out")
    merging.check_into(into)
    here = runs.find(run)
    (out,) = chosen.values()
    manifest: Mapping[str, Any] = {}
    with show.Live(quiet=False) as watch:
        if webui:
            out = webui_export.write(here, webui, step)
        elif peft:
            exports.peft(here, peft)
        elif vllm:
            command = exports.vllm(here, vllm)
        elif gguf:
            manifest = exports.gguf(here, gguf, watch, merged=merged, into=into, measure=measure)
        elif ollama:
            manifest = exports.ollama(
                here, ollama, watch, merged=merged, into=into, measure=measure
            )
    if manifest:
        _show_figures(manifest)
    _say("[bold]{}[/]", out)
    if vllm:
        click.echo(command)
    if webui:
        _say("Next, in a prompt: [bold]<lora:{}:0.8>[/]", out.stem)
    if ollama:
        _say("Next: [bold]ollama create NAME -f {}[/]", out / "Modelfile")


def _bytes(size: str) -> int:
    """The number of bytes in a size such as "500MB".

    Raises:
        UserError: the text is not a size, or the size is zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|)", size.strip(), re.IGNORECASE)
    count = round(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if count < 1:
        raise UserError(f"{size!r} is not a size", where="--shard-size", fix="write it like 500MB")
    return count


def _say(text: str, *named: object) -> None:
    """Print a text with names filled into its braces, escaped so that they are not markup."""
    from rich.markup import escape

    from llm_lora.cli.console import console

    console.print(text.format(*(escape(str(one)) for one in named)))


def _show_figures(manifest: Mapping[str, Any]) -> None:
    """Print how close each form is to the trained one, and which was written."""
    from rich.table import Table

    from llm_lora.cli.console import console

    into, figures = manifest["merged"]["into"], manifest["merged"]["measured"]
    if figures is None:
        console.print(f"merged into the {into} base, not measured")
        return
    trained = figures["trained"]
    table = Table(
        title=f"Held-out answers: {figures['examples']} examples, {figures['tokens']} tokens",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("form")
    for column in ("loss", "KL", "same token"):
        table.add_column(column, justify="right")
    kind = "NF4" if trained["bits"] == 4 else "16-bit"
    table.add_row(f"{kind} base + adapter, as trained", f"{trained['loss']:.4f}", "", "")
    for name, form in figures["forms"].items():
        words = {
            "dequantised": "merged into the dequantised base",
            "original": "merged into the original base",
            "unmerged": "adapter over the 16-bit base, unmerged",
        }[name]
        kept = " [green](kept)[/]" if name == into else ""
        row = (f"{form['loss']:.4f}", f"{form['kl']:.1e}", f"{form['same']:.2%}")
        table.add_row(words + kept, *row)
    console.print(table)
