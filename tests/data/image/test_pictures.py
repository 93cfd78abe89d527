"""The checked and split dataset of picture folders with any content."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter, ImageOps
from support.drawn import caption, folder, scene
from test_picture_files import png

from llm_lora.data.image import dataset as pictures
from llm_lora.data.image.dataset import Picture, PictureDataset
from llm_lora.errors import UserError
from llm_lora.recipe.image.recipe import ImageRecipe

RESOLUTION = 128


def recipe(train: Path, **data: Any) -> ImageRecipe:
    named = {"train": train, "held_out": 0.2, **data}
    return ImageRecipe.model_validate({"task": "image", "name": "t", "base": "tiny", "data": named})


def prepare(train: Path, **data: Any) -> PictureDataset:
    return pictures.prepare(recipe(train, **data), RESOLUTION)


def kinds(dataset: PictureDataset) -> dict[str, int]:
    return {finding.kind: finding.count for finding in dataset.findings}


def reasons(dataset: PictureDataset) -> dict[str, str]:
    """File name → reason, for files that were set aside."""
    return {Path(row.where).name: row.reason for row in dataset.quarantine}


def names(some: tuple[Picture, ...]) -> set[str]:
    return {one.path.name for one in some}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty valid scenes."""
    return folder(tmp_path_factory.mktemp("good") / "pictures", 30)


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy of them, to be changed."""
    return Path(shutil.copytree(good, tmp_path / "pictures"))


def test_a_good_folder_is_taken_whole(good: Path) -> None:
    dataset = prepare(good)
    assert len(dataset.train) + len(dataset.held_out) == 30
    assert 2 <= len(dataset.held_out) <= 12
    assert not dataset.quarantine and not dataset.regularisation
    assert kinds(dataset) == {}
    first = min(dataset.train, key=lambda one: one.path)
    number = int(first.path.stem)
    assert first.caption == caption(number) and first.size == (128, 128)
    assert first.path.is_absolute()
    counts = dataset.stats.counts
    assert counts["read"] == 30 and counts["train"] == len(dataset.train)
    assert dataset.stats.buckets == [{"width": 128, "height": 128, "pictures": len(dataset.train)}]


def test_ten_faults_and_more_are_found_and_named(copy: Path) -> None:
    whole = (copy / "000.png").read_bytes()
    (copy / "000.png").write_bytes(whole[: len(whole) // 2])
    (copy / "001.png").write_text("<html>not found</html>")
    scene("small").resize((40, 60)).save(copy / "002.png")
    scene("long", (900, 150)).save(copy / "003.png")
    shutil.copy(copy / "005.png", copy / "004.png")
    frames = [scene(f"frame {i}") for i in range(3)]
    frames[0].save(copy / "006.png", save_all=True, append_images=frames[1:])
    (copy / "007.png").write_bytes(png(20_000, 20_000, data=b"\0" * 99))
    (copy / "008.png").unlink()
    scene("unlisted").save(copy / "unlisted.png")
    outside = copy.parent / "outside.png"
    scene("outside").save(outside)
    (copy / "009.png").unlink()
    (copy / "009.png").symlink_to(outside)
    (copy / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (copy / "empty.jpg").touch()
    (copy / "orphan.txt").write_text("a caption of nothing")
    (copy / "more").symlink_to(copy.parent)
    os.mkfifo(copy / "pipe.png")
    with (copy / "metadata.csv").open("a") as file:
        file.write("../outside.png,stolen\n010.png,a second one\n,nameless\n")
    dataset = prepare(copy)
    shown = {name: reason.partition(": ")[0] for name, reason in reasons(dataset).items()}
    line = {row.where: row.reason.partition(": ")[0] for row in dataset.quarantine}
    listed = {
        int(where.rpartition(":")[2]): reason
        for where, reason in line.items()
        if "metadata.csv" in where
    }
    assert {name: reason for name, reason in shown.items() if "metadata" not in name} == {
        "000.png": "broken",
        "001.png": "not a picture",
        "002.png": "too small",
        "003.png": "too elongated",
        "005.png": "identical to another picture",
        "006.png": "animated, or with several pages",
        "007.png": "too large",
        "009.png": "the link leads out of the folder",
        "unlisted.png": "no caption",
        "photo.heic": "unsupported format",
        "empty.jpg": "empty file",
        "orphan.txt": "a caption without its picture",
        "more": "a link to a folder",
        "pipe.png": "not a file",
    }
    assert listed == {
        10: "no such picture",  # 008.png
        11: "no such picture",  # 009.png, a link that leads out
        32: "the path leads out of the folder",
        33: "a second caption for a picture",
        34: "a row without the name of a picture",
    }
    assert len(dataset.train) + len(dataset.held_out) == 21
    assert dataset.stats.counts["rejected"] == len(dataset.quarantine) == 19


def test_what_can_be_mended_is_mended_and_said(copy: Path) -> None:
    clear = scene("clear").convert("RGBA")
    clear.putalpha(Image.new("L", (128, 128), 100))
    clear.save(copy / "000.png")
    tag = Image.Exif()
    tag[0x0112] = 6
    scene("turned", (160, 128)).save(copy / "turned.jpg", exif=tag, quality=95)
    scene("print").convert("CMYK").save(copy / "print.jpg", quality=95)
    (copy / "turned.txt").write_text("a turned one")
    (copy / "print.txt").write_text("a printed one")
    dataset = prepare(copy)
    converted = [one for one in dataset.findings if one.kind == "converted"]
    assert sorted(one.message.partition(" were ")[2] for one in converted) == [
        "converted from CMYK to RGB",
        "placed on white where they were transparent",
        "rotated by their EXIF orientation",
    ]
    (turned,) = [one for one in (*dataset.train, *dataset.held_out) if "turned" in one.path.name]
    assert turned.size == (128, 160)


def test_near_duplicates_never_straddle(copy: Path) -> None:
    rows = []
    for number in range(12):
        with Image.open(copy / f"{number:03}.png") as image:
            image.resize((120, 120)).save(copy / f"{number:03}_small.jpg")
            ImageOps.mirror(image).save(copy / f"{number:03}_mirror.png")
        rows += [f"{number:03}_small.jpg,small {number}", f"{number:03}_mirror.png,mirror {number}"]
    with (copy / "metadata.csv").open("a") as file:
        file.write("\n".join(rows) + "\n")
    dataset = prepare(copy)
    assert kinds(dataset)["near_duplicates"] == 36
    assert kinds(dataset)["low_variety"] >= 12
    for number in range(12):
        sides = {
            side
            for side in pictures.SIDES
            for one in dataset.side(side)
            if one.path.name.startswith(f"{number:03}")
        }
        assert len(sides) == 1
    assert not dataset.quarantine
    only_mirrored = prepare(copy, near_duplicate=1.0)
    assert kinds(only_mirrored)["near_duplicates"] == 24


def test_sides_do_not_change_when_pictures_come_and_go(copy: Path) -> None:
    before = prepare(copy)
    for seed in range(100, 110):
        scene(seed).save(copy / f"{seed}.png")
        (copy / f"{seed}.txt").write_text(caption(seed))
    (copy / "000.png").rename(copy / "renamed.png")
    (copy / "renamed.txt").write_text("renamed")
    (copy / "001.png").unlink()
    after = prepare(copy)
    side = {one.sha256: side for side in pictures.SIDES for one in after.side(side)}
    kept = [one for one in (*before.train, *before.held_out) if one.path.name != "001.png"]
    old = {one.sha256: side for side in pictures.SIDES for one in before.side(side)}
    assert [side[one.sha256] for one in kept] == [old[one.sha256] for one in kept]


def test_sides_do_not_depend_on_names(tmp_path: Path) -> None:
    """Neither for single pictures nor for near-duplicates, whichever of them comes first."""
    first, second = tmp_path / "first", tmp_path / "second"
    for home in (first, second):
        home.mkdir()
    for number in range(20):
        mirrored = ImageOps.mirror(scene(number))
        for home, name, other in ((first, "a", "b"), (second, "b", "a")):
            place = number if home == first else 99 - number
            scene(number).save(home / f"{place:02}{name}.png")
            mirrored.save(home / f"{place:02}{other}.png")
    for path in (*first.glob("*.png"), *second.glob("*.png")):
        path.with_suffix(".txt").write_text(path.parent.name)

    def sides(home: Path) -> dict[str, str]:
        dataset = prepare(home, held_out=0.5)
        return {one.sha256: side for side in pictures.SIDES for one in dataset.side(side)}

    assert len(sides(first)) == 40 and sides(first) == sides(second)


def test_a_small_folder_still_has_something_held_out(tmp_path: Path) -> None:
    for start in range(0, 60, 3):
        small = folder(tmp_path / str(start), 3, start=start)
        dataset = prepare(small, held_out=0.05)
        assert dataset.train and dataset.held_out
        assert kinds(dataset)["few_pictures"] < 3 and "few_held_out" in kinds(dataset)


def test_what_was_learned_already_is_never_held_out(copy: Path, tmp_path: Path) -> None:
    before = prepare(copy, held_out=0.4)
    learned = {one.sha256 for one in before.held_out}
    after = pictures.prepare(recipe(copy, held_out=0.4), RESOLUTION, learned=learned)
    assert after.held_out and learned.isdisjoint(one.sha256 for one in after.held_out)
    assert len(after.train) + len(after.held_out) == 30
    # Near-duplicates of learned pictures are not held out, even from a separate folder.
    mirrored = copy / "mirrored.png"
    with Image.open(before.held_out[0].path) as image:
        ImageOps.mirror(image).save(mirrored)
    mirrored.with_suffix(".txt").write_text("mirrored")
    again = pictures.prepare(recipe(copy, held_out=0.4), RESOLUTION, learned=learned)
    assert "mirrored.png" in names(again.train)
    judged = folder(tmp_path / "judged", 4, start=60)
    known = {prepare(copy, held_out=judged).held_out[1].sha256}
    own = pictures.prepare(recipe(copy, held_out=judged), RESOLUTION, learned=known)
    assert names(own.held_out) == {"060.png", "062.png", "063.png"}
    why = "held out, but learned by the adapter that training starts from"
    assert reasons(own) == {"061.png": why}
    # One unlearned picture is enough as held-out data, since the others remain for training.
    all_but_one = {one.sha256 for one in (*before.train, *before.held_out)} - learned
    left = pictures.prepare(recipe(copy, held_out=0.01), RESOLUTION, learned=all_but_one)
    assert {one.sha256 for one in left.held_out} <= learned and left.held_out


def test_a_held_out_folder_and_regularisation(copy: Path, tmp_path: Path) -> None:
    held_out = folder(tmp_path / "held_out", 6, start=40)
    shutil.copy(held_out / "040.png", copy / "leak.png")
    with Image.open(held_out / "041.png") as image:
        image.resize((110, 110)).save(copy / "like.jpg")
    for name in ("leak", "like"):
        (copy / f"{name}.txt").write_text(name)
    class_pictures = folder(tmp_path / "class", 5, start=60)
    shutil.copy(copy / "000.png", class_pictures / "060.png")
    dataset = prepare(copy, held_out=held_out, regularisation=class_pictures, trigger="ohwx style")
    assert names(dataset.held_out) == {f"{i:03}.png" for i in range(40, 46)}
    assert len(dataset.train) == 30
    assert names(dataset.regularisation) == {"061.png", "062.png", "063.png", "064.png"}
    assert {name: reason.partition(": ")[0] for name, reason in reasons(dataset).items()} == {
        "leak.png": "like a held-out picture",
        "like.jpg": "like a held-out picture",
        "060.png": "a regularisation picture that is also learned or judged",
    }
    assert all(one.caption.startswith("ohwx style, ") for one in dataset.train)
    assert all(one.caption.startswith("ohwx style, ") for one in dataset.held_out)
    assert not any("ohwx" in one.caption for one in dataset.regularisation)


def test_findings_on_sizes_blur_and_shapes(copy: Path) -> None:
    for number in range(30):
        path = copy / f"{number:03}.png"
        image = scene(number, (300, 300))
        if number == 3:
            image = image.filter(ImageFilter.GaussianBlur(9))
        if number == 4:
            image = scene("little", (90, 90))
        if number == 5:
            image = scene("wide", (400, 110))
        image.save(path)
    found = {one.kind: one for one in prepare(copy, held_out=0.01).findings}
    assert found.keys() == {"few_held_out", "blurred", "mixed_sizes", "upscaled"}
    assert found["blurred"].where == str(copy / "003.png") and found["blurred"].count == 1
    assert found["upscaled"].where == str(copy / "004.png") and found["upscaled"].count == 1
    found = {
        one.kind: one for one in prepare(copy, held_out=0.01, buckets=False, blur=0.0).findings
    }
    assert found.keys() == {"few_held_out", "cropped", "mixed_sizes", "upscaled"}
    assert found["cropped"].where == str(copy / "005.png") and found["upscaled"].count == 2


def test_captions_elsewhere_and_folders_within(tmp_path: Path) -> None:
    home = folder(tmp_path / "pictures", 6)
    folder(home / "inner", 6, start=6)
    (home / "metadata.csv").rename(tmp_path / "captions.csv")
    with (tmp_path / "captions.csv").open("a") as file:
        file.write("\n".join(f"inner\\{i:03}.png,inner {i}" for i in range(6, 12)) + "\n")
    (home / ".cache").mkdir()
    scene(1).save(home / ".cache" / "thumb.png")
    (home / "README.md").write_text("about")
    Path(os.fsdecode(os.fsencode(home) + b"/\xff.png")).write_bytes(b"x")
    dataset = prepare(home, captions=tmp_path / "captions.csv")
    assert len(dataset.train) + len(dataset.held_out) == 12
    assert [(Path(row.where).name, row.reason.partition(":")[0]) for row in dataset.quarantine] == [
        ("\\xff.png", "the name is not UTF-8"),
        ("metadata.csv", "a list of captions in a subfolder"),
    ]
    dataset.write(tmp_path / "out")
    assert PictureDataset.read(tmp_path / "out") == dataset
    (tmp_path / "captions.csv").rename(home / "captions.csv")
    within = prepare(home, captions=home / "captions.csv")
    assert len(within.quarantine) == 2 and within.fingerprint == dataset.fingerprint


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        prepare(tmp_path / "empty")
    assert str(error.value).startswith(f"{tmp_path}/empty: no usable picture; put pictures there")
    bad = folder(tmp_path / "bad", 3)
    for path in bad.glob("*.png"):
        path.write_bytes(b"\x89PNG")
    with pytest.raises(UserError) as error:
        prepare(bad)
    assert [problem.what for problem in error.value.problems] == [
        "no usable picture: all 3 were set aside",
        "broken: it begins like a picture, but its header is damaged (and 2 more like it)",
    ]
    with pytest.raises(UserError) as error:
        prepare(folder(tmp_path / "one", 1))
    assert error.value.problems[0].what == "no held-out picture, so nothing could be judged"


def test_all_mistakes_of_the_folders_are_told_at_once(tmp_path: Path) -> None:
    twice = folder(tmp_path / "twice", 3)
    (twice / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError) as error:
        prepare(tmp_path / "nope", held_out=twice, regularisation=twice / "000.png")
    assert [problem.what for problem in error.value.problems] == [
        "no such folder",
        "two lists of captions: metadata.csv and metadata.jsonl",
        "this is a file",
    ]
    with pytest.raises(UserError, match="unrelated pictures for duplicates"):
        prepare(twice, near_duplicate=0.2)


def test_a_written_dataset_is_read_back_equal(copy: Path, tmp_path: Path) -> None:
    (copy / "000.png").write_bytes(b"oops")
    dataset = prepare(copy, trigger="ohwx")
    out = tmp_path / "run" / "dataset"
    dataset.write(out)
    assert PictureDataset.read(out) == dataset
    assert str(tmp_path) not in (out / "train.jsonl").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "check.json",
        "held_out.jsonl",
        "quarantine.jsonl",
        "regularisation.jsonl",
        "train.jsonl",
    ]
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "run").rename(moved / "run")
    copy.rename(moved / "pictures")
    again = PictureDataset.read(moved / "run" / "dataset")
    assert again.fingerprint == dataset.fingerprint and len(again.train) == len(dataset.train)


def test_changed_pictures_are_noticed(copy: Path, tmp_path: Path) -> None:
    dataset = prepare(copy)
    dataset.write(tmp_path / "dataset")
    first, second = sorted((*dataset.train, *dataset.held_out), key=lambda one: one.path)[:2]
    scene("other").save(first.path)
    second.path.unlink()
    with pytest.raises(UserError) as error:
        PictureDataset.read(tmp_path / "dataset")
    assert {(problem.where, problem.what) for problem in error.value.problems} == {
        (str(first.path), "the picture was changed after it was checked"),
        (str(second.path), "the picture is missing or unreadable"),
    }
    train = tmp_path / "dataset" / "train.jsonl"
    train.write_text(train.read_text().replace("number", "figure"))
    with pytest.raises(UserError, match="the dataset was changed after it was checked"):
        PictureDataset.read(tmp_path / "dataset")
    train.write_text("{oops")
    with pytest.raises(UserError, match="the dataset folder is damaged"):
        PictureDataset.read(tmp_path / "dataset")


def test_the_fingerprint_tells_pictures_captions_and_sides(copy: Path) -> None:
    before = prepare(copy)
    assert prepare(copy).fingerprint == before.fingerprint
    assert prepare(copy, trigger="x1").fingerprint != before.fingerprint
    assert prepare(copy, held_out=0.45).fingerprint != before.fingerprint
    (copy / "000.png").rename(copy / "zzz.png")
    table = copy / "metadata.csv"
    table.write_text(table.read_text().replace("000.png", "zzz.png"))
    assert prepare(copy).fingerprint == before.fingerprint, "names say nothing"
    scene("new").save(copy / "zzz.png")
    assert prepare(copy).fingerprint != before.fingerprint


@pytest.mark.slow
def test_two_hundred_photos_take_seconds(tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(200):
        image = scene(number, (256, 192)).resize((1024, 768))
        image.save(many / f"{number:03}.jpg", quality=90)
        (many / f"{number:03}.txt").write_text(caption(number))
    started = time.process_time()
    dataset = pictures.prepare(recipe(many), 512)
    seconds = time.process_time() - started
    assert len(dataset.train) + len(dataset.held_out) == 200
    # Processor time of all threads; on two idle cores the wall-clock time is half of it.
    assert seconds < 10
