"""What several dimensions measure with: the probe for a style, and what each strength does."""

from __future__ import annotations

from dataclasses import dataclass

from llm_lora.engines.image.measure.compared import Compared
from llm_lora.engines.image.measure.evidence import Evidence, Painted
from llm_lora.scores.image import Floats, Probe
from llm_lora.scores.image import figures as picture_figures

_TELLS = 0.75
"""Least accuracy on held-out pictures, of which a half is chance, for the probe to be believed."""
_FEW = 8
"""Held-out pictures below which the probe is tried on parts of what it learns from: with two on
each side it would be right about three of four by chance in every third case.
"""


@dataclass(frozen=True)
class Response:
    """What one strength does: `change` in steps of 0 to 255; None where nothing can be told."""

    strength: float
    change: float
    style: float | None
    alignment: float | None


@dataclass(frozen=True)
class Yardsticks:
    """What dimensions measure with: the probe for the style, how well it tells, and likeness."""

    probe: Probe | None
    """None where it does not tell the dataset's pictures from the bare base's."""
    accuracy: float
    tried: str
    """What the accuracy is of."""
    responses: tuple[Response, ...]
    compared: Compared


def yardsticks(seen: Evidence, compared: Compared) -> Yardsticks:
    """Learn the probe from training pictures and the bare base's; then look at every strength."""
    probe = picture_figures.probe(seen.bare_train.points, seen.train.points)
    accuracy, tried = 0.5, "held-out pictures"
    if len(seen.held_out.points) < _FEW:
        tried = "training pictures left out in turn"
        accuracy = picture_figures.cross_accuracy(seen.bare_train.points, seen.train.points)
    elif probe is not None:
        accuracy = probe.accuracy(seen.bare_held_out.points, seen.held_out.points)
    if accuracy < _TELLS:
        probe = None
    follows = _margins(seen, seen.bare)
    responses = [
        Response(
            strength,
            picture_figures.change(painted.pictures, seen.bare.pictures),
            None if probe is None else float(probe.presence(painted.points).mean()),
            kept_of(_margins(seen, painted), follows),
        )
        for strength, painted in seen.asked.items()
    ]
    return Yardsticks(probe, accuracy, tried, tuple(responses), compared)


def _margins(seen: Evidence, painted: Painted) -> Floats | None:
    if len(seen.texts) < 2:
        return None
    return picture_figures.margins(painted.points, seen.texts, seen.prompt_texts)


def kept_of(own: Floats | None, bare: Floats | None) -> float | None:
    """How much of the bare base's alignment is left, 0 to 1."""
    if own is None or bare is None or not picture_figures.above_zero(bare):
        return None
    return min(max(float(own.mean() / bare.mean()), 0.0), 1.0)
