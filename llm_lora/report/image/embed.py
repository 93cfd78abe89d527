"""Embedding of pictures in a page: small ones unchanged, large ones scaled down to a byte limit."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lora.data.image import files as picture_files
from llm_lora.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

_QUALITIES = (88, 75, 60)
_SHRINK = 0.7
_ENLARGED = 2
"""Largest magnification of a small picture; enough for 64 pixels to be clearly visible."""
_LEAST = 8
"""Side in pixels below which nothing can be recognised; its bytes fit any limit."""


@dataclass(frozen=True)
class Embedded:
    """An embedded picture; `width` and `height` are in its own pixels."""

    url: str
    width: int
    height: int

    def times(self, room: int) -> int:
        """The magnification of the picture in a space of `room` CSS pixels.

        It is 1 also for a picture that does not fit and is scaled down.
        """
        return min(max(room // self.width, 1), _ENLARGED)


def embed(path: Path, *, side: int, most_bytes: int) -> Embedded | None:
    """A picture file as a data URL; None if it is missing or unreadable.

    Args:
        path: the file.
        side: its longest side in pixels; larger ones are scaled down.
        most_bytes: the limit in bytes of the encoded picture, before base64.
    """
    try:
        with picture_files.bombs_refused():
            picture = picture_files.load(path)
    except UserError:
        return None
    for kind, data, (width, height) in _encodings(picture, side):
        if len(data) <= most_bytes:
            url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
            return Embedded(url, width, height)
    return None


def _encodings(picture: Image.Image, side: int) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Encodings from largest to smallest: lossless if small enough, then JPEG, then scaled down."""
    if max(picture.size) <= side:
        yield "png", _encoded(picture, "PNG"), picture.size
    side = min(side, max(picture.size))
    while side >= _LEAST:
        small = picture.copy()
        small.thumbnail((side, side))
        for quality in _QUALITIES:
            yield "jpeg", _encoded(small, "JPEG", quality=quality), small.size
        side = int(side * _SHRINK)


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    data = BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()
