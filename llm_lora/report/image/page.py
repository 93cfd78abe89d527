"""`report.html` of an image run: one self-contained page with embedded pictures.

Bytes per picture and the number of pictures of each kind are limited, so that every page stays
below 10 MB and can be sent by mail.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_lora import run as runs
from llm_lora.data.image import Picture, PictureDataset
from llm_lora.progress import Fit
from llm_lora.recipe.image import ImageRecipe
from llm_lora.report import charts, pages
from llm_lora.report.charts import Series
from llm_lora.report.image.document import ImageReport
from llm_lora.report.image.embed import Embedded, embed
from llm_lora.scores import Gate
from llm_lora.scores.image import DIMENSIONS, SCHEMA_VALID, Dimension, Fact, Response

ASKED = {
    "consistency": "Does the style stay the same whatever the seed?",
    "fidelity": "Do its pictures resemble those that training never saw?",
    "generalisation": "Does the style hold where training never showed the subject?",
    "learning": "Did it learn, and learn the style rather than the pictures?",
    "strength": "Does the effect follow the strength at which it is applied?",
    "alignment": "Do its pictures still show what the prompt says?",
}
"""The question behind each dimension."""

_WIDE, _NARROW = 998, 560
"""Width in CSS pixels of a card, and of its larger half."""

_JUDGED = {"side": 1600, "most_bytes": 600_000}
_SAMPLE = {"side": 256, "most_bytes": 40_000}
_LEARNED = {"side": 192, "most_bytes": 25_000}
"""How pictures of a kind are embedded: those of the dimensions, samples, training pictures."""

STEPS, PROMPTS, LEARNED, SET_ASIDE = 6, 8, 12, 20
"""Display limits: steps of samples, prompts, training pictures, rejected pictures."""


def render(
    folder: Path,
    report: ImageReport,
    *,
    recipe: ImageRecipe,
    dataset: PictureDataset,
    fit: Fit,
    samples: Path,
) -> str:
    """The page for a report.

    Args:
        folder: of the run, which holds the pictures of the dimensions.
        report: the report.
        recipe: the recipe of the run.
        dataset: the training pictures, and those set aside.
        fit: the result of training.
        samples: the folder of sample pictures from training.
    """
    from markupsafe import Markup

    prompts = report.prompts
    made = pages.environment(clock=pages.clock, figure=figure, megabytes=megabytes, called=called)
    return made.get_template("picture.html.jinja").render(
        report=report,
        dimensions=[_card(folder, report, name) for name in DIMENSIONS],
        gates=[_gate(gate) for gate in report.gates],
        prompts=prompts[:PROMPTS],
        more_prompts=len(prompts) - PROMPTS,
        response=[(names, Markup(chart)) for names, chart in _response(report.strengths)],
        loss=Markup(_loss(fit)),
        fit=fit,
        watched=any(row.get("validation_loss") is not None for row in fit.curve),
        min_snr=recipe.train.min_snr,
        samples=_samples(samples, recipe),
        data=dataset.stats,
        set_aside=[(_short(row.where), row.reason) for row in dataset.quarantine[:SET_ASIDE]],
        rejected=dataset.summary()["rejected_by_reason"],
        findings=[
            (finding.count, finding.message, _short(finding.where) if finding.where else "")
            for finding in dataset.findings
        ],
        learned=list(_learned(dataset.train)),
        commands=list(_commands(folder, recipe)),
    )


def figure(value: Fact) -> str:
    """A figure as text: three decimals, or "not measured".

    >>> figure(0.87449), figure(3), figure(None), figure("a"), figure(31.7352)
    ('0.874', '3', 'not measured', 'a', '31.735')
    """
    if value is None:
        return "not measured"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def megabytes(count: int) -> str:
    """A file size as text: `1.2 MB`."""
    return f"{count / 1e6:.1f} MB"


@dataclass(frozen=True)
class GateRow:
    """A gate's row: its dimension, the source of its bound, the value reached and wanted."""

    name: str
    of: str
    reached: str
    wanted: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Card:
    """The card of a dimension; `basis` is None if nothing was measured.

    `share` is the figure if it is one, `picture` is magnified `times` times.
    """

    name: str
    asked: str
    value: float | None
    share: float | None
    reason: str | None
    gates: list[GateRow]
    basis: Dimension | None
    picture: Embedded | None
    wide: bool
    times: int

    @property
    def failed(self) -> bool:
        """Whether a gate of this dimension failed."""
        return any(not gate.passed for gate in self.gates)

    @property
    def told(self) -> bool:
        """Whether there is anything to show."""
        return self.value is not None or self.basis is not None


def _card(folder: Path, report: ImageReport, name: str) -> Card:
    basis = next((one for one in report.dimensions if one.name == name), None)
    gates = [gate for gate in map(_gate, report.gates) if gate.name == name]
    value = report.scores.get(name)
    picture = _judged(folder, basis.picture if basis else None)
    # A picture that is neither enlarged nor tall in half of the card gets its full width.
    wide = picture is not None and picture.times(_NARROW) == 1 and picture.width > picture.height
    return Card(
        name=name,
        asked=ASKED[name],
        value=value,
        share=value if isinstance(value, float) and 0 <= value <= 1 else None,
        reason=report.reasons.get(name),
        gates=sorted(gates, key=lambda gate: gate.passed),
        basis=basis,
        picture=picture,
        wide=wide,
        times=picture.times(_WIDE if wide else _NARROW) if picture else 1,
    )


def _gate(gate: Gate) -> GateRow:
    name, _, of = gate.name.partition(".")
    if gate.name == SCHEMA_VALID:
        name, of = "all measurements", "data.schema"
        reached, wanted = "they fit" if gate.passed else "they do not fit", "fit the schema"
    else:
        of = "data.schema" if of else "check"
        reached, wanted = figure(gate.value), f"≥ {figure(gate.threshold)}"
    return GateRow(name, of, reached, wanted, gate.passed, gate.reason)


def _judged(folder: Path, picture: str | None) -> Embedded | None:
    """The picture of a dimension, from the run's folder."""
    if picture is None:
        return None
    path = (folder / picture).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    return embed(path, **_JUDGED)


def _response(strengths: Sequence[Response]) -> list[tuple[list[str], str]]:
    """Charts over strength: style and alignment, then change of the picture; with line names."""
    found = []
    for names, label, top in (
        (("style", "alignment"), "share", 1.0),
        (("change",), "change of the picture", 0.0),
    ):
        lines = {
            name: [(row.strength, y) for row in strengths if (y := getattr(row, name)) is not None]
            for name in names
        }
        series = [Series(name, points) for name, points in lines.items() if points]
        chart = charts.lines(series, x_label="strength", y_label=label, falling=False, top=top)
        if chart:
            found.append(([one.name for one in series], chart))
    return found


def _loss(fit: Fit) -> str:
    """The chart of losses by step, marking the step whose weights were kept."""
    series = pages.losses(fit.curve)
    return charts.lines(series, x_label="step", y_label="loss", kept=float(fit.best_step))


@dataclass(frozen=True)
class SampleRow:
    """The samples of one prompt, one picture for each step shown, None where it is missing."""

    prompt: str
    seed: int
    pictures: list[Embedded | None]


@dataclass(frozen=True)
class Samples:
    """The samples made during training: some of the steps, and the rows of some prompts."""

    steps: list[int]
    left_out: int
    prompts_left_out: int
    rows: list[SampleRow]


def _samples(folder: Path, recipe: ImageRecipe) -> Samples | None:
    folders = runs.steps_in(folder)
    steps = sorted(folders)
    prompts = recipe.train.samples[:PROMPTS]
    if not steps or not prompts:
        return None
    shown = _spread(steps, STEPS)
    return Samples(
        steps=shown,
        left_out=len(steps) - len(shown),
        prompts_left_out=len(recipe.train.samples) - len(prompts),
        rows=[
            SampleRow(
                prompt,
                recipe.generate.seed + number,
                [embed(folders[step] / f"{number:02}.png", **_SAMPLE) for step in shown],
            )
            for number, prompt in enumerate(prompts)
        ],
    )


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, including the first and the last.

    >>> _spread([0, 10, 20, 30, 40], 3)
    [0, 20, 40]
    """
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _learned(pictures: Sequence[Picture]) -> Iterator[tuple[str, Embedded]]:
    """Some training pictures, evenly spread over all, with their captions."""
    for number in _spread(range(len(pictures)), LEARNED):
        found = embed(pictures[number].path, **_LEARNED)
        if found is not None:
            yield pictures[number].caption, found


def called(name: str) -> str:
    """A model's display name: a path is shortened, because pages are shared.

    >>> called("/home/ann/models/sd15"), called("stabilityai/stable-diffusion-xl-base-1.0")
    ('models/sd15', 'stabilityai/stable-diffusion-xl-base-1.0')
    """
    return _short(name) if Path(name).is_absolute() else name


def _short(where: str) -> str:
    """A path shortened to its last parts, because pages are shared.

    >>> _short("/home/ann/pictures/train/a.png"), _short("train/metadata.csv:3")
    ('train/a.png', 'train/metadata.csv:3')
    """
    return "/".join(Path(where).parts[-2:])


def _commands(folder: Path, recipe: ImageRecipe) -> Iterator[tuple[str, str]]:
    """Next steps: purpose and command."""
    run = shlex.quote("/".join(folder.resolve().parts[-3:]))
    prompts = (*recipe.judge.prompts, *recipe.train.samples, recipe.data.trigger, "a prompt")
    prompt = shlex.quote(next(filter(None, prompts)))
    yield "Paint with it", f"llm-lora generate {run} {prompt} --seed {recipe.generate.seed}"
    yield (
        "Compare strengths",
        f"llm-lora generate {run} {prompt} --grid strength=0..1:0.2",
    )
    yield "Use it in a WebUI", f"llm-lora export {run} --webui models/Lora/"
    yield "Publish it", f"llm-lora publish {run} --promote"
