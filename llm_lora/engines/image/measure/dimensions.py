"""The six dimensions in which an image adapter is judged, all measured on the same evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llm_lora.engines.image.measure.evidence import (
    FULL,
    UNTOLD,
    Evidence,
    Painted,
    Real,
    Response,
    Yardsticks,
    kept_of,
)
from llm_lora.engines.image.sheets import Pixels
from llm_lora.progress import Fit
from llm_lora.scores.image import Floats
from llm_lora.scores.image import curve as learning_curve
from llm_lora.scores.image import figures as picture_figures

_PRESENT = 0.5
"""Presence from which a picture counts as being in the style."""
_USUAL = 0.8
"""The strength that most people use; the style has to be present at it."""
_LEAST_KEPT = 0.7
"""Share of the bare base's alignment below which an adapter counts as broken."""
_SHOWN = 8
"""Largest number of rows or columns of a sheet."""

Columns = Mapping[str, Sequence[Pixels]]
"""A sheet of pictures: column title → pictures below it."""

Fact = tuple[str, float | int | str]
"""A label and its value."""


@dataclass(frozen=True)
class Measured:
    """One dimension: its value or the reason why there is none, its facts and its pictures."""

    value: float | None
    columns: Columns
    shows: str
    facts: Sequence[Fact] = ()
    findings: Sequence[str] = ()
    reason: str = ""


Dimension = Callable[[Evidence, Yardsticks, Fit], Measured]
"""The function that measures a dimension."""


def _or_not(value: float | None) -> float | str:
    """A figure as a fact; a missing one is stated."""
    return "not measured" if value is None else value


def consistency(seen: Evidence, sticks: Yardsticks, fit: Fit) -> Measured:
    """Consistency: whether the adapter's change is the same for every seed."""
    moved = seen.full.points - seen.bare.points
    parts = [slice_ for _, slice_ in seen.each_prompt()]
    agreed = [picture_figures.agreement(moved[part]) for part in parts]
    plain = [picture_figures.agreement(seen.full.points[part]) for part in parts]
    bare = [picture_figures.agreement(seen.bare.points[part]) for part in parts]
    return Measured(
        value=max(0.0, _mean(agreed)),
        columns={
            f"seed {number + 1}": seen.full.pictures[number :: seen.seeds]
            for number in range(min(seen.seeds, _SHOWN))
        },
        shows="The adapter at full strength: rows are prompts, columns are seeds.",
        facts=[
            ("agreement in the prompt where it is least", min(agreed)),
            ("likeness of pictures of different seeds", _mean(plain)),
            ("likeness of the bare base's", _mean(bare)),
            ("pictures", len(moved)),
        ],
    )


def fidelity(seen: Evidence, sticks: Yardsticks, fit: Fit) -> Measured:
    """Fidelity: likeness to held-out pictures, between the bare base's and theirs to each other."""
    like = sticks.compared
    value, reason = None, like.alone
    yardsticks: list[tuple[str, float]] = []
    if like.comparable > 1:
        own, bare, ideal = map(
            picture_figures.likeness_to_others, (like.own, like.bare, like.held_out)
        )
        low = max(bare, like.floor)
        # An embedder that compares pictures here must also separate them from the bare base's.
        if ideal > low and (sticks.probe is not None or like.kind != "clip"):
            value = min(max((own - low) / (ideal - low), 0.0), 1.0)
        reason = like.alike
        yardsticks = [
            ("likeness to held-out pictures of other captions", own),
            ("likeness of the bare base's", bare),
            ("likeness of held-out pictures to each other", ideal),
        ]
    others = [
        ("likeness of training pictures", picture_figures.known_mean(like.train)),
        ("likeness of a held-out picture to the nearest", _nearest(like.own)),
        ("likeness of it to the bare base's nearest", _nearest(like.bare)),
        (
            "likeness of pictures of the same caption",
            picture_figures.known_mean(like.own.diagonal()),
        ),
    ]
    return Measured(
        value=value,
        reason=reason,
        columns={
            "held out": [seen.held_out.shown(n, seen.full.pictures[0]) for n in _rows(seen)],
            "adapter": [seen.own_held_out.pictures[n] for n in _rows(seen)],
            "bare base": [seen.bare_held_out.pictures[n] for n in _rows(seen)],
        },
        shows="Rows are captions of held-out pictures; columns are the held-out picture, the "
        "adapter's and the bare base's.",
        facts=[
            ("compared by", like.kind),
            *yardsticks,
            *((label, _or_not(mean)) for label, mean in others),
            *like.facts,
            ("captions", len(like.own)),
            ("held-out pictures", len(like.held_out)),
        ],
        findings=like.findings,
    )


def _rows(seen: Evidence) -> range:
    return range(min(len(seen.own_held_out.pictures), _SHOWN))


def _nearest(likeness: Floats) -> float | None:
    """The mean, over held-out pictures, of the likeness to the nearest picture."""
    return picture_figures.known_mean(likeness.max(axis=0))


def generalisation(seen: Evidence, sticks: Yardsticks, fit: Fit) -> Measured:
    """Generalisation: whether the style is present in combinations that training never showed."""
    like = seen.full.pictures
    probe = sticks.probe
    if probe is None:
        rows = [part.start for _, part in seen.each_prompt()]
        return Measured(
            value=None,
            reason=UNTOLD,
            columns={
                "bare base": [seen.bare.pictures[n] for n in rows],
                "adapter": [like[n] for n in rows],
            },
            shows="Rows are prompts; columns are the bare base and the adapter.",
            facts=[(f"accuracy of the classifier on {sticks.tried}", sticks.accuracy)],
        )
    presence = probe.presence(seen.full.points)
    least, most, by_prompt = [], [], []
    for _, part in seen.each_prompt():
        least.append(part.start + int(presence[part].argmin()))
        most.append(part.start + int(presence[part].argmax()))
        by_prompt.append(float(presence[part].mean()))
    findings = [
        f"the style is hardly present in “{prompt}”: {there:.2f}"
        for prompt, there in zip(seen.prompts, by_prompt, strict=True)
        if there < _PRESENT
    ] + [
        f"training showed “{prompt}”: it is not a new combination"
        for prompt in seen.shown_in_training
    ]
    return Measured(
        value=float(presence.mean()),
        columns={
            "bare base": [seen.bare.pictures[n] for n in least],
            "least styled": [like[n] for n in least],
            "most styled": [like[n] for n in most],
        },
        shows="Rows are prompts; columns are the bare base and, of the adapter's pictures, the one "
        "with the least of the style (of the same seed) and the one with the most.",
        facts=[
            ("share taken for the style", float(probe.takes(seen.full.points).mean())),
            ("share of the bare base's taken for it", float(probe.takes(seen.bare.points).mean())),
            ("presence in the prompt where it is least", min(by_prompt)),
            (f"accuracy of the classifier on {sticks.tried}", sticks.accuracy),
            ("training pictures that it learned from", len(seen.train.points)),
            ("pictures of the bare base that it learned from", len(seen.bare_train.points)),
        ],
        findings=findings,
    )


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
    order = np.argsort(-near, kind="stable")[:_SHOWN]
    usual_order = np.argsort(-usual.likeness, kind="stable")[:_SHOWN]
    like = seen.full.pictures[0]
    facts: list[Fact] = []
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
            ("share of the fall that is kept", _or_not(curve.kept)),
            ("share of the fall before the last third", _or_not(curve.level)),
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


def strength(seen: Evidence, sticks: Yardsticks, fit: Fit) -> Measured:
    """Strength: whether the effect rises with the strength, and at which strength it breaks."""
    usual = [one for one in sticks.responses if one.strength <= FULL]
    steady = picture_figures.steadiness([one.change for one in usual])
    styles = [one.style for one in usual if one.style is not None]
    style = picture_figures.steadiness(styles) if len(styles) == len(usual) else None
    at = min(sticks.responses, key=lambda one: (abs(one.strength - _USUAL), one.strength))
    bare = sticks.responses[0]
    breaks, why = _breaks(sticks.responses)
    findings = []
    if at.style is not None and bare.style is not None:
        there = "present" if at.style >= _PRESENT else "not present"
        absent = "absent" if bare.style < _PRESENT else "not absent"
        findings.append(
            f"the style is {there} at {at.strength:g} ({at.style:.2f}) and {absent} at "
            f"{bare.strength:g} ({bare.style:.2f})"
        )
        findings += [
            f"the style falls back from {one.strength:g} to {other.strength:g}"
            for one, other in pairwise(usual)
            if (other.style or 0.0) < (one.style or 0.0) - 0.02
        ]
    findings.append(
        f"it breaks at {breaks:g}: {why}"
        if breaks is not None
        else f"it does not break up to {sticks.responses[-1].strength:g}"
    )
    facts: list[Fact] = [
        ("steadiness of the style from 0 to 1", _or_not(style)),
        ("steadiness of the change from 0 to 1", steady),
        ("breaks at", "nowhere" if breaks is None else breaks),
        ("least share of alignment kept, else broken", _LEAST_KEPT),
    ]
    if (probe := sticks.probe) is not None:
        facts += [
            (
                f"share taken for the style at {one.strength:g}",
                float(probe.takes(seen.asked[one.strength].points).mean()),
            )
            for one in (bare, at)
        ]
    return Measured(
        value=None if style is None else min(style, steady),
        reason=UNTOLD,
        columns={f"{of:g}": painted.pictures[:: seen.seeds] for of, painted in seen.asked.items()},
        shows="Rows are prompts, each with one seed; columns are strengths.",
        facts=facts,
        findings=findings,
    )


def _breaks(responses: Sequence[Response]) -> tuple[float | None, str]:
    """The lowest strength at which alignment is lost or the change stops rising, and the reason."""
    for before, one in pairwise(responses):
        if one.alignment is not None and one.alignment < _LEAST_KEPT:
            return one.strength, (
                f"only {one.alignment:.0%} of the bare base's prompt alignment is left"
            )
        if one.change <= before.change:
            return one.strength, f"pictures change no more than at {before.strength:g}"
    return None, ""


def alignment(seen: Evidence, sticks: Yardsticks, fit: Fit) -> Measured:
    """Alignment: whether pictures still follow the prompt, and avoid the negative prompt."""
    numbers = (*seen.prompt_texts, *seen.held_texts)
    own = np.concatenate([seen.full.points, seen.own_held_out.points])
    bare = np.concatenate([seen.bare.points, seen.bare_held_out.points])
    rows = [part.start for _, part in seen.each_prompt()]
    columns = {
        "bare base": [seen.bare.pictures[n] for n in rows],
        "adapter": [seen.full.pictures[n] for n in rows],
    }
    shows = "Rows are prompts; columns are the bare base and the adapter"
    if seen.other is not None:
        columns["no negative" if seen.usual_is_negative else "negative"] = [
            seen.other.pictures[n] for n in rows
        ]
        without = "without the" if seen.usual_is_negative else "with a"
        shows += f", and the adapter {without} negative prompt"
    if len(seen.texts) < 2:
        only = "all prompts and held-out captions are the same: add other prompts to judge.prompts"
        return Measured(None, columns, f"{shows}.", reason=only)
    kept = kept_of(
        margins := picture_figures.margins(own, seen.texts, numbers),
        follows := picture_figures.margins(bare, seen.texts, numbers),
    )
    direct = [
        float((points * seen.texts[list(numbers)]).sum(axis=1).mean()) for points in (own, bare)
    ]
    facts: list[Fact] = [
        ("likeness of picture and prompt", direct[0]),
        ("likeness in the bare base's", direct[1]),
        ("by how much the own prompt is nearer than others", float(margins.mean())),
        ("by how much in the bare base's", float(follows.mean())),
        ("share whose own prompt is nearest", picture_figures.retrieved(own, seen.texts, numbers)),
        ("share of the bare base's", picture_figures.retrieved(bare, seen.texts, numbers)),
        ("prompts to choose from", len(seen.texts)),
    ]
    more, findings = _negative(seen)
    return Measured(
        value=kept,
        reason="according to the embedder, the bare base itself does not follow these prompts, so "
        "there is nothing to lose",
        columns=columns,
        shows=f"{shows}.",
        facts=[*facts, *more],
        findings=findings,
    )


def _negative(seen: Evidence) -> tuple[list[Fact], list[str]]:
    """The effect of a negative prompt: pictures must become less similar to its text."""
    if seen.other is None:
        return [("negative prompt", "none in the recipe: judge.negative_prompt")], []
    pair = (seen.full, seen.other) if seen.usual_is_negative else (seen.other, seen.full)
    given, free = (one.points @ seen.negative_point for one in pair)
    facts: list[Fact] = [
        ("negative prompt", seen.negative),
        ("likeness to it, when not given", float(free.mean())),
        ("the same, when given", float(given.mean())),
        ("share of pictures less like it when given", float((given < free).mean())),
    ]
    # Compared in pairs: both have the same prompt and seed.
    if picture_figures.above_zero(free - given):
        return facts, []
    return facts, ["the negative prompt does not suppress what it names, or no more than by chance"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
