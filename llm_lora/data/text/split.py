"""Which side each example is on: train, validation or held_out.

- Rows of a file named as held-out are held out; from train files, shares are cut by a hash of the
  prompt's words alone. So a record never changes its side, whatever rows are added, removed or
  reordered, and also when its answer is corrected or the system text changes.
- Near-duplicates never straddle. Each cluster of them lives on one side: held_out when one of them
  is in a held-out file, else the side of the member with the smallest hash. Members whose own side
  is another are set aside, never moved. With a tenth held out that loses some 18% of the rows that
  *have* near-duplicates (2 · 0.1 · 0.9); of each cluster at least one row is kept.
- Where the validation share catches no row of a small file, the nearest cluster is taken: the one
  exception, and only between train and validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_lora import chance, files
from llm_lora.data.text import duplicates
from llm_lora.example import Example

Side = Literal["train", "validation", "held_out"]
SIDES: tuple[Side, ...] = ("train", "validation", "held_out")


@dataclass(frozen=True)
class Aside:
    """An example that is too like one on another side."""

    example: Example
    like: Example
    side: Side


@dataclass(frozen=True)
class Split:
    """Examples by side in their order, those set aside, and rows that have near-duplicates."""

    sides: Mapping[Side, list[Example]]
    aside: list[Aside]
    clusters: list[list[Example]]


def split(
    held_out: Sequence[Example],
    cut: Sequence[Example],
    *,
    held_out_share: float,
    validation_share: float,
    near_duplicate: float,
) -> Split:
    """Give every example its side.

    Args:
        held_out: examples of held-out files; they stay whatever they are like.
        cut: examples of train files, from which the shares (0 to 1) are cut.
        near_duplicate: similarity from which two examples must share a side.
    """
    examples = [*held_out, *cut]
    texts = [prompt_text(example) for example in examples]
    own: list[Side] = ["held_out"] * len(held_out)
    own += [side_of(text, held_out_share, validation_share) for text in texts[len(held_out) :]]
    pairs = [(text, example.answer) for text, example in zip(texts, examples, strict=True)]
    anchors: dict[int, int] = {}
    labels = duplicates.clusters(pairs, near_duplicate)
    for index, label in enumerate(labels):
        # Held-out rows come first; among train rows the smallest hash leads.
        if index < len(held_out):
            anchors.setdefault(label, index)
        elif label not in anchors or anchors[label] >= len(held_out):
            rivals = (anchors.get(label, index), index)
            anchors[label] = min(rivals, key=lambda i: _unit("anchor", texts[i]))
    sides: dict[Side, list[Example]] = {side: [] for side in SIDES}
    aside = []
    for example, side, label in zip(examples, own, labels, strict=True):
        anchor = anchors[label]
        if side == own[anchor]:
            sides[side].append(example)
        else:
            aside.append(Aside(example, examples[anchor], own[anchor]))
    clusters: dict[int, list[Example]] = {}
    for example, label in zip(examples, labels, strict=True):
        clusters.setdefault(label, []).append(example)
    if not sides["validation"] and sides["train"]:
        nearest = min(sides["train"], key=lambda e: _unit("validation", prompt_text(e)))
        cluster = next(cluster for cluster in clusters.values() if nearest in cluster)
        sides["validation"] = [example for example in sides["train"] if example in cluster]
        sides["train"] = [example for example in sides["train"] if example not in cluster]
    return Split(sides, aside, [cluster for cluster in clusters.values() if len(cluster) > 1])


def prompt_text(example: Example) -> str:
    """What a person said, and was told before, without the system text."""
    return "\n".join(message.content for message in example.prompt if message.role != "system")


def side_of(text: str, held_out_share: float, validation_share: float) -> Side:
    """The side of a row of a train file by the words of its prompt alone.

    Validation is a share of what is not held out. Each share has its own hash, so changing one
    of them leaves the other cut as it was.
    """
    if _unit("held_out", text) < held_out_share:
        return "held_out"
    return "validation" if _unit("validation", text) < validation_share else "train"


def _unit(purpose: str, text: str) -> float:
    """A number from 0 to 1, evenly spread, for the words of a text (or its signs, if none)."""
    key = " ".join(duplicates.words(text)) or text
    return chance.unit(f"{purpose}: {key}")


def fingerprint(sides: Mapping[Side, Iterable[Example]]) -> str:
    """Identity of a dataset: which examples are on which side, in any order."""
    return files.sha256(
        "\n".join(sorted(f"{side} {example.id}" for side in SIDES for example in sides[side]))
    )
