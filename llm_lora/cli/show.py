"""What people see: live progress, the data check, the report and the list of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from llm_lora import gates
from llm_lora.cli.console import console
from llm_lora.engines.events import Interrupted
from llm_lora.engines.events import Progress as Moment
from llm_lora.figures import NAMES, SURE

if TYPE_CHECKING:
    from llm_lora.dataset import Dataset
    from llm_lora.recipe import Recipe
    from llm_lora.run import Run

_SAMPLES = 3
_PARTS = ("all", "seen", "unseen")


class Live:
    """Draws the pipeline's progress; implements `pipeline.Watcher`."""

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
        self._title = ""
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

    def profile(self, recipe: Recipe, reason: str) -> None:
        """Which profile was picked, and why."""
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
        """A new stage begins; its title appears with its first line or as that of its bar."""
        self._task, self._title, self._titled = None, title, False

    def say(self, text: str) -> None:
        """A line below the stage's title."""
        self._print(f"  {escape(text)}")

    def checked(self, dataset: Dataset) -> None:
        """The data check in short."""
        self._print(dataset_lines(dataset))

    def _print(self, text: str) -> None:
        if not self._titled:
            self._console.print(f"[bold cyan]{escape(self._title)}[/]")
            self._titled = True
        self._console.print(text)

    def progress(self, progress: Moment) -> None:
        """Move the stage's bar."""
        if self._task is None:
            title = progress.stage if self._titled else self._title
            self._task = self._progress.add_task(title, total=progress.total, facts="")
        self._progress.update(
            self._task, completed=progress.done, total=progress.total, facts=_facts(progress)
        )

    def began(self, here: Run) -> None:
        """Where everything will lie."""
        self._resumable = True
        self.say(f"run: {here.folder}")

    def interrupted(self, stopped: Interrupted | KeyboardInterrupt, command: str) -> None:
        """Where it stopped and how to go on."""
        self._progress.stop()
        if not self._resumable:
            self._console.print("\n[yellow]Stopped[/] before anything was written")
            return
        if isinstance(stopped, Interrupted):
            place = f" at step {stopped.step} of {stopped.total}"
            place += f"; checkpoint saved in {stopped.checkpoint}"
        else:
            place = "; what was finished is kept"
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
    if progress.memory_bytes:
        parts.append(f"{progress.memory_bytes / 2**30:.1f} GiB")
    if progress.seconds_left is not None and progress.done < progress.total:
        parts.append(f"{_duration(progress.seconds_left)} left")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def dataset_lines(dataset: Dataset) -> str:
    """The data check as a few lines of text."""
    parts = f"{len(dataset.train)} train · {len(dataset.validation)} validation"
    held_out = f"{len(dataset.held_out)} held out"
    lines = [f"  {parts} · {held_out} · fingerprint {dataset.fingerprint[:12]}"]
    if dataset.rejected:
        first = dataset.rejected[0]
        lines.append(
            f"  [yellow]{len(dataset.rejected)} records set aside[/], the first: "
            f"{escape(first.where)}: {escape(first.reason)}"
        )
    for finding in dataset.findings:
        place = f" ({finding.where})" if finding.where else ""
        lines.append(f"  [yellow]note[/] {escape(finding.message + place)}")
    return "\n".join(lines)


def dataset(checked: Dataset) -> None:
    """The data check in full."""
    console.print(dataset_lines(checked))
    table = Table("tokens", "shortest", "median", "longest", box=None, padding=(0, 2, 0, 2))
    for what, lengths in checked.stats["tokens"].items():
        ordered = sorted(lengths)
        if ordered:
            middle = ordered[len(ordered) // 2]
            table.add_row(what, str(ordered[0]), str(middle), str(ordered[-1]))
    console.print(table)
    for row in checked.rejected[:20]:
        console.print(f"  [red]set aside[/] {escape(row.where)}: {escape(row.reason)}")
    if len(checked.rejected) > 20:
        console.print(f"  … and {len(checked.rejected) - 20} more; see them all: --quarantine FILE")


def outcome(run: Run, document: Mapping[str, Any]) -> None:
    """Held-out report, samples, where everything lies, and what comes next."""
    console.print(score_table(document))
    for gate in document["gates"]:
        mark = "[green]passed[/]" if gate["passed"] else "[red]failed[/]"
        most = "at most " if gate["name"] in gates.AT_MOST else ""
        console.print(
            f"  gate {mark}  {escape(gate['name'])}: {_figure(gate['value'])} "
            f"(wanted {most}{_figure(gate['threshold'])})"
            + (f"; {escape(gate['reason'])}" if gate.get("reason") else "")
        )
    samples(run)
    console.print(
        f"\n[bold]{run.folder}[/]\n"
        f"  adapter      {run.adapter}\n"
        f"  report       {run.page}\n"
        f"  answers      {run.answers}\n"
        f"  took         {_duration(document['seconds'])}, "
        f"peak memory {document['peak_memory_bytes'] / 2**30:.1f} GiB"
    )
    console.print(f"Next: [bold]llm-lora chat {_short(run)}[/]")


def _short(run: Run) -> str:
    latest = run.folder.parent / "latest"
    chosen = latest if latest.exists() and latest.resolve() == run.folder else run.folder
    try:
        return str(chosen.relative_to(Path.cwd()))
    except ValueError:
        return str(chosen)


def score_table(document: Mapping[str, Any]) -> Table:
    """Base against adapter, free and constrained, on seen and unseen patterns."""
    table = Table(title="Held-out answers", title_justify="left", title_style="bold")
    table.add_column("model, form", no_wrap=True)
    table.add_column("part")
    for column in ("n", "parsed", "valid", "exact", "field F1"):
        table.add_column(column, justify="right", no_wrap=True)
    for model, forms in document["scores"].items():
        for form, parts in forms.items():
            for part in (name for name in _PARTS if name in parts):
                block = parts[part]
                first = part == "all"
                table.add_row(
                    f"{model}, {form}" if first else "",
                    part,
                    str(block["n"]),
                    *(_figure(block[key]) for key in ("parsed", "schema_valid", "exact_match")),
                    f"[bold]{_figure(block['field_f1'])}[/]",
                    end_section=part == "unseen",
                )
    return table


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def versus(told: Mapping[str, Any]) -> None:
    """How two runs' adapters differ: figures, then the fields that surely do."""
    console.print(
        f"[bold]{escape(told['ours'])}[/] less [bold]{escape(told['theirs'])}[/], "
        f"{told['prompts']} held-out prompts that both answered"
    )
    table = Table("answers", "figure", "difference", "95% interval", "p", box=None)
    for form, found in told["forms"].items():
        fields = {f"  {name}": one for name, one in found["fields"].items() if one["p"] < SURE}
        figures = {name: found[name] for name in NAMES}
        for row, (name, one) in enumerate((figures | fields).items()):
            low, high = one["interval"]
            tone = "" if one["p"] >= SURE else "[green]" if one["difference"] > 0 else "[red]"
            table.add_row(
                "" if row else form,
                escape(name),
                f"{tone}{one['difference']:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                "< 0.001" if one["p"] < 0.001 else f"{one['p']:.2g}",
            )
    console.print(table)


def samples(run: Run) -> None:
    """A few answers of the adapter with their verdicts."""
    if not run.answers.is_file():
        return
    shown = 0
    with run.answers.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["model"] != "adapter" or row["form"] != "unconstrained":
                continue
            kind = row["verdict"]["kind"]
            mark = "[green]valid[/]" if kind == "valid" else f"[red]{escape(kind)}[/]"
            console.print(f"\n[dim]{escape(row['prompt'])}[/]\n{escape(row['answer'])}  {mark}")
            for reason in row["verdict"]["reasons"][:2]:
                console.print(f"  [red]{escape(str(reason['message']))}[/]")
            shown += 1
            if shown == _SAMPLES:
                return


def summary(run: Run) -> dict[str, Any]:
    """One run in a few words and figures."""
    row: dict[str, Any] = {
        "run": str(run.folder),
        "name": run.name,
        "state": "finished" if run.finished else "unfinished",
    }
    if run.report.is_file():
        document = run.read(run.report)
        row["passed"] = document["passed"]
        row["base"] = document["base"]["name"]
        block = document["scores"]["adapter"]["unconstrained"]["all"]
        row |= {key: block[key] for key in ("schema_valid", "field_f1")}
    return row


def run_table(rows: list[dict[str, Any]], root: Path) -> None:
    """The list of runs."""
    if not rows:
        console.print(f"no runs in {root} yet; begin with: llm-lora train recipes/medical_qa.yaml")
        return
    here = Path.cwd()
    table = Table(
        Column("run", overflow="fold"),
        "state",
        "base",
        "schema valid",
        "field F1",
        "gates",
        box=None,
    )
    for row in rows:
        gates = {True: "[green]passed[/]", False: "[red]failed[/]", None: ""}[row.get("passed")]
        folder = Path(row["run"])
        table.add_row(
            str(folder.relative_to(here) if folder.is_relative_to(here) else folder),
            row["state"],
            row.get("base", ""),
            _figure(row.get("schema_valid", "")),
            _figure(row.get("field_f1", "")),
            gates,
        )
    console.print(table)
