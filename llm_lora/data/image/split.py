"""Train/held-out split of pictures: train, held_out or regularisation.

- Pictures of a held-out folder are held out; from the training folder a share is held out by a hash
  of the picture's bytes, independent of its name and of other pictures.
- Near-duplicates are never separated: a cluster moves as one, by the smallest of its hashes.
  Training pictures that resemble one of a held-out folder are set aside.
- If the share selects nothing from a small folder, the nearest cluster is held out; if it selects
  everything, one cluster is left for training.
- Because of the last two rules, a picture can change sides when others are added or removed.
  Pictures already learned by the adapter that training starts from are therefore never held out.
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
    """Pictures by side, sorted by name; those set aside; and clusters of near-duplicates."""

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
    """Assign every picture to a side.

    Args:
        held_out: pictures of a held-out folder; they always stay held out.
        cut: pictures of the training folder, of which the share (0 to 1) is held out.
        regularisation: pictures for prior preservation, outside both sides.
        near_duplicate: likeness from which two pictures must be on the same side.
        learned: digests of the pictures learned by the adapter that training starts from.
    """
    aside = [
        _aside(one, "held out, but learned by the adapter that training starts from")
        for one in held_out
        if one.head.sha256 in learned
    ]
    held_out = [one for one in held_out if one.head.sha256 not in learned]
    every = [*held_out, *cut]
    labels = likeness.clusters([one.looks.fields for one in every], near_duplicate)
    # A cluster's label is its first picture; those of a held-out folder come before all others.
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
    # At least one cluster is left to learn from: a bound one, or else that of the largest hash.
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
    """A uniform number from 0 to 1, derived from a picture's bytes."""
    return chance.unit(f"held_out: {one.head.sha256}")
