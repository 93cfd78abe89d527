"""Reports of runs, read from their folders."""

from __future__ import annotations

import importlib
from typing import cast

from llm_lora.report.document import Report
from llm_lora.run import Run

_CLASSES = {
    "text": ("llm_lora.report.text.document", "TextReport"),
    "image": ("llm_lora.report.image.document", "ImageReport"),
}


def read_report(run: Run) -> Report:
    """The report of a run: a `TextReport` or an `ImageReport`, by the run's task.

    Raises:
        UserError: the run has none yet, or it is damaged or of another version.
    """
    module, name = _CLASSES[run.task]
    kind = cast(type[Report], getattr(importlib.import_module(module), name))
    return kind.of(run)
