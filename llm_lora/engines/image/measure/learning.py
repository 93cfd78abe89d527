"""The dimension `learning`: under-fitting, over-fitting and memorised training pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_lora.engines.image.measure.evidence import Evidence, Painted, Real
from llm_lora.engines.image.measure.measured import SHOWN, Measured, or_not
from llm_lora.engines.image.measure.yardsticks import Yardsticks
from llm_lora.progress import Fit
from llm_lora.scores.image import Floats
from llm_lora.scores.image import curve as learning_curve
from llm_lora.scores.image import figures as picture_figures


def learning(seen: Evidence, sticks: Yardsticks, fit: Fit) -> Measured:
    """Learning: whether training was long enough, not too long, and memorised no picture."""
    curve = learning_curve.read(fit.curve, fit.best_step)
    usual = _Nearest.of(seen.held_out, seen.train)
    trained = _Nearest.of(seen.own_train, seen.train)
    held_out = _Nearest.of(seen.own_held_out, seen.train)
    # The baseline: how close a caption alone brings a picture to one that was never seen.
    unseen = _Nearest.of(seen.own_held_out, seen.held_out)
    copied = {
        "training": trained.closer_than_all(usual) & trained.closer_than_all(unseen),
        "held-out": held_out.closer_than_all(usual),
    }
    share = max(float(one.mean()) for one in copied.values())
    findings = list(curve.findings) + [
        f"{int(one.sum())} of {len(one)} pictures of {of} captions are copies of training "
        "pictures: memorised; use more pictures, fewer epochs or a lower rank"
        for of, one in copied.items()
        if one.any()
    ]
    parts = [part for part in (curve.kept, curve.level) if part is not None]
    painted = (*seen.own_train.pictures, *seen.own_held_out.pictures)
    near = np.concatenate([trained.likeness, held_out.likeness])
    which = np.concatenate([trained.which, held_out.which])
    order = np.argsort(-near, kind="stable")[:SHOWN]
    usual_order = np.argsort(-usual.likeness, kind="stable")[:SHOWN]
    like = seen.full.pictures[0]
    facts: list[tuple[str, float | int | str]] = []
    if curve.held_out:
        facts += [
            ("loss on held-out pictures before", curve.held_out[0]),
            ("loss on held-out pictures, lowest", min(curve.held_out)),
            ("loss on held-out pictures in the end", curve.held_out[-1]),
        ]
    if curve.loss:
        facts += [
            ("training loss, first fifth", curve.loss[0]),
            ("training loss, last fifth", curve.loss[1]),
        ]
    return Measured(
        value=min(*parts, 1 - share) if parts else None,
        reason=curve.findings[-1],
        columns={
            "adapter": [painted[n] for n in order],
            "learned": [seen.train.shown(int(which[n]), like) for n in order],
            "held out": [seen.held_out.shown(int(n), like) for n in usual_order],
            "learned too": [seen.train.shown(int(usual.which[n]), like) for n in usual_order],
        },
        shows="The adapter's pictures of training and held-out captions that lie closest to a "
        "training picture, each beside that one; then such held-out pictures, beside theirs.",
        facts=[
            *facts,
            ("share of the fall that is kept", or_not(curve.kept)),
            ("share of the fall before the last third", or_not(curve.level)),
            *(
                (f"copies among pictures of {of} captions", float(one.mean()))
                for of, one in copied.items()
            ),
            ("likeness to the nearest training picture", float(held_out.likeness.mean())),
            ("likeness of held-out pictures to theirs", float(usual.likeness.mean())),
            (
                "chance that a painted one lies closer than a held-out one",
                picture_figures.rank_share(held_out.likeness, usual.likeness),
            ),
            ("distance in pixels to the nearest training picture", float(held_out.apart.mean())),
            ("distance in pixels of held-out pictures to theirs", float(usual.apart.mean())),
        ],
        findings=findings,
    )


@dataclass(frozen=True, eq=False)
class _Nearest:
    """For each picture, the nearest real one and how near it is."""

    likeness: Floats
    which: NDArray[np.intp]
    apart: Floats
    """The least distance in pixels, possibly to another real picture."""

    @classmethod
    def of(cls, some: Painted | Real, real: Real) -> _Nearest:
        likeness, which = picture_figures.nearest(some.points, real.points)
        apart, _ = picture_figures.nearest_pixels(some.thumbs, real.thumbs)
        return cls(likeness, which, apart)

    def closer_than_all(self, others: _Nearest) -> NDArray[np.bool_]:
        """Which pictures lie closer than all of the others, in the embedding and by pixels."""
        found: NDArray[np.bool_] = (self.likeness > others.likeness.max()) & (
            self.apart < others.apart.min()
        )
        return found
