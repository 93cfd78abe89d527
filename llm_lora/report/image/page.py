"""`report.html` of an image run: one self-contained page with embedded pictures.

Bytes per picture and the number of pictures of each kind are limited, so that every page stays
below 10 MB and can be sent by mail.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lora import run as runs
from llm_lora.data.image import Picture, PictureDataset
from llm_lora.progress import Fit
from llm_lora.recipe.image import ImageRecipe
from llm_lora.report import charts
from llm_lora.report.charts import Series
from llm_lora.report.image.embed import Embedded, embed
from llm_lora.report.text import page
from llm_lora.scores.image import DIMENSIONS, SCHEMA_VALID

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
    document: Mapping[str, Any],
    *,
    recipe: ImageRecipe,
    dataset: PictureDataset,
    fit: Fit,
    samples: Path,
) -> str:
    """The page for a report.

    Args:
        folder: of the run, which holds the pictures of the dimensions.
        document: `report.json`.
        recipe: the recipe of the run.
        dataset: the training pictures, and those set aside.
        fit: the result of training.
        samples: the folder of sample pictures from training.
    """
    from markupsafe import Markup

    strengths, prompts = document.get("strengths", []), document.get("prompts", [])
    made = page.environment(clock=page.clock, figure=figure, megabytes=megabytes, called=called)
    return made.get_template("picture.html.jinja").render(
        report=document,
        dimensions=[_dimension(folder, document, name) for name in DIMENSIONS],
        gates=[_gate(gate) for gate in document["gates"]],
        prompts=prompts[:PROMPTS],
        more_prompts=len(prompts) - PROMPTS,
        response=[(names, Markup(chart)) for names, chart in _response(strengths)],
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


def figure(value: Any) -> str:
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


def _dimension(folder: Path, document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The content of a card; `facts`, `findings`, `method` … are empty if nothing was measured."""
    told: Mapping[str, Any] = next(
        (one for one in document.get("dimensions", []) if one["name"] == name), {}
    )
    gates = [gate for gate in map(_gate, document["gates"]) if gate["name"] == name]
    value = document["scores"].get(name)
    picture = _judged(folder, told.get("picture"))
    # A picture that is neither enlarged nor tall in half of the card gets its full width.
    wide = picture is not None and picture.times(_NARROW) == 1 and picture.width > picture.height
    return {
        "name": name,
        "asked": ASKED[name],
        "value": value,
        "share": value if isinstance(value, float) and 0 <= value <= 1 else None,
        "told": value is not None or bool(told),
        "reason": document.get("reasons", {}).get(name),
        "gates": sorted(gates, key=lambda gate: bool(gate["passed"])),
        "failed": any(not gate["passed"] for gate in gates),
        "method": told.get("method"),
        "source": told.get("source"),
        "shows": told.get("shows"),
        "facts": told.get("facts", []),
        "findings": told.get("findings", []),
        "picture": picture,
        "wide": wide,
        "times": picture.times(_WIDE if wide else _NARROW) if picture else 1,
    }


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    """A gate's row: its dimension, the source of its bound, the value reached and wanted."""
    name, _, of = gate["name"].partition(".")
    told = {"passed": gate["passed"], "reason": gate.get("reason")}
    if gate["name"] == SCHEMA_VALID:
        reached = "they fit" if gate["passed"] else "they do not fit"
        return told | {"name": "all measurements", "of": "data.schema", "reached": reached,
                       "wanted": "fit the schema"}  # fmt: skip
    return told | {
        "name": name,
        "of": "data.schema" if of else "check",
        "reached": figure(gate["value"]),
        "wanted": f"≥ {figure(gate['threshold'])}",
    }


def _judged(folder: Path, picture: str | None) -> Embedded | None:
    """The picture of a dimension, from the run's folder."""
    if picture is None:
        return None
    path = (folder / picture).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    return embed(path, **_JUDGED)


def _response(strengths: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], str]]:
    """Charts over strength: style and alignment, then change of the picture; with line names."""
    found = []
    for names, label, top in (
        (("style", "alignment"), "share", 1.0),
        (("change",), "change of the picture", 0.0),
    ):
        lines = {
            name: [(row["strength"], row[name]) for row in strengths if row.get(name) is not None]
            for name in names
        }
        series = [Series(name, points) for name, points in lines.items() if points]
        chart = charts.lines(series, x_label="strength", y_label=label, falling=False, top=top)
        if chart:
            found.append(([one.name for one in series], chart))
    return found


def _loss(fit: Fit) -> str:
    """The chart of losses by step, marking the step whose weights were kept."""
    series = [
        Series(
            name,
            [(float(row["step"]), row[key]) for row in fit.curve if row.get(key) is not None],
        )
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
    ]
    return charts.lines(series, x_label="step", y_label="loss", kept=float(fit.best_step))


def _samples(folder: Path, recipe: ImageRecipe) -> dict[str, Any] | None:
    """The steps at which samples were generated, and the pictures of each prompt."""
    folders = runs.steps_in(folder)
    steps = sorted(folders)
    prompts = recipe.train.samples[:PROMPTS]
    if not steps or not prompts:
        return None
    shown = _spread(steps, STEPS)
    return {
        "steps": shown,
        "left_out": len(steps) - len(shown),
        "prompts_left_out": len(recipe.train.samples) - len(prompts),
        "rows": [
            {
                "prompt": prompt,
                "seed": recipe.generate.seed + number,
                "pictures": [
                    embed(folders[step] / f"{number:02}.png", **_SAMPLE) for step in shown
                ],
            }
            for number, prompt in enumerate(prompts)
        ],
    }


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
