"""How like pictures are to held-out ones: by the embedder, by DINO, or by the faces they show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from PIL import Image

from llm_lora import face_models, vision_models
from llm_lora.engines.picture_evidence import Evidence, Painted, Real
from llm_lora.picture_figures import Floats

_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Compared:
    """Likeness to held-out pictures: rows are pictures, columns are held-out ones; 1 is the same.

    Attributes:
        by: what compares them.
        own: the adapter's pictures of held-out captions, whose pictures are the first columns.
        bare: the bare base's of the same captions.
        train: training pictures.
        held_out: the held-out pictures themselves.
        facts: what is to be told besides.
        findings: what was noticed.
        by_embedder: whether it is the model that tells the style as well.

    A column is NaN where its held-out picture cannot be compared.
    """

    by: str
    own: Floats
    bare: Floats
    train: Floats
    held_out: Floats
    facts: tuple[tuple[str, float], ...] = ()
    findings: tuple[str, ...] = ()
    by_embedder: bool = False

    @property
    def comparable(self) -> int:
        """How many held-out pictures can be compared."""
        return int((~np.isnan(self.held_out)).any(axis=0).sum())


def compare(seen: Evidence, embedder: str, by: str | None) -> Compared:
    """Compare what was painted with the held-out pictures.

    Args:
        seen: the pictures.
        embedder: the name of the model that put them into `seen.….points`.
        by: "faces", or the name of a DINO model; None for the embedder.

    Raises:
        UserError: the model is not there.
    """
    if by == face_models.NAME:
        return _by_faces(seen)
    if by is None:
        clip = _by_points(f"{embedder} (CLIP)", [one.points for one in _sides(seen)])
        return replace(clip, by_embedder=True)
    from llm_lora.engines.dino import Dino

    dino = Dino(vision_models.resolve(by, *vision_models.DINO))
    points = [
        np.concatenate([dino.images(some).double().numpy() for some in _in_turn(side.images())])
        for side in _sides(seen)
    ]
    return _by_points(f"{by} (DINO)", points)


def _sides(seen: Evidence) -> tuple[Painted | Real, ...]:
    return seen.own_held_out, seen.bare_held_out, seen.train, seen.held_out


def _in_turn(images: Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    left = iter(images)
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _by_points(by: str, points: Sequence[Floats]) -> Compared:
    """By the cosine of points, of length 1."""
    held_out = points[-1]
    own, bare, train, others = (one @ held_out.T for one in points)
    return Compared(by, own, bare, train, others)


def _by_faces(seen: Evidence) -> Compared:
    """By one less the distance of the faces' descriptors; a picture without a face is like none."""
    from llm_lora.engines.faces import SAME, Faces

    faces = Faces(face_models.resolve())
    own, bare, train, held_out = (
        [faces.largest(image) for image in side.images()] for side in _sides(seen)
    )

    def likeness(some: Sequence[Floats | None]) -> Floats:
        rows = np.full((len(some), len(held_out)), np.nan)
        for column, other in enumerate(held_out):
            if other is not None:
                rows[:, column] = [
                    0.0 if one is None else max(0.0, 1.0 - float(np.linalg.norm(one - other)))
                    for one in some
                ]
        return rows

    def share(some: Sequence[Floats | None]) -> float:
        return sum(one is not None for one in some) / len(some)

    def same(some: Floats) -> float:
        """Of the pictures, how many show a face that is taken for that of a held-out picture."""
        return float((np.nan_to_num(some).max(axis=1) >= 1.0 - SAME).mean())

    findings = []
    if lost := sum(one is None for one in own):
        findings.append(f"{lost} of the adapter's {len(own)} pictures show no face that was found")
    if lost := sum(one is None for one in held_out):
        findings.append(
            f"{lost} of {len(held_out)} held-out pictures show no face that was found: left out"
        )
    owns, bares = likeness(own), likeness(bare)
    return Compared(
        "faces (dlib)",
        owns,
        bares,
        likeness(train),
        likeness(held_out),
        facts=(
            ("share of pictures with a face", share(own)),
            ("share of the bare base's with a face", share(bare)),
            ("share of held-out pictures with a face", share(held_out)),
            ("share taken for a held-out picture's person", same(owns)),
            ("share of the bare base's taken for one", same(bares)),
        ),
        findings=tuple(findings),
    )
