"""Terminal output: live progress, the data check, the report and the list of runs.

The modules `text` and `image` draw whatever depends on the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from llm_lora.cli.console import console, figure
from llm_lora.progress import Interrupted
from llm_lora.progress import Progress as Moment
from llm_lora.record import INLINE, OMITTED, OtherVersion, Record
from llm_lora.report import Report, read_report
from llm_lora.task import TASKS, load

if TYPE_CHECKING:
    from llm_lora.data import Finding
    from llm_lora.example import Rejected
    from llm_lora.recipe import AnyRecipe
    from llm_lora.run import Run


class Showing(Protocol):
    """The parts of the output that depend on the task."""

    COLUMNS: Mapping[str, str]
    """Columns of the list of runs: a key of `figures`, and its heading."""

    NEXT: str
    """The command suggested after a finished run."""

    ROWS: str
    """What was set aside: records, pictures, …"""

    def sides(self, dataset: Any) -> str:
        """The number of examples on each side."""

    def set_aside(self, dataset: Any) -> Sequence[Rejected]:
        """Everything that was set aside."""

    def note(self, finding: Finding) -> str:
        """A finding as a sentence."""

    def extent(self, dataset: Any) -> Table:
        """How long or how large the examples are."""

    def scores(self, report: Any) -> Table:
        """The scores of a report."""

    def findings(self, report: Any) -> Sequence[str]:
        """What is to be known before any figure."""

    def samples(self, run: Run) -> None:
        """A few results of the adapter."""

    def versus(self, told: Any) -> None:
        """How two runs differ."""

    def results(self, run: Run) -> Mapping[str, Path]:
        """Paths of the results, by label."""

    def figures(self, report: Any) -> Mapping[str, float | None]:
        """The few figures shown in the list of runs."""


def of(task: str) -> Showing:
    """The module that draws a task."""
    return cast(Showing, load(TASKS[task].showing))


if TYPE_CHECKING:
    from llm_lora.cli.show import image as show_image
    from llm_lora.cli.show import text as show_text
    from llm_lora.tasks import Steps
    from llm_lora.tasks.image import task as image_task
    from llm_lora.tasks.text import task as text_task

    # `TASKS` names modules in text; here the type checker sees whether they are what is asked for.
    _TASKS: tuple[tuple[Steps, Showing], ...] = (
        (text_task, show_text),
        (image_task, show_image),
    )


_LISTED = 20
"""Largest number of rows that the data check lists of those set aside."""


def dataset_lines(task: str, dataset: Any) -> str:
    """The data check as a few lines of text."""
    shown = of(task)
    lines = [f"  {shown.sides(dataset)} · fingerprint {dataset.fingerprint[:12]}"]
    if rows := shown.set_aside(dataset):
        lines.append(
            f"  [yellow]{len(rows)} {shown.ROWS} set aside[/]; the first: "
            f"{escape(rows[0].where)}: {escape(rows[0].reason)}"
        )
    for finding in dataset.findings:
        place = f" ({finding.where})" if finding.where else ""
        lines.append(f"  [yellow]note[/] {escape(shown.note(finding) + place)}")
    return "\n".join(lines)


def dataset(task: str, checked: Any) -> None:
    """The data check in full."""
    shown = of(task)
    console.print(dataset_lines(task, checked))
    console.print(shown.extent(checked))
    rows = shown.set_aside(checked)
    for row in rows[:_LISTED]:
        console.print(f"  [red]set aside[/] {escape(row.where)}: {escape(row.reason)}")
    if (more := len(rows) - _LISTED) > 0:
        console.print(f"  … and {more} more; list all: --quarantine FILE")


class Live:
    """Draws the pipeline's progress; implements `tasks.Watcher`."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._title = self._doing = ""
        self._titled = True
        self._resumable = False

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def converted(self, recipe: Path, notes: Iterable[str]) -> None:
        """How a lora-scripts recipe was converted; prints nothing for any other recipe."""
        for number, note in enumerate(notes):
            if not number:
                self._console.print(
                    f"[bold]{escape(str(recipe))}[/] is a lora-scripts recipe; converted:"
                )
            self._console.print(f"  {escape(note)}")

    def profile(self, recipe: AnyRecipe, reason: str) -> None:
        """The chosen profile, and the reason."""
        chosen = (
            f"profile [bold]{recipe.profile}[/]: {escape(reason)}"
            if recipe.profile
            else "no profile"
        )
        self._console.print(
            f"[bold]{recipe.name}[/] · {chosen} · base [bold]{escape(recipe.base)}[/]"
        )
        for warning in recipe.warnings():
            self._console.print(f"  [yellow]note[/] {escape(str(warning))}")

    def stage(self, title: str) -> None:
        """Begin a stage; its title appears above its first line, or on its progress bar."""
        self._task, self._title, self._titled = None, title, False

    def say(self, text: str) -> None:
        """Print a line below the stage's title."""
        self._print(f"  {escape(text)}")

    def checked(self, task: str, dataset: Any) -> None:
        """The data check in short."""
        self._print(dataset_lines(task, dataset))

    def _print(self, text: str) -> None:
        if not self._titled:
            self._console.print(f"[bold cyan]{escape(self._title)}[/]")
            self._titled = True
        self._console.print(text)

    def progress(self, progress: Moment) -> None:
        """Move the stage's bar; each further step within the stage gets a bar of its own."""
        if self._task is None or progress.stage != self._doing:
            first = self._task is None and not self._titled
            title = self._title if first else progress.stage
            self._task = self._progress.add_task(title, total=progress.total, facts="")
            self._doing = progress.stage
        self._progress.update(
            self._task, completed=progress.done, total=progress.total, facts=_facts(progress)
        )

    def began(self, here: Run) -> None:
        """Print the folder of the run."""
        self._resumable = True
        self.say(f"run: {here.folder}")

    def interrupted(self, stopped: Interrupted | KeyboardInterrupt, command: str) -> None:
        """Print where the run stopped, and the command that continues it."""
        self._progress.stop()
        if not self._resumable:
            self._console.print("\n[yellow]Stopped[/]; nothing was written")
            return
        if isinstance(stopped, Interrupted):
            place = f" at step {stopped.step} of {stopped.total}"
            place += f"; checkpoint saved in {stopped.checkpoint}"
        else:
            place = "; finished work is kept"
        self._console.print(
            f"\n[yellow]Stopped[/]{place}\nContinue with: [bold]{escape(command)}[/]"
        )


def _facts(progress: Moment) -> str:
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.validation_loss is not None:
        parts.append(f"validation {progress.validation_loss:.3f}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.pictures_per_second:
        parts.append(f"{progress.pictures_per_second:,.1f} pictures/s")
    if progress.memory_bytes:
        parts.append(f"{progress.memory_bytes / 2**30:.1f} GiB")
    if progress.seconds_left is not None and progress.done < progress.total:
        parts.append(f"{_duration(progress.seconds_left)} left")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


_BOUNDS = {"≥": "", "≤": "at most ", "more than": "more than "}


def outcome(run: Run, report: Report) -> None:
    """Print the report, samples, the paths of all results, and the next command."""
    shown = of(run.task)
    for finding in shown.findings(report):
        console.print(f"[bold red]{escape(finding)}[/]")
    console.print(shown.scores(report))
    for gate in report.gates:
        mark = "[green]passed[/]" if gate.passed else "[red]failed[/]"
        console.print(
            f"  gate {mark}  {escape(gate.name)}: {figure(gate.value)} "
            f"(required: {_BOUNDS[gate.bound]}{figure(gate.threshold)})"
            + (f"; {escape(gate.reason)}" if gate.reason else "")
        )
    shown.samples(run)
    places = {"adapter": run.adapter, "report": run.page, **shown.results(run)}
    console.print(
        f"\n[bold]{escape(str(run.folder))}[/]\n"
        + "".join(f"  {what:<12} {escape(str(path))}\n" for what, path in places.items())
        + f"  {'took':<12} {_duration(report.seconds)}, "
        f"peak memory {report.peak_memory_bytes / 2**30:.1f} GiB"
    )
    console.print(f"Next: [bold]{escape(shown.NEXT.format(run=_short(run), page=run.page))}[/]")


def _short(run: Run) -> str:
    latest = run.folder.parent / "latest"
    chosen = latest if latest.exists() and latest.resolve() == run.folder else run.folder
    try:
        return str(chosen.relative_to(Path.cwd()))
    except ValueError:
        return str(chosen)


@dataclass(frozen=True)
class Summary(Record):
    """One run in the list; `passed` and `base` are known once it has a report."""

    run: str
    name: str
    task: str
    state: str
    figures: Annotated[Mapping[str, float | None], INLINE]
    passed: Annotated[bool | None, OMITTED] = None
    base: Annotated[str, OMITTED] = ""

    ORDER = ("run", "name", "task", "state", "passed", "base", "figures")


def summary(run: Run) -> Summary:
    """A short summary of one run, without figures where another version wrote its report."""
    state = "finished" if run.finished else "unfinished"
    try:
        report = read_report(run) if run.report.is_file() else None
    except OtherVersion:
        report, state = None, "report of another version"
    return Summary(
        run=str(run.folder),
        name=run.name,
        task=run.task,
        state=state,
        figures=of(run.task).figures(report) if report else {},
        passed=report.passed if report else None,
        base=report.base_identity.name if report else "",
    )


def run_table(rows: Sequence[Summary], root: Path) -> None:
    """The list of runs."""
    if not rows:
        console.print(f"no runs in {root} yet; start one: llm-lora train recipes/medical_qa.yaml")
        return
    by_task: dict[str, list[Summary]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    for task, found in by_task.items():
        console.print(_run_table(found, of(task).COLUMNS))


def _run_table(rows: Sequence[Summary], columns: Mapping[str, str]) -> Table:
    here = Path.cwd()
    table = Table(
        Column("run", overflow="fold"), "state", "base", *columns.values(), "gates", box=None
    )
    for row in rows:
        gates = {True: "[green]passed[/]", False: "[red]failed[/]", None: ""}[row.passed]
        folder = Path(row.run)
        table.add_row(
            str(folder.relative_to(here) if folder.is_relative_to(here) else folder),
            row.state,
            row.base,
            *(figure(row.figures.get(key, "")) for key in columns),
            gates,
        )
    return table
