"""Reports of runs, read from their folders."""

from __future__ import annotations

from typing import cast

from llm_lora.report.document import Report
from llm_lora.run import Run
from llm_lora.task import TASKS, load


def read_report(run: Run) -> Report:
    """The report of a run: a `TextReport` or an `ImageReport`, by the run's task.

    Raises:
        UserError: the run has none yet, or it is damaged or of another version.
    """
    kind = cast(type[Report], load(TASKS[run.task].report))
    return kind.of(run)
