"""Measurement of an image adapter in six dimensions, on prompts that training never showed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_lora.base import PictureBase
from llm_lora.data.image import PictureDataset
from llm_lora.engines.image.measure import dimensions as picture_dimensions
from llm_lora.engines.image.measure import evidence as picture_evidence
from llm_lora.engines.image.measure.dimensions import Dimension, Fact, Measured
from llm_lora.engines.image.measure.evidence import Compared, Response
from llm_lora.engines.image.painting import Painter
from llm_lora.engines.image.sheets import sheet, write_picture
from llm_lora.engines.shared import out_of_memory
from llm_lora.engines.vision import Clip
from llm_lora.progress import Fit, Listener, silent
from llm_lora.recipe.image import ImageRecipe
from llm_lora.vision import judges as judging

T = TypeVar("T")

_DIGITS = 4
_SMALLER = "lower generate.batch_size, or name a smaller judge.embedder"


@dataclass(frozen=True)
class Figure:
    """What was measured in one dimension.

    Attributes:
        name: of the dimension.
        value: rounded; None if it could not be measured, and then `reason` says why.
        method, source: how it was measured, and the papers behind that.
        picture: the sheet that shows it, as a path from the run's folder; `shows` explains it.
        facts: further figures, by label.
        findings: sentences.
    """

    name: str
    value: float | None
    reason: str
    method: str
    source: str
    picture: str
    shows: str
    facts: tuple[Fact, ...]
    findings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Its form in the report."""
        # The reason for a missing figure has its own place there.
        repeated = self.reason if self.value is None else None
        return {
            "name": self.name,
            "value": self.value,
            "method": self.method,
            "source": self.source,
            "picture": self.picture,
            "shows": self.shows,
            "facts": [list(fact) for fact in self.facts],
            "findings": [text for text in self.findings if text != repeated],
        }


@dataclass(frozen=True)
class Judgement:
    """All measurements of an adapter."""

    figures: tuple[Figure, ...]
    strengths: tuple[Response, ...]
    embedder: str
    prompts: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The form that the report and the gates read, as `judge` describes it."""
        return {
            "scores": {one.name: one.value for one in self.figures},
            "reasons": {one.name: one.reason for one in self.figures if one.value is None},
            "dimensions": [one.document() for one in self.figures],
            "strengths": [
                {name: _rounded(value) for name, value in asdict(one).items()}
                for one in self.strengths
            ],
            "embedder": {"name": self.embedder},
            "prompts": list(self.prompts),
        }


@dataclass(frozen=True)
class _Method:
    """How a dimension is measured, as text for the report."""

    measure: Dimension
    method: str
    source: str


_METHODS = {
    "consistency": _Method(
        picture_dimensions.consistency,
        "The adapter's change to a picture is its embedding minus that of the bare base's picture "
        "with the same prompt and seed, which removes what both show. The value is the mean cosine "
        "of these changes over all pairs of seeds of a prompt: 1 if every seed is changed in the "
        "same way, 0 if the changes have nothing in common.",
        "Gal et al., StyleGAN-NADA (directions in CLIP's space), arXiv 2108.00946; Hertz et al., "
        "Style Aligned Image Generation (set consistency), arXiv 2312.02133",
    ),
    "fidelity": _Method(
        picture_dimensions.fidelity,
        "Mean likeness of the adapter's pictures of held-out captions to the held-out pictures of "
        "the other captions, on a scale between two yardsticks: 0 is the bare base's likeness with "
        "the same captions, 1 is the likeness of the held-out pictures to one another.",
        "",
    ),
    "generalisation": _Method(
        picture_dimensions.generalisation,
        "A linear classifier is trained on the training pictures and the bare base's pictures of "
        "their captions, and tested on held-out ones, or by cross-validation if fewer than 8 are "
        "held out. The value is the mean position of the adapter's pictures of unseen prompts on "
        "the classifier's axis: 0 is the mean of the base's pictures, 1 that of the style.",
        "Alain and Bengio, Understanding intermediate layers using linear classifier probes, arXiv "
        "1610.01644; Ledoit and Wolf, J. Multivariate Analysis 88 (2004), for the covariance",
    ),
    "learning": _Method(
        picture_dimensions.learning,
        "The smallest of three shares: how much of the fall in held-out loss is left at the end "
        "(over-fitting), how much of it came before the last third (under-fitting), and how many "
        "pictures of training or held-out captions are no copies. A copy lies closer to a training "
        "picture, in the embedding and by pixels, than any held-out picture does; a copy from a "
        "training caption also lies closer than any picture of a held-out caption lies to a "
        "held-out picture, since a caption alone can bring it that close.",
        "Meehan, Chaudhuri and Dasgupta, A Non-Parametric Test to Detect Data-Copying in "
        "Generative Models, arXiv 2004.05675; kohya-ss/sd-scripts (validation loss)",
    ),
    "strength": _Method(
        picture_dimensions.strength,
        "The same prompts and seeds at every strength. Steadiness is the net rise from strength 0 "
        "to 1 as a share of all rises and falls; the value is the lower of the steadiness of the "
        "style's presence and of the pictures' change: 1 if no step falls.",
        "Gandikota et al., Concept Sliders: LoRA Adaptors for Precise Control in Diffusion Models, "
        "arXiv 2311.12092",
    ),
    "alignment": _Method(
        picture_dimensions.alignment,
        "The margin by which a picture matches its own prompt over the others, relative to the "
        "bare base's margin: 1 if nothing of the prompt is lost. The trigger is left out, because "
        "it names the style.",
        "Hessel et al., CLIPScore, arXiv 2104.08718; Xu et al., AttnGAN (R-precision), arXiv "
        "1711.10485",
    ),
}


def judge(
    recipe: ImageRecipe,
    dataset: PictureDataset,
    base: PictureBase,
    *,
    adapter: Path,
    pictures: Path,
    fit: Fit,
    listener: Listener = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure an adapter in six dimensions; equal calls give equal figures.

    Args:
        recipe: prompts, seeds, strengths, the models that compare, and generation settings.
        dataset: held-out pictures to compare with, training pictures to detect copies.
        base: the frozen pipeline.
        adapter: the adapter's folder.
        pictures: the folder for the generated pictures, one sheet for each dimension.
        fit: the result of training.
        listener: receives progress.
        tell: receives every decision, as a sentence.

    Returns:
        `scores`: dimension → figure, None where it could not be measured, and then `reasons`:
        dimension → why; `dimensions`: the basis of each figure (`name`, `value`, `method`,
        `source`, `picture` as a path from the run's folder, `shows`, `facts` as pairs, `findings`);
        `strengths`: for each, `change` (root mean square, 0 to 255), `style` (presence, 0 to 1) and
        `alignment` (share kept, 0 to 1), None where not measured; `embedder`; `prompts`.

    Raises:
        UserError: the adapter does not fit, a comparing model is missing, or memory ran out.
    """
    judges = judging.find(recipe.judge)
    with out_of_memory(_SMALLER):
        painter = Painter(base, [(adapter, 1.0)], recipe.train.precision)
        seen = picture_evidence.gather(
            recipe, dataset, painter, Clip(judges.embedder), listener=listener, tell=tell
        )
    del painter
    with out_of_memory("name a smaller model in judge.likeness"):
        compared = picture_evidence.compare(seen, judges, listener)
    sticks = picture_evidence.yardsticks(seen, compared)
    found = {name: one.measure(seen, sticks, fit) for name, one in _METHODS.items()}
    return Judgement(
        figures=tuple(_figure(name, one, compared, pictures) for name, one in found.items()),
        strengths=sticks.responses,
        embedder=judges.embedder.name,
        prompts=seen.prompts,
    ).document()


def _figure(name: str, measured: Measured, compared: Compared, pictures: Path) -> Figure:
    """A dimension's figure, with its sheet written; the model that compared pictures adds its own
    method and source."""
    one = _METHODS[name]
    by_likeness = name == "fidelity"
    return Figure(
        name=name,
        value=_rounded(measured.value),
        reason=measured.reason,
        method=f"{one.method} {compared.method}" if by_likeness else one.method,
        source=compared.source if by_likeness else one.source,
        picture=_sheet(measured, pictures, name),
        shows=measured.shows,
        facts=tuple((label, _rounded(value)) for label, value in measured.facts),
        findings=tuple(measured.findings),
    )


def _sheet(measured: Measured, pictures: Path, name: str) -> str:
    path = pictures / f"{name}.png"
    write_picture(path, sheet([*measured.columns.values()], [*measured.columns]))
    return f"{pictures.name}/{path.name}"


def _rounded(value: T) -> T | float:
    return round(value, _DIGITS) if isinstance(value, float) else value
