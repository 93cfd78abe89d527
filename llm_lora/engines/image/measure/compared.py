"""Similarity of pictures to held-out ones: by the embedder, by DINO, or by faces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from llm_lora.engines.image.measure.evidence import Evidence
from llm_lora.engines.vision import Dino
from llm_lora.progress import Listener, Progress
from llm_lora.scores.image import Floats
from llm_lora.vision import FaceModel, Judges, VisionModel

T = TypeVar("T")

UNTOLD = (
    "the embedder cannot separate the dataset's pictures from those of the bare base; choose "
    "another in judge.embedder"
)
_AT_ONCE = 32
_TRAIN = 64
"""How many training pictures are compared: only one fact depends on them, and faces take time."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Likeness to held-out pictures: rows are pictures, columns are held-out ones; 1 is identical.

    A held-out picture that cannot be compared (one without a face, say) has NaN in its column and
    row.

    Attributes:
        kind: the model that compares them: "clip", "dinov2" …, "faces".
        method: the same, as a sentence for the report.
        source: the paper.
        own: the adapter's pictures of held-out captions, whose pictures are the first columns.
        bare: the bare base's of the same captions.
        train: training pictures.
        held_out: the held-out pictures themselves.
        floor: likeness that counts as 0, even if the bare base reaches less.
        alone: the reason given if fewer than two held-out pictures can be compared.
        alike: the reason given if the bare base's pictures are as similar as the held-out ones.
        facts: further facts for the report.
        findings: findings for the report.
    """

    kind: str
    method: str
    source: str
    own: Floats
    bare: Floats
    train: Floats
    held_out: Floats
    floor: float = -1.0
    alone: str = "there is only one held-out picture"
    alike: str = (
        "according to judge.likeness, the bare base's pictures are as similar to the held-out ones "
        "as those are to each other; choose another model there"
    )
    facts: tuple[tuple[str, float], ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def comparable(self) -> int:
        """The number of held-out pictures that can be compared."""
        return int((~np.isnan(self.held_out)).any(axis=0).sum())


def compare(seen: Evidence, judges: Judges, listener: Listener) -> Compared:
    """Compare the generated pictures with the held-out ones.

    Raises:
        UserError: a picture of the dataset is missing.
    """
    match judges.likeness:
        case None:
            sides = (seen.own_held_out, seen.bare_held_out, seen.train, seen.held_out)
            return _by_points(
                "clip",
                "Likeness is the cosine of two pictures' CLIP embeddings (CLIP-I).",
                [one.points for one in sides],
                UNTOLD,
            )
        case VisionModel() as model:
            return _by_dino(seen, model, listener)
        case FaceModel() as faces:
            return _by_faces(seen, faces, listener)


def _each(
    seen: Evidence, look: Callable[[list[Image.Image]], Sequence[T]], listener: Listener
) -> list[list[T]]:
    """One value per picture of the adapter, bare base, training set and held-out set."""
    train = seen.train.spread(_TRAIN)
    sides = (seen.own_held_out, seen.bare_held_out, train, seen.held_out)
    total, done = sum(len(side) for side in sides), 0
    found: list[list[T]] = []
    for side in sides:
        found.append([])
        for some in _in_turn(side.images()):
            found[-1] += look(some)
            done += len(some)
            listener(Progress("comparing", done, total))
    return found


def _in_turn(images: Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    left = iter(images)
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _by_points(kind: str, method: str, points: Sequence[Floats], alike: str = "") -> Compared:
    """Compare by the cosine of unit-length embeddings."""
    own, bare, train, held_out = (one @ points[-1].T for one in points)
    source = "Ruiz et al., DreamBooth (CLIP-I, DINO), arXiv 2208.12242"
    return Compared(kind, method, source, own, bare, train, held_out, alike=alike or Compared.alike)


def _by_dino(seen: Evidence, model: VisionModel, listener: Listener) -> Compared:
    dino = Dino(model)
    return _by_points(
        model.kind,
        "Likeness is the cosine of two pictures' class tokens in the model of judge.likeness.",
        [np.stack(side) for side in _each(seen, dino.points, listener)],
    )


def _by_faces(seen: Evidence, model: FaceModel, listener: Listener) -> Compared:
    """Compare by one minus the distance of the face descriptors; a generated picture without a face
    has likeness 0.
    """
    # dlib is an optional dependency.
    from llm_lora.engines.vision import SAME, Faces

    faces = Faces(model)
    own, bare, train, held_out = _each(
        seen, lambda some: [faces.largest(one) for one in some], listener
    )

    def likeness(some: Sequence[Floats | None], without: float) -> Floats:
        rows = np.full((len(some), len(held_out)), np.nan)
        for row, one in enumerate(some):
            for column, other in enumerate(held_out):
                if other is not None:
                    rows[row, column] = (
                        without
                        if one is None
                        else max(0.0, 1.0 - float(np.linalg.norm(one - other)))
                    )
        return rows

    def share(some: Sequence[Floats | None]) -> float:
        return sum(one is not None for one in some) / len(some)

    def same(some: Floats) -> float:
        """The share of pictures whose face counts as that of a held-out picture's person."""
        return float((np.nan_to_num(some).max(axis=1) >= 1.0 - SAME).mean())

    findings = [
        f"no face was found in {lost} of {len(some)} {of}"
        for of, some in (
            ("pictures of the adapter", own),
            ("pictures of the bare base", bare),
            ("held-out pictures, which are left out", held_out),
        )
        if (lost := sum(one is None for one in some))
    ]
    owns, bares = likeness(own, 0.0), likeness(bare, 0.0)
    return Compared(
        "faces",
        "Likeness is one minus the distance of the two face descriptors, and 0 if no face is "
        f"found; the lower yardstick is at least {1.0 - SAME:g}, the likeness from which two faces "
        "count as one person's.",
        "King, Dlib-ml: A Machine Learning Toolkit, JMLR 10 (2009)",
        owns,
        bares,
        likeness(train, np.nan),
        likeness(held_out, np.nan),
        floor=1.0 - SAME,
        alone="faces were found in fewer than two held-out pictures",
        alike="the faces of held-out pictures are no more similar to each other than the bare "
        "base's are to them, or show different people",
        facts=(
            ("share of pictures with a face", share(own)),
            ("share of the bare base's with a face", share(bare)),
            ("share of held-out pictures with a face", share(held_out)),
            ("share taken for a held-out picture's person", same(owns)),
            ("share of the bare base's taken for one", same(bares)),
        ),
        findings=tuple(findings),
    )
