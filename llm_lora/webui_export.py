"""A run's adapter for WebUIs: one file in kohya's layout, with what they show beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from llm_lora import adapter as adapters
from llm_lora import arrays, files, folders, image_task, lora_files, webui_metadata
from llm_lora.engines.events import Fit
from llm_lora.run import STAMP, Run
from llm_lora.webui_metadata import Trained


def write(here: Run, out: Path) -> Path:
    """Write the adapter of a run of pictures into a WebUI's folder `models/Lora`.

    Beside it go its trigger (NAME.json) and its last sample picture as a preview (NAME.png).

    Returns:
        the adapter's file.

    Raises:
        UserError: the adapter is damaged or not of this base, or something of its name is there.
    """
    prepared = image_task.reopen(here)
    family = prepared.base.family
    adapters.require_base(adapters.read(here.adapter), prepared.base)
    lora = lora_files.read(here.adapter, family)
    found = lora_files.to_arrays(lora, family, str(here.adapter))
    trained = _trained(here, prepared)
    file = out / f"{prepared.recipe.name}.safetensors"
    beside = file.with_suffix(".json"), file.with_suffix(".png")
    for path in (file, *beside):
        folders.require_new(path)
    arrays.write(file, found, webui_metadata.describe(lora, found, trained))
    files.write_json(beside[0], webui_metadata.user_notes(trained))
    painted = sorted(here.samples.glob("step-*/00.png"), key=_step)
    if painted:
        files.write_bytes(beside[1], files.read_bytes(painted[-1]))
    return file


def _step(sample: Path) -> int:
    return int(sample.parent.name.removeprefix("step-"))


def _trained(here: Run, prepared: image_task.Prepared) -> Trained:
    base, dataset = prepared.base, prepared.dataset
    fit = Fit.from_json(here.read(here.fit), here.fit)
    stamp = here.folder.name[: len("2026-01-01T00-00-00")]
    return Trained(
        name=prepared.recipe.name,
        recipe=prepared.recipe,
        base=base.name,
        family=base.family,
        prediction=base.prediction,
        resolution=prepared.resolution,
        captions=[picture.caption for picture in dataset.train],
        regularisation=len(dataset.regularisation),
        buckets={
            (one["width"], one["height"]): one["pictures"] for one in dataset.stats["buckets"]
        },
        steps=fit.steps,
        epochs=fit.curve[-1]["epoch"],
        started=datetime.strptime(stamp, STAMP).replace(tzinfo=UTC),
        seconds=fit.seconds,
    )
