"""`llm-lora generate`: images from a prompt, with adapters from runs and files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_lora.cli.options import PATH, count_option, json_option
from llm_lora.cli.outcome import print_json
from llm_lora.errors import Problem, UserError

if TYPE_CHECKING:
    from llm_lora.adapter import Source

_GRID = re.compile(r"strength=(-?\d+\.?\d*)\.\.(-?\d+\.?\d*):(\d+\.?\d*)")
_SIZE = re.compile(r"(\d+)x(\d+)")
_MOST = 64
_CLOSE = 1e-6
"""Tolerance that keeps the last strength when the steps do not add up to it exactly."""

_LARGEST = 4096
_LAST_SEED = 2**32 - 1


@click.command()
@click.argument("sources", metavar="[RUN|ADAPTER]...", nargs=-1, type=PATH)
@click.argument("prompt")
@click.option(
    "--adapter",
    "named",
    metavar="NAME=PATH",
    multiple=True,
    help="Another adapter and its name in prompts; repeatable.",
)
@count_option("--step", metavar="N", help="Use RUN's adapter as saved after N steps (train.keep).")
@click.option("--base", metavar="BASE", help="Base model, if no adapter names one.")
@click.option(
    "--seed",
    type=click.IntRange(0, _LAST_SEED),
    default=0,
    show_default=True,
    help="Seed of the first picture.",
)
@count_option(
    "--count",
    type=click.IntRange(1, 1000),
    default=1,
    help="Number of pictures; each uses the next seed.",
)
@count_option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.")
@click.option("--guidance", type=click.FloatRange(0, 100), help="How closely to follow the prompt.")
@click.option(
    "--negative", "negative_prompt", metavar="PROMPT", help="What the pictures should not show."
)
@click.option("--size", metavar="WIDTHxHEIGHT", help="In pixels.")
@click.option("--scheduler", type=click.Choice(["ddim", "euler", "dpm++"]), help="The sampler.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("pictures"),
    show_default=True,
    help="Folder for the pictures.",
)
@click.option(
    "--grid",
    metavar="strength=FROM..TO:STEP",
    help="Write one contact sheet with the same pictures at several adapter strengths.",
)
@json_option
def generate(
    sources: tuple[Path, ...],
    prompt: str,
    named: tuple[str, ...],
    step: int | None,
    base: str | None,
    seed: int,
    count: int,
    size: str | None,
    out: Path,
    grid: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Generate images for a PROMPT with one or more adapters.

    A prompt that names adapters, as in "a harbour, <lora:my_style:0.8>", uses only those.
    Otherwise all adapters are applied at strength 1. Defaults come from the first adapter's
    recipe. Files are named by seed; existing files are kept.
    """
    from llm_lora import lora_prompt
    from llm_lora.adapter import sources as picture_sources

    lora_prompt.parse(prompt)
    strengths = _strengths(grid) if grid else []
    asked |= _size(size) if size else {}
    seeds = range(seed, seed + count)
    if seeds[-1] > _LAST_SEED:
        raise UserError(
            f"{count} pictures from seed {seed} exceed the largest seed, {_LAST_SEED}",
            where="--seed",
            fix="use a smaller seed",
        )
    if math.isnan(asked["guidance"] or 0):
        raise UserError("this is not a number", where="--guidance", fix="write 0 to 100")
    found = [picture_sources.find(path, step=step) for path in sources]
    found += [picture_sources.find(path, name) for name, path in map(_named, named)]
    _require_apart(found)
    picture_base = picture_sources.base_of(found, base)
    told = next((source.settings for source in found if source.manifest), {})
    chosen = {key: value for key, value in asked.items() if value is not None}

    # Imported late, so that mistakes are reported before anything heavy is loaded.
    from rich.markup import escape

    from llm_lora import engines
    from llm_lora.cli.console import console

    engine = engines.load("image")
    settings = engine.Settings(**{**told, **chosen})
    painter = engine.Painter(picture_base)
    for source in found:
        painter.put(source.path, name=source.name)
    notes = {
        "prompt": prompt,
        "base": picture_base.name,
        "adapters": {source.name: str(source.path) for source in found},
        **{key: getattr(settings, key) for key in ("steps", "guidance", "negative_prompt")},
        "scheduler": settings.scheduler,
    }
    written: list[Path] = []

    def write(name: str, picture: Any, **more: int) -> None:
        path = _free(out, name)
        engine.write_picture(path, picture, {**notes, **more})
        written.append(path)
        if not as_json:
            console.print(f"[bold]{escape(str(path))}[/]")

    if strengths:
        rows = painter.strengths([prompt] * count, strengths, settings, seeds)
        write(f"strengths-{seed}", engine.sheet(rows, [f"{one:g}" for one in strengths]))
    else:
        # Written batch by batch, so that an interruption loses no finished picture.
        for start in range(0, count, settings.batch_size):
            part = seeds[start : start + settings.batch_size]
            pictures = painter.paint([prompt] * len(part), settings, part)
            for one, picture in zip(part, pictures, strict=True):
                write(str(one), picture, seed=one)
    if as_json:
        told = {"pictures": [str(path) for path in written], "seeds": [*seeds], **notes}
        print_json(told)


def _require_apart(found: Sequence[Source]) -> None:
    names = [source.name for source in found]
    problems = [
        Problem(
            f"two adapters are named {source.name}",
            str(source.path),
            f"give this one another name: --adapter NAME={source.path}",
        )
        for number, source in enumerate(found)
        if source.name in names[:number]
    ]
    if problems:
        raise UserError(problems)


def _free(folder: Path, name: str) -> Path:
    """The path of a new picture: NAME.png, or the first of NAME-2.png, … that does not exist."""
    path, number = folder / f"{name}.png", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.png"
    return path


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(
            f"{text!r} is not NAME=PATH", where="--adapter", fix="write it like NAME=PATH"
        )
    return name, Path(path)


def _size(text: str) -> dict[str, int]:
    from llm_lora.data.image import CELL

    match = _SIZE.fullmatch(text)
    sides = [int(side) for side in match.groups()] if match else []
    if not sides or any(not CELL <= side <= _LARGEST or side % CELL for side in sides):
        raise UserError(
            f"{text!r} is not a valid size",
            where="--size",
            fix=f"write it like 512x768, in multiples of {CELL} up to {_LARGEST}",
        )
    return {"width": sides[0], "height": sides[1]}


def _strengths(text: str) -> list[float]:
    """The strengths of `strength=0..1:0.2`, both ends included.

    Raises:
        UserError: it is malformed, or has too many steps.
    """
    match = _GRID.fullmatch(text)
    first, last, step = map(float, match.groups()) if match else (0.0, 0.0, 0.0)
    if not 0 < step < math.inf or last < first:
        raise UserError(
            f"{text!r} is not a grid", where="--grid", fix="write it like strength=0..1:0.2"
        )
    # Checked before the division, which may overflow; `not <` also catches infinity and NaN.
    if not last - first < (_MOST - _CLOSE) * step:
        raise UserError(
            f"a grid has at most {_MOST} strengths", where="--grid", fix="use a larger step"
        )
    count = int((last - first) / step + _CLOSE) + 1
    return [round(first + step * number, 6) for number in range(count)]
