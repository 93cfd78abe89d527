"""Dimensions in which an image adapter is judged, all measured on the same evidence; the dimension
`learning` is in `picture_learning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from llm_lora.engines.image.measure.compared import UNTOLD
from llm_lora.engines.image.measure.evidence import FULL, Evidence
from llm_lora.engines.image.measure.measured import SHOWN, Measured, or_not
from llm_lora.engines.image.measure.yardsticks import Response, Yardsticks, kept_of
from llm_lora.progress import Fit
from llm_lora.scores.image import Floats
from llm_lora.scores.image import figures as picture_figures

_PRESENT = 0.5
"""Presence from which a picture counts as being in the style."""
_USUAL = 0.8
"""The strength that most people use; the style has to be present at it."""
LEAST_KEPT = 0.7
"""Share of the bare base's alignment below which an adapter counts as broken."""


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
            for number in range(min(seen.seeds, SHOWN))
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
            *((label, or_not(mean)) for label, mean in others),
            *like.facts,
            ("captions", len(like.own)),
            ("held-out pictures", len(like.held_out)),
        ],
        findings=like.findings,
    )


def _rows(seen: Evidence) -> range:
    return range(min(len(seen.own_held_out.pictures), SHOWN))


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
    facts: list[tuple[str, float | int | str]] = [
        ("steadiness of the style from 0 to 1", or_not(style)),
        ("steadiness of the change from 0 to 1", steady),
        ("breaks at", "nowhere" if breaks is None else breaks),
        ("least share of alignment kept, else broken", LEAST_KEPT),
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
        if one.alignment is not None and one.alignment < LEAST_KEPT:
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
    facts: list[tuple[str, float | int | str]] = [
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


def _negative(
    seen: Evidence,
) -> tuple[list[tuple[str, float | int | str]], list[str]]:
    """The effect of a negative prompt: pictures must become less similar to its text."""
    if seen.other is None:
        return [("negative prompt", "none in the recipe: judge.negative_prompt")], []
    pair = (seen.full, seen.other) if seen.usual_is_negative else (seen.other, seen.full)
    given, free = (one.points @ seen.negative_point for one in pair)
    facts: list[tuple[str, float | int | str]] = [
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
