"""Export of an adapter to WebUIs: one file in kohya's layout, with preview and notes."""

from __future__ import annotations

from pathlib import Path

from llm_lora import files
from llm_lora import run as runs
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.webui import files as lora_files
from llm_lora.export.webui import metadata as webui_metadata
from llm_lora.export.webui.metadata import Trained
from llm_lora.progress import Fit
from llm_lora.run import Run
from llm_lora.tasks.image import task as image_task
from llm_lora.weights import arrays


def write(here: Run, out: Path, step: int | None = None) -> Path:
    """Write the adapter of an image run into a WebUI's folder `models/Lora`.

    Beside it go its trigger (NAME.json) and its last sample picture as a preview (NAME.png).

    Args:
        here: the run.
        out: the folder; created if it does not exist.
        step: use the adapter as saved after this many steps; its name then includes the step.

    Returns:
        the adapter's file.

    Raises:
        UserError: the adapter is damaged or not of this base, that step was not kept, or a file of
            its name exists.
    """
    prepared = image_task.reopen(here, unchanged=False)  # captions and sizes are enough
    family = prepared.base.family
    adapter = here.adapter_after(step)
    adapters.require_base(adapters.read(adapter), prepared.base)
    lora = lora_files.read(adapter, family)
    found = lora_files.to_arrays(lora, family, str(adapter))
    trained = _trained(here, prepared, step)
    file = out / f"{trained.name}.safetensors"
    beside = file.with_suffix(".json"), file.with_suffix(".png")
    for path in (file, *beside):
        files.require_new(path)
    arrays.write(file, found, webui_metadata.describe(lora, found, trained))
    files.write_json(beside[0], webui_metadata.user_notes(trained))
    sample = _sample(here, trained.steps)
    if sample is not None:
        files.write_bytes(beside[1], files.read_bytes(sample))
    return file


def _sample(here: Run, step: int) -> Path | None:
    """The last sample picture generated up to a step."""
    painted = runs.steps_in(here.samples)
    samples = [painted[one] / "00.png" for one in sorted(painted) if one <= step]
    return next((path for path in reversed(samples) if path.is_file()), None)


def _trained(here: Run, prepared: image_task.Prepared, step: int | None) -> Trained:
    base, dataset = prepared.base, prepared.dataset
    fit = Fit.from_json(here.read(here.fit), here.fit)
    name, steps = prepared.recipe.name, fit.best_step if step is None else step
    return Trained(
        name=name if step is None else f"{name}-step{step:08}",
        recipe=prepared.recipe,
        base=base.name,
        family=base.family,
        prediction=base.prediction,
        resolution=prepared.resolution,
        captions=[picture.caption for picture in dataset.train],
        regularisation=len(dataset.regularisation),
        buckets={(one["width"], one["height"]): one["pictures"] for one in dataset.stats.buckets},
        steps=steps,
        epochs=round(fit.curve[-1]["epoch"] * steps / fit.steps, 3),
        started=here.started,
        seconds=fit.seconds,
    )
