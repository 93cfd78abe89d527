"""Picture files: checks, pixels in RGB, and measurements of their content.

A file is checked in two steps. `head` reads its bytes for a digest, and its header: format, frames,
size. `looks` decodes it, which detects damage, and measures it.
"""

from __future__ import annotations

import hashlib
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lora.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Bytes = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Supported formats, by Pillow's names; none that needs another program, as EPS does."""

LARGEST_BYTES = 512 << 20
LARGEST_PIXELS = 89_478_485
"""The size at which Pillow starts to warn of decompression bombs: 256 MiB in RGB."""

GRID = 8
"""Pictures are compared by the mean colours of a grid of this many fields a side."""

_TILES = 4
_UNREAD = (
    ".ai .arw .avif .cr2 .cr3 .dds .dng .eps .exr .hdr .heic .heif .ico .j2k .jfif .jp2 .jxl .nef "
    ".pcx .pdf .pgm .ppm .psd .raw .svg .tga .xcf"
).split()
_MAGIC = re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Unusable(Exception):
    """Why a picture is set aside; files are counted by the part before the colon."""


@dataclass(frozen=True, slots=True)
class Head:
    """Facts from a file's bytes and header: size in pixels as shown, digest of the bytes."""

    width: int
    height: int
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """Measurements of a picture's content.

    `fields` are mean colours (`GRID` x `GRID` x 3, 0 to 255); `sharpness` is the variance of the
    Laplacian where it is largest; `changed` lists the conversions to 8-bit RGB.
    """

    fields: Bytes
    sharpness: float
    changed: tuple[str, ...]


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Turn Pillow's warning about decompression bombs into an error; hide its other warnings.

    Enter it before starting threads, because warning filters apply to the whole process.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def is_named_like_one(path: Path) -> bool:
    """Whether a file has the suffix of a picture format, supported or not."""
    return path.suffix.lower() in (*SUFFIXES, *_UNREAD)


def head(path: Path) -> Head:
    """Digest and size of a picture with a valid header; call it inside `bombs_refused`.

    Raises:
        Unusable: it is no picture, of an unsupported format, animated, or too large.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise Unusable("not a file: a device or a pipe")
        if about.st_size == 0:
            raise Unusable("empty file")
        if about.st_size > LARGEST_BYTES:
            raise Unusable(f"too large: {about.st_size >> 20} MiB, over {LARGEST_BYTES >> 20}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _opened(path) as image:
            width, height = image.size
            # Phones add a second view to a photo (MPO).
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise Unusable("animated, or with several pages")
            if image.mode in ("F", "I"):
                raise Unusable("unsupported pixels: 32 bits a channel")
            if image.format != "TIFF" and _orientation(image) in _SIDEWAYS:
                width, height = height, width
    except FileNotFoundError:
        raise Unusable("the link leads nowhere") from None
    except PermissionError:
        raise Unusable("no permission to read it") from None
    return Head(width, height, digest)


def looks(path: Path, resolution: int) -> Looks:
    """Decode a picture fully and measure it at the resolution of training.

    Raises:
        Unusable: it is damaged.
    """
    import numpy as np

    with _opened(path) as image:
        # JPEG decodes several times faster at a half, a quarter or an eighth of its size.
        image.draft("RGB", (resolution, resolution))
        shown, changed = _rgb(image)
    scaled = _scaled(shown, resolution)
    fields = scaled.resize((GRID, GRID), _box())
    return Looks(np.asarray(fields), sharpness(scaled, resolution), changed)


def load(path: Path) -> Image.Image:
    """The pixels of a picture: RGB, rotated by its EXIF orientation, alpha over white.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with _opened(path) as image:
            return _rgb(image)[0]
    except (Unusable, OSError) as error:
        raise UserError(
            f"the picture cannot be read: {error}",
            where=str(path),
            fix="restore it, or run `llm-lora data check` on the recipe",
        ) from None


def sharpness(image: Image.Image, resolution: int) -> float:
    """Variance of the Laplacian (colours 0 to 255) where it is largest: of 4 x 4 tiles, of RGB.

    Measured at the resolution of training, to which larger pictures are scaled: blur that is not
    visible there does no harm. One sharp tile suffices, because a portrait with a soft background
    is not blurred; so does one colour, because a red-blue edge can vanish in grey. It is LAP4
    (LAPV) in Pertuz, Puig and Garcia, "Analysis of focus measure operators for shape-from-focus"
    (Pattern Recognition 46, 2013).
    """
    import numpy as np

    scaled = _scaled(image, resolution)
    if min(scaled.size) < 3:
        return 0.0
    most = 0.0
    for channel in scaled.split():
        x = np.asarray(channel, dtype=np.int16)
        around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
        laplacian = (around - 4 * x[1:-1, 1:-1]).astype(np.float64)
        most = max(most, float(_variances(laplacian).max()))
    return most


def _variances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The variance in each of 4 x 4 tiles, or fewer if there are fewer pixels."""
    import numpy as np

    edges = [np.linspace(0, n, min(_TILES, n) + 1).astype(int) for n in values.shape]
    counts = np.outer(*map(np.diff, edges))

    def means(of: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = np.add.reduceat(of, edges[0][:-1], axis=0)
        sums: NDArray[np.float64] = np.add.reduceat(rows, edges[1][:-1], axis=1)
        return sums / counts

    found: NDArray[np.float64] = means(values * values) - means(values) ** 2
    return found


def _scaled(image: Image.Image, resolution: int) -> Image.Image:
    """The picture with its shorter side at the resolution; unchanged if it is smaller."""
    factor = resolution / min(image.size)
    if factor >= 1:
        return image
    width, height = (max(round(side * factor), 1) for side in image.size)
    # Integer factors first: several times faster, and the same result with this filter.
    return image.resize((width, height), _box(), reducing_gap=1.0)


def _box() -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BOX


def data_url(image: Image.Image, side: int, *, quality: int = 85) -> str:
    """A picture as JPEG in a data URL, scaled down to `side` pixels if it is larger."""
    import base64
    from io import BytesIO

    small = image.copy()
    small.thumbnail((side, side))
    data = BytesIO()
    small.save(data, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file with Pillow; any error on a damaged file becomes `Unusable`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (Unusable, FileNotFoundError, PermissionError):
        raise
    except UnidentifiedImageError:
        raise Unusable(_stranger(path)) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unusable(f"too large: over {LARGEST_PIXELS:,} pixels when unpacked") from None
    except MemoryError:
        raise Unusable("too large: it does not fit into memory") from None
    except Exception as error:  # Decoders raise a dozen error types on damaged files.
        raise Unusable(f"broken: {_short(error)}") from None


def _stranger(path: Path) -> str:
    """Why Pillow does not recognise a file."""
    with path.open("rb") as file:
        start = file.read(16)
    if _MAGIC.match(start):
        return "broken: it begins like a picture, but its header is damaged"
    suffix = path.suffix.lower()
    if suffix in _UNREAD:
        return f"unsupported format: {suffix}; supported are {', '.join(SUFFIXES)}"
    return f"not a picture: it begins with {start[:8]!r}"


def _short(error: Exception) -> str:
    # Some messages contain the repr of an object in memory, which is of no use.
    return re.sub(r"<[^>]*>", "the file", " ".join(str(error).split()))[:120] or repr(error)


def _rgb(image: Any) -> tuple[Image.Image, tuple[str, ...]]:
    """Pixels in 8-bit RGB, and the conversions that it took."""
    import numpy as np
    from PIL import Image

    changed = []
    deep = image.mode.startswith("I;16") or _is_deep_png(image)
    turn = _orientation(image)
    image.load()
    if turn in _TURNS:
        changed.append("rotated by their EXIF orientation")
        if image.format != "TIFF":  # Pillow rotates TIFF pixels itself.
            image = image.transpose(Image.Transpose[_TURNS[turn]])
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if deep:
        changed.append("reduced from 16 bits to 8")
    if image.mode == "CMYK":
        changed.append("converted from CMYK to RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        if clear.getextrema()[3][0] < 255:
            changed.append("placed on white where they were transparent")
            image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return image if image.mode == "RGB" else image.convert("RGB"), tuple(changed)


def _orientation(image: Any) -> int:
    """The EXIF orientation (EXIF 2.32, tag 0x0112): 1 is upright."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode all of it to look for a tag after the pixels.
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # A damaged tag does not make the picture unusable.
        return 1


def _is_deep_png(image: Any) -> bool:
    """Whether a PNG has 16 bits a channel, of which Pillow drops the lower eight.

    The depth follows width and height in the header chunk (PNG specification, 11.2.1).
    """
    if image.format != "PNG":
        return False
    place = image.fp.tell()
    image.fp.seek(24)
    depth = image.fp.read(1)
    image.fp.seek(place)
    return bool(depth == b"\x10")
