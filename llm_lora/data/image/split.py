"""Which side each picture is on: train, held_out or regularisation.

- Pictures of a held-out folder are held out; from the training folder a share is cut by a hash of
  the picture's bytes, whatever the others are and whatever it is called.
- Near-duplicates never straddle: a cluster of them moves as one, by the smallest of its hashes.
  Training pictures that are like one of a held-out folder are set aside.
- Where the share catches none of a small folder, the nearest cluster is held out; where it catches
  all, one is left to learn from.
- The latter two let a picture change its side when others come or go. What an adapter has learned
  that training starts from is therefore never held out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_lora import chance
from llm_lora.data.image import duplicates as likeness
from llm_lora.data.image.folder import Found
from llm_lora.example import Rejected

Side = Literal["train", "held_out", "regularisation"]
SIDES: tuple[Side, ...] = ("train", "held_out", "regularisation")


@dataclass(frozen=True)
class PictureSplit:
    """Pictures by side in the order of names, those set aside, and clusters of near-duplicates."""

    sides: Mapping[Side, list[Found]]
    aside: list[Rejected]
    alike: list[list[Found]]


def split(
    held_out: Sequence[Found],
    cut: Sequence[Found],
    regularisation: Sequence[Found],
    *,
    share: float,
    near_duplicate: float,
    learned: Collection[str] = (),
) -> PictureSplit:
    """Give every picture its side.

    Args:
        held_out: pictures of a held-out folder; they stay whatever they are like.
        cut: pictures of the training folder, from which the share (0 to 1) is cut.
        regularisation: pictures that are neither learned nor judged.
        near_duplicate: likeness from which two pictures must share a side.
        learned: digests of what the adapter has seen that training starts from.
    """
    aside = [
        _aside(one, "held out, but learned by the adapter that training starts from")
        for one in held_out
        if one.head.sha256 in learned
    ]
    held_out = [one for one in held_out if one.head.sha256 not in learned]
    every = [*held_out, *cut]
    labels = likeness.clusters([one.looks.fields for one in every], near_duplicate)
    # A cluster is called by its first picture, and those of a held-out folder come first of all.
    units: dict[int, float] = {}
    for index, label in enumerate(labels):
        units[label] = min(units.get(label, 1.0), _unit(every[index]))
    bound = {label for one, label in zip(every, labels, strict=True) if one.head.sha256 in learned}
    free = {
        label: unit
        for label, unit in units.items()
        if label >= len(held_out) and label not in bound
    }
    ordered = sorted(free, key=lambda label: free[label])
    open_to_judge = ordered if bound else ordered[:-1]
    judged = {label for label in open_to_judge if free[label] < share}
    if share and not judged:
        judged = set(open_to_judge[:1])
    sides: dict[Side, list[Found]] = {side: [] for side in SIDES}
    clusters: dict[int, list[Found]] = {}
    for index, (one, label) in enumerate(zip(every, labels, strict=True)):
        if index >= len(held_out) > label:
            aside.append(_aside(one, f"like a held-out picture: {every[label].path}"))
            continue
        sides["held_out" if index < len(held_out) or label in judged else "train"].append(one)
        clusters.setdefault(label, []).append(one)
    known = {one.head.sha256 for one in every}
    for one in regularisation:
        if one.head.sha256 in known:
            aside.append(_aside(one, "a regularisation picture that is also learned or judged"))
        else:
            sides["regularisation"].append(one)
    for pictures in sides.values():
        pictures.sort(key=lambda one: one.name)
    return PictureSplit(sides, aside, [some for some in clusters.values() if len(some) > 1])


def _aside(one: Found, reason: str) -> Rejected:
    return Rejected(str(one.path), reason, one.caption.text)


def _unit(one: Found) -> float:
    """A number from 0 to 1, evenly spread, for a picture's bytes."""
    return chance.unit(f"held_out: {one.head.sha256}")
