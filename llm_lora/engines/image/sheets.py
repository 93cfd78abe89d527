"""Pictures written to files, alone or side by side on a sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from llm_lora import files

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""A picture: height x width x 3, RGB."""

_GAP = 4
_HEAD = 14
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)
_NOTES = "llm-lora"


def write_picture(path: Path, picture: Pixels, notes: Mapping[str, object] | None = None) -> None:
    """Write a picture as PNG, atomically, with its generation settings as PNG text.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    with files.writing(path) as file:
        file.write(png(picture, notes))


def png(picture: Pixels, notes: Mapping[str, object] | None = None) -> bytes:
    """A picture as PNG, with its generation settings as PNG text."""
    info = PngImagePlugin.PngInfo()
    if notes:
        info.add_text(_NOTES, json.dumps(notes, ensure_ascii=False))
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def sheet(columns: Sequence[Sequence[Pixels]], titles: Sequence[str]) -> Pixels:
    """Pictures of one size in columns with titles."""
    height, width, _ = columns[0][0].shape
    rows = max(map(len, columns))
    size = (_GAP + len(columns) * (width + _GAP), _HEAD + rows * (height + _GAP))
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    for x, (column, title) in enumerate(zip(columns, titles, strict=True)):
        left = _GAP + x * (width + _GAP)
        draw.text((left, 1), title, fill=_INK)
        for y, picture in enumerate(column):
            page.paste(Image.fromarray(picture), (left, _HEAD + y * (height + _GAP)))
    return np.asarray(page)
