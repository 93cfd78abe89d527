"""Picture files of every kind: read as viewers show them, or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from support.drawn import scene

from llm_lora.data.image import files as picture_files
from llm_lora.data.image.files import Unusable
from llm_lora.errors import UserError

BARS = Image.new("RGB", (40, 20), "red")
BARS.paste("blue", (20, 0, 40, 20))


def head(path: Path) -> picture_files.Head:
    with picture_files.bombs_refused():
        return picture_files.head(path)


def refused(path: Path) -> str:
    """The reason why a file is set aside, in either step of reading it."""
    with picture_files.bombs_refused(), pytest.raises(Unusable) as reason:
        picture_files.head(path)
        picture_files.looks(path, 64)
    return str(reason.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif", "a"])
def test_every_common_format_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    BARS.save(path, format=None if path.suffix else "PNG")
    found = head(path)
    assert (found.width, found.height) == (40, 20)
    pixels = np.asarray(picture_files.load(path), dtype=int)
    assert pixels.shape == (20, 40, 3)
    assert abs(pixels - np.asarray(BARS, dtype=int)).mean() < 8
    assert not picture_files.looks(path, 64).changed


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_pictures_are_turned_as_the_camera_held_them(
    tmp_path: Path, name: str, orientation: int
) -> None:
    path = tmp_path / name
    quarters = Image.new("RGB", (64, 32), "red")
    quarters.paste("blue", (32, 0, 64, 16))
    quarters.paste("white", (0, 16, 32, 32))
    tag = Image.Exif()
    tag[0x0112] = orientation
    quarters.save(path, exif=tag)
    from PIL import ImageOps

    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    found = head(path)
    shown = picture_files.load(path)
    assert shown.size == (found.width, found.height) == expected.size
    assert np.array_equal(np.asarray(shown), np.asarray(expected))
    turned = ("rotated by their EXIF orientation",) if orientation > 1 else ()
    assert picture_files.looks(path, 64).changed == turned


def test_transparency_is_put_on_white(tmp_path: Path) -> None:
    clear = BARS.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 20))
    clear.save(tmp_path / "a.png")
    clear.convert("P").save(tmp_path / "b.png", transparency=0)
    shown = picture_files.load(tmp_path / "a.png")
    assert shown.mode == "RGB" and shown.getpixel((5, 5)) == (255, 255, 255)
    assert shown.getpixel((30, 5)) == (0, 0, 255)
    assert "white" in picture_files.looks(tmp_path / "a.png", 64).changed[0]
    BARS.convert("RGBA").save(tmp_path / "opaque.png")
    assert picture_files.looks(tmp_path / "opaque.png", 64).changed == ()


def test_cmyk_and_16_bits_become_rgb_of_8(tmp_path: Path) -> None:
    BARS.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    shown = picture_files.load(tmp_path / "a.jpg")
    assert shown.mode == "RGB"
    assert abs(np.asarray(shown, dtype=int) - np.asarray(BARS, dtype=int)).max() < 40
    assert picture_files.looks(tmp_path / "a.jpg", 64).changed == ("converted from CMYK to RGB",)
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        shown = picture_files.load(tmp_path / name)
        assert np.array_equal(np.asarray(shown)[..., 0], (grey // 256).astype(np.uint8))
        assert picture_files.looks(tmp_path / name, 64).changed == ("reduced from 16 bits to 8",)
    (tmp_path / "rgb48.png").write_bytes(png(64, 64, bits=16))
    assert picture_files.looks(tmp_path / "rgb48.png", 64).changed == ("reduced from 16 bits to 8",)


def png(width: int, height: int, *, bits: int = 8, data: bytes | None = None) -> bytes:
    """A handwritten RGB PNG of one value, or with data that do not match its size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        whole = kind + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    if data is None:
        data = (b"\0" + b"\x80" * (width * 3 * bits // 8)) * height
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_bombs_are_refused_by_their_headers_alone(tmp_path: Path) -> None:
    for side in (10_000, 30_000):
        bomb = tmp_path / f"{side}.png"
        bomb.write_bytes(png(side, side, data=b"\0" * 100))
        assert refused(bomb).startswith("too large: over 89,478,485 pixels")
    fine = tmp_path / "fine.png"
    fine.write_bytes(png(300, 200))
    assert head(fine).width == 300


def encoded(kind: str, image: Image.Image | None = None) -> bytes:
    data = io.BytesIO()
    (image or scene(1)).save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_what_was_cut_off_is_broken(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "a"
    whole = encoded(kind)
    path.write_bytes(whole[: int(len(whole) * share)])
    assert refused(path).startswith("broken: ")
    with pytest.raises(UserError, match="the picture cannot be read"):
        picture_files.load(path)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jpg", b"<html>404</html>", "not a picture: it begins with b'<html>40'"),
        ("a.heic", b"\0\0\0\x18ftypheic", "unsupported format: .heic"),
        ("a.svg", b"<svg/>", "unsupported format: .svg"),
        ("a.psd", b"8BPS", "unsupported format: .psd"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported format: .eps"),
        ("a.png", b"", "empty file"),
        ("a.png", b"\x89PNG\r\n\x1a\nrubbish", "broken: "),
        ("a.jpg", b"\xff\xd8\xff\xe0", "broken: "),
    ],
)
def test_what_is_no_picture(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert refused(tmp_path / name).startswith(reason)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_animations_and_pages_are_refused(tmp_path: Path, name: str) -> None:
    frames = [scene(i) for i in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert refused(tmp_path / name) == "animated, or with several pages"


def test_photos_with_a_second_view_are_read(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    scene(1).save(path, format="MPO", save_all=True, append_images=[scene(2)])
    assert head(path).width == 128
    difference = np.asarray(picture_files.load(path), dtype=int) - np.asarray(scene(1), dtype=int)
    assert abs(difference).mean() < 10


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), dtype=np.float32)).save(tmp_path / "a.tif")
    assert refused(tmp_path / "a.tif").startswith("unsupported pixels")


@settings(deadline=None)
@given(st.data())
def test_damage_is_told_and_never_raised_otherwise(data: st.DataObject) -> None:
    import tempfile

    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]))
    whole = bytearray(encoded(kind, scene(1, (48, 40))))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(whole)
        try:
            with picture_files.bombs_refused():
                found = picture_files.head(path)
                looks = picture_files.looks(path, 32)
                shown = picture_files.load(path)
        except Unusable as reason:
            assert str(reason)
            return
        assert looks.fields.shape == (8, 8, 3) and looks.sharpness >= 0
        assert shown.size == (found.width, found.height)


@pytest.mark.parametrize("resolution", [128, 256])
def test_blur_lowers_sharpness(resolution: int) -> None:
    picture = scene(3, (512, 512))
    falling = [
        picture_files.sharpness(picture.filter(ImageFilter.GaussianBlur(radius)), resolution)
        for radius in (0, 2, 4, 8)
    ]
    assert all(a > 1.5 * b for a, b in pairwise(falling))
    assert falling[0] > 20
    assert picture_files.sharpness(Image.new("RGB", (64, 64), "red"), 64) == 0
    assert picture_files.sharpness(Image.new("RGB", (2, 64), "red"), 64) == 0


def test_sharpness_sees_edges_between_colours_of_one_grey() -> None:
    level = Image.new("RGB", (128, 128), (220, 40, 40))
    level.paste((45, 85, 220), (40, 40, 90, 90))
    assert picture_files.sharpness(level, 128) > 100


def test_a_small_sharp_part_is_enough() -> None:
    portrait = scene(4, (512, 512)).filter(ImageFilter.GaussianBlur(12))
    soft = picture_files.sharpness(portrait, 512)
    portrait.paste(scene(5, (90, 90)), (200, 200))
    assert soft < 20 < picture_files.sharpness(portrait, 512)


def test_a_data_url_is_a_small_jpeg() -> None:
    import base64

    url = picture_files.data_url(scene(1, (900, 300)), 300)
    kind, _, data = url.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (kind, image.format, image.size) == ("data:image/jpeg", "JPEG", (300, 100))
