"""Yardsticks shared by several dimensions: the style probe and the response to strength."""

from __future__ import annotations

from dataclasses import dataclass

from llm_lora.engines.image.measure.compared import Compared
from llm_lora.engines.image.measure.evidence import Evidence, Painted
from llm_lora.scores.image import Floats, Probe
from llm_lora.scores.image import figures as picture_figures

_TELLS = 0.75
"""Lowest accuracy on held-out pictures at which the probe is trusted (chance is a half)."""
_FEW = 8
"""Number of held-out pictures below which the probe is cross-validated instead: with two on each
side it would get three of four right by chance in every third case.
"""


@dataclass(frozen=True)
class Response:
    """The effect of one strength: `change` on the scale 0 to 255; None if not measurable."""

    strength: float
    change: float
    style: float | None
    alignment: float | None


@dataclass(frozen=True)
class Yardsticks:
    """Shared yardsticks: the style probe, its accuracy, and likeness."""

    probe: Probe | None
    """None if it cannot separate the dataset's pictures from the bare base's."""
    accuracy: float
    tried: str
    """The pictures that the accuracy was measured on."""
    responses: tuple[Response, ...]
    compared: Compared


def yardsticks(seen: Evidence, compared: Compared) -> Yardsticks:
    """Train the probe on training pictures and the bare base's; then measure every strength."""
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
    """The share of the bare base's alignment that is left, 0 to 1."""
    if own is None or bare is None or not picture_figures.above_zero(bare):
        return None
    return min(max(float(own.mean() / bare.mean()), 0.0), 1.0)
