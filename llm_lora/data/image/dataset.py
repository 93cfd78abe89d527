"""Image datasets: reading, checking, splitting, fingerprinting and writing of picture folders."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from llm_lora import files
from llm_lora.data import written
from llm_lora.data.finding import Finding, main_reasons
from llm_lora.data.image import buckets, caption_lint
from llm_lora.data.image import findings as picture_findings
from llm_lora.data.image import folder as picture_folder
from llm_lora.data.image.captions import with_trigger
from llm_lora.data.image.folder import Folder, Found
from llm_lora.data.image.split import SIDES, Side, split
from llm_lora.data.written import Check, Fields
from llm_lora.errors import Problem, UserError
from llm_lora.example import Rejected, TooFewLeft

if TYPE_CHECKING:
    from llm_lora.data.image.buckets import Bucket
    from llm_lora.recipe.image import ImageData, ImageRecipe

_LEAST_LIKENESS = 0.5
_SHOWN_CHANGES = 20


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that passed every check.

    `path` is absolute; `caption` has the trigger, if any, in front; `sha256` is of the
    file's bytes; `width` and `height` are in pixels as shown, after the camera's rotation. Its
    pixels: `picture_files.load(picture.path)`, always RGB.
    """

    path: Path
    caption: str
    sha256: str
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


@dataclass(frozen=True)
class Sizes:
    """Sizes of the training pictures: width and height of two of them, and the median area."""

    smallest: list[int]
    largest: list[int]
    median_pixels: int


@dataclass(frozen=True)
class Stats:
    """Figures of a dataset; `buckets` of its training pictures, the fullest first."""

    counts: dict[str, int]
    resolution: int
    sizes: Sizes
    buckets: list[dict[str, int]]
    captions: dict[str, int]
    near_duplicates: dict[str, int]


@dataclass(frozen=True)
class PictureDataset:
    """Checked pictures by side, rejected pictures, and findings.

    `regularisation` pictures show the class without the style or person to be learned; they serve
    prior preservation. `fingerprint` identifies which pictures, with which captions, are on which
    side, in any order.
    """

    train: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    regularisation: tuple[Picture, ...]
    quarantine: tuple[Rejected, ...]
    findings: tuple[Finding, ...]
    fingerprint: str
    stats: Stats

    def side(self, side: Side) -> tuple[Picture, ...]:
        """The pictures of one side."""
        pictures: tuple[Picture, ...] = getattr(self, side)
        return pictures

    @property
    def order(self) -> str:
        """Digest of the pictures' order, which is that of their names."""
        rows = (f"{side} {one.sha256}" for side in SIDES for one in self.side(side))
        return files.sha256("\n".join(rows))

    def summary(self) -> Fields:
        """The result of the data check, as JSON: counts, sizes, buckets, reasons, findings."""
        return self._check().to_json()

    def _check(self) -> Check:
        return Check(self.fingerprint, self.quarantine, self.findings, asdict(self.stats))

    def write(self, folder: Path) -> None:
        """Write train, held_out, regularisation and quarantine (.jsonl), then check.json.

        Pictures are not copied: their paths are written relative to the folder.

        Raises:
            UserError: the disk is full or the folder may not be written.
        """
        home = folder.resolve()
        rows = {side: (_row(picture, home) for picture in self.side(side)) for side in SIDES}
        written.write(folder, rows, self._check())

    @classmethod
    def read(cls, folder: Path, *, unchanged: bool = True) -> PictureDataset:
        """Read a written dataset; equal to the one that wrote it.

        Args:
            folder: where it was written.
            unchanged: require the checked picture files; otherwise only their metadata is read.

        Raises:
            UserError: a file is missing or damaged, or a picture was changed or removed since.
        """
        with written.undamaged(folder):
            rows, check = written.read(folder, SIDES)
            sides = {side: tuple(_picture(row, folder) for row in rows[side]) for side in SIDES}
            stats = Stats(**{**check.stats, "sizes": Sizes(**check.stats["sizes"])})
        written.require_unchanged(folder, check.fingerprint, fingerprint(sides))
        if unchanged:
            _require_unchanged(picture for side in SIDES for picture in sides[side])
        return cls(
            **sides,
            quarantine=check.rejected,
            findings=check.findings,
            fingerprint=check.fingerprint,
            stats=stats,
        )


def fingerprint(sides: Mapping[Side, Iterable[Picture]]) -> str:
    """Digest of a dataset: which pictures, with which captions, are on which side."""
    return files.sha256(
        "\n".join(
            sorted(f"{side} {one.sha256} {one.caption}" for side in SIDES for one in sides[side])
        )
    )


def prepare(
    recipe: ImageRecipe,
    resolution: int,
    *,
    tokenizer: Path | None = None,
    learned: Collection[str] = (),
) -> PictureDataset:
    """Read and check all pictures that a recipe uses for training and judging.

    Args:
        recipe: names the folders, shares and limits.
        resolution: side in pixels of the square that pictures are trained at.
        tokenizer: folder of the base's tokenizer, to measure captions; without it lengths are
            estimated from words and punctuation, each of which is at least one token.
        learned: digests of pictures that must not be held out, because an adapter has seen them.

    Raises:
        UserError: a folder cannot be read or the settings make no sense.
        TooFewLeft: too few pictures are left.
    """
    data = recipe.data
    if data.near_duplicate < _LEAST_LIKENESS:
        raise UserError(
            f"data.near_duplicate {data.near_duplicate:g} would take unrelated pictures for "
            "duplicates",
            fix=f"use {_LEAST_LIKENESS:g} to 1; the default is 0.8",
        )
    ruler = caption_lint.ruler(tokenizer)
    folders = _folders(data, resolution)
    parted = split(
        folders["held_out"].pictures,
        folders["train"].pictures,
        folders["regularisation"].pictures,
        share=data.held_out if isinstance(data.held_out, float) else 0.0,
        near_duplicate=data.near_duplicate,
        learned=learned,
    )
    rejected = [row for folder in folders.values() for row in folder.rejected] + parted.aside
    rejected.sort(key=lambda row: row.where)
    _require_enough(parted.sides, rejected, data)
    sides = {side: tuple(_checked(one, side, data) for one in parted.sides[side]) for side in SIDES}
    train, held_out = parted.sides["train"], parted.sides["held_out"]
    shapes = _shapes(train, data, resolution)
    texts = {one.caption.where: one.caption.text for one in (*train, *held_out)}
    findings = (
        *(finding for folder in folders.values() for finding in folder.findings),
        *caption_lint.lint(texts, trigger=data.trigger, ruler=ruler),
        *picture_findings.notice(train, held_out, parted.alike, shapes, blur=data.blur),
    )
    return PictureDataset(
        **sides,
        quarantine=tuple(rejected),
        findings=findings,
        fingerprint=fingerprint(sides),
        stats=Stats(
            counts={
                "read": sum(folder.files for folder in folders.values()),
                **{side: len(sides[side]) for side in SIDES},
                "rejected": len(rejected),
            },
            resolution=resolution,
            sizes=_sizes(sides["train"]),
            buckets=_counted(shapes.values()),
            captions={"different": len({one.caption for one in sides["train"]})},
            near_duplicates={
                "pictures": sum(map(len, parted.alike)),
                "clusters": len(parted.alike),
            },
        ),
    )


def unreadable(data: ImageData) -> list[Problem]:
    """Problems of the folders that a recipe names; no picture is opened."""
    problems: list[Problem] = []
    for path, listed in _named(data).values():
        try:
            picture_folder.find(path, listed)
        except UserError as error:
            problems += error.problems
    return problems


def _named(data: ImageData) -> dict[Side, tuple[Path, Path | None]]:
    """The folders of a recipe by side, with the list of captions if it is elsewhere."""
    held_out = data.held_out if isinstance(data.held_out, Path) else None
    named: dict[Side, tuple[Path | None, Path | None]] = {
        "train": (data.train, data.captions),
        "held_out": (held_out, None),
        "regularisation": (data.regularisation, None),
    }
    return {side: (path, listed) for side, (path, listed) in named.items() if path is not None}


def _folders(data: ImageData, resolution: int) -> dict[Side, Folder]:
    """Read each folder that the recipe names; reports the problems of all of them at once."""
    problems: list[Problem] = []
    found: dict[Side, Folder] = {side: Folder((), (), (), 0) for side in SIDES}
    for side, (path, listed) in _named(data).items():
        try:
            found[side] = picture_folder.read(
                path, resolution=resolution, min_size=data.min_size, listed=listed
            )
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return found


def _checked(one: Found, side: Side, data: ImageData) -> Picture:
    trigger = data.trigger if side != "regularisation" else None
    caption = with_trigger(one.caption.text, trigger)
    path = one.path.resolve()
    return Picture(path, caption, one.head.sha256, one.head.width, one.head.height)


def _shapes(train: Sequence[Found], data: ImageData, resolution: int) -> dict[str, Bucket]:
    """The bucket of each training picture by its digest."""
    sizes = [(one.head.width, one.head.height) for one in train]
    planned = (
        buckets.plan(sizes, resolution, data.bucket_step)
        if data.buckets
        else [buckets.square(resolution, buckets.CELL)] * len(sizes)
    )
    return {one.head.sha256: bucket for one, bucket in zip(train, planned, strict=True)}


def _require_enough(
    parted: Mapping[Side, Sequence[Found]], rejected: Sequence[Rejected], data: ImageData
) -> None:
    """Stop if too few pictures are left, with the main reasons why files were set aside."""
    problems = []
    if not parted["train"]:
        what = "no usable picture" + (f": all {len(rejected)} were set aside" if rejected else "")
        fix = "put pictures there with metadata.csv, or write captions: "
        fix += f"llm-lora label {data.train}"
        problems.append(Problem(what, str(data.train), fix))
    elif not parted["held_out"]:
        what = "no held-out picture, so nothing could be judged"
        if isinstance(data.held_out, float):
            fix = "add pictures that are not all alike, or name a folder in data.held_out"
            problems.append(Problem(what, str(data.train), fix))
        else:
            problems.append(Problem(what, str(data.held_out), "fix the pictures of that folder"))
    if problems:
        raise TooFewLeft([*problems, *main_reasons(rejected)], rejected)


def _sizes(pictures: Sequence[Picture]) -> Sizes:
    ordered = sorted((one.size for one in pictures), key=lambda size: size[0] * size[1])
    areas = [width * height for width, height in ordered]
    return Sizes(list(ordered[0]), list(ordered[-1]), int(median(areas)))


def _counted(shapes: Iterable[Bucket]) -> list[dict[str, int]]:
    """The number of pictures in each bucket, the fullest first."""
    counts: dict[Bucket, int] = {}
    for bucket in shapes:
        counts[bucket] = counts.get(bucket, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"width": b.width, "height": b.height, "pictures": count} for b, count in ordered]


# Written files


def _row(picture: Picture, home: Path) -> Fields:
    return {**asdict(picture), "path": os.path.relpath(picture.path, home)}


def _picture(row: Fields, folder: Path) -> Picture:
    return Picture(**{**row, "path": (folder / row["path"]).resolve()})


def _require_unchanged(pictures: Iterable[Picture]) -> None:
    """Check pictures against their digests.

    Raises:
        UserError: pictures were changed or removed (at most the first few are named).
    """

    def look(picture: Picture) -> Problem | None:
        try:
            if files.file_sha256(picture.path) == picture.sha256:
                return None
            what = "the picture was changed after it was checked"
        except OSError:
            what = "the picture is missing or unreadable"
        return Problem(what, str(picture.path), "restore it, or train again")

    with ThreadPoolExecutor() as pool:
        problems = [problem for problem in pool.map(look, pictures) if problem is not None]
    if len(problems) > _SHOWN_CHANGES:
        more = Problem(
            f"and {len(problems) - _SHOWN_CHANGES} other pictures were changed or are missing"
        )
        problems = [*problems[:_SHOWN_CHANGES], more]
    if problems:
        raise UserError(problems)
