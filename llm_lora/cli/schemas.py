"""`llm-lora schema`: create, check and repair answer schemas before training or decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import click

from llm_lora.cli.options import PATH, json_option, path_option
from llm_lora.cli.outcome import print_json, require
from llm_lora.errors import UserError

if TYPE_CHECKING:
    from llm_lora.base import Base
    from llm_lora.data import Row
    from llm_lora.grammar import Lint
    from llm_lora.schema import AnswerSchema

_SHOWN = 20
Backend = Literal["vllm", "outlines"]
backend_option = click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default="vllm",
    show_default=True,
    help="vllm: llguidance, as used by server and engine; outlines: outlines-core.",
)
out_option = path_option("--out", metavar="FILE", help="Write to this file.")


@click.group()
def schema() -> None:
    """Create, check and repair answer schemas."""


@schema.command()
@click.argument("file", type=PATH)
@backend_option
@path_option("--fix", metavar="FILE", help="Write a stricter schema to this file.")
@path_option("--data", metavar="FILE", help="Answers from which --fix takes bounds.")
@click.option("--base", metavar="BASE", help="Count tokens of this base, and time its masks.")
@json_option
def lint(
    file: Path,
    backend: Backend,
    fix: Path | None,
    data: Path | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Report which parts of a schema the decoder enforces and which will cause problems.

    The exit code is 1 if the decoder refuses the schema or does not enforce all of it.
    """
    from llm_lora.grammar import lint as examine
    from llm_lora.schema import AnswerSchema

    loaded = AnswerSchema.load(file)
    measure, cost = None, None
    if base is not None:
        from llm_lora.base import text as bases
        from llm_lora.grammar import masks

        found = bases.resolve(base, download=False)
        measure = masks.counter(found)
        if backend == "vllm":
            cost = _cost(loaded, found)
    told = examine(loaded, backend, measure=measure)
    changes = _fix(loaded, fix, data) if fix is not None else None
    if as_json:
        print_json({**told.to_dict(), "cost": cost, "changes": changes})
    else:
        _show(told, cost)
        if fix is not None:
            _show_changes(changes or [], fix)
    require(told.enforceable)


@schema.command()
@backend_option
@json_option
def keywords(backend: Backend, as_json: bool) -> None:
    """Test which keywords the installed decoder supports."""
    from llm_lora.grammar import Probes, table

    probes = Probes(backend)
    found = table(probes)
    probes.save()
    if as_json:
        rows = {name: {"state": one.state, "example": one.example, "reason": one.reason,
                       "narrower": one.narrower} for name, one in found.items()}  # fmt: skip
        print_json({"version": probes.version, "keywords": rows})
        return
    click.echo(probes.version)
    for name, one in found.items():
        why = one.reason or one.example or (f"refuses {one.narrower}" if one.narrower else "")
        click.echo(f"  {one.state:<11}{name:<28}{json.dumps(why, ensure_ascii=False)[1:-1][:70]}")


@schema.command()
@click.argument("answers", type=PATH)
@path_option("--schema", "file", metavar="FILE", required=True, help="The schema.")
@path_option("--mend", metavar="FILE", help="Write the data with repaired answers.")
@path_option("--mend-schema", metavar="FILE", help="Write a schema that accepts the answers.")
@json_option
def fit(
    answers: Path, file: Path, mend: Path | None, mend_schema: Path | None, as_json: bool
) -> None:
    """Test training answers against the grammar that the server will use.

    --mend changes only the answers; rows that do not fit the schema are copied unchanged. The exit
    code is 1 if the server would refuse an answer, or if no answer could be checked.
    """
    from llm_lora import files
    from llm_lora.data.text import formats
    from llm_lora.example import Rejected
    from llm_lora.grammar import Fit
    from llm_lora.schema import AnswerSchema

    files.require_apart([answers, file], {"--mend": mend, "--mend-schema": mend_schema})
    loaded = AnswerSchema.load(file)
    fitting = Fit(loaded)
    refused: list[dict[str, Any]] = []
    lines: list[str] = []
    checked = 0
    document = loaded.document
    applied: set[str] = set()
    shape, rows = formats.read_rows(answers)
    for row, example in rows:
        if isinstance(example, Rejected) or not loaded.judge(example.answer).valid:
            lines.append(_unchanged(row))
            continue  # `data check` and `validate` report data that does not fit the schema.
        checked += 1
        answer = loaded.canonical_text(example.answer)
        refusal = fitting.check(answer)
        if refusal is not None:
            refused.append({"where": example.where, "side": refusal.side, "what": str(refusal)})
            answer = refusal.mended or answer
            if refusal.loosened is not None and str(refusal.loosened) not in applied:
                applied.add(str(refusal.loosened))
                document = refusal.loosened.apply(document)
        value = cast(dict[str, Any], row.value)  # Only an object becomes an example.
        lines.append(json.dumps(formats.with_answer(value, shape, answer), ensure_ascii=False))
    if mend is not None:
        files.write_text(mend, "".join(f"{line}\n" for line in lines))
    if mend_schema is not None and applied:
        files.write_text(mend_schema, json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    unfit = len(lines) - checked
    if as_json:
        print_json(
            {"answers": checked, "refused": refused, "unfit": unfit, "schema": sorted(applied)}
        )
    else:
        for one in refused[:_SHOWN]:
            click.echo(f"{one['where']}: {one['what']}")
        if unfit:
            which = "1 row does" if unfit == 1 else f"{unfit} rows do"
            click.echo(f"{which} not fit the schema: llm-lora validate shows why")
        click.echo(f"the decoder can write {checked - len(refused)} of {checked} answers")
    require(checked > 0 and not refused)


def _unchanged(row: Row) -> str:
    """An unchanged row as one line of JSON Lines."""
    from llm_lora.data import qa_text

    if "\n" not in row.raw and not qa_text.is_pairs(row.raw):
        return row.raw
    # An array item that spans several lines, or a plain-text question.
    return json.dumps(row.raw if row.problem else row.value, ensure_ascii=False)


@schema.command()
@click.argument("data", type=PATH)
@out_option
def infer(data: Path, out: Path | None) -> None:
    """Infer a schema from the answers of training data."""
    from llm_lora.grammar import inferring

    _write(inferring.infer(_answers(data)), out)


@schema.group("from")
def from_() -> None:
    """Create a schema from another source."""


@from_.command()
@click.argument("model", metavar="MODULE:MODEL")
@click.option("--yes", is_flag=True, help="Import the module without asking; it runs its code.")
@out_option
def pydantic(model: str, yes: bool, out: Path | None) -> None:
    """Create a schema from a pydantic model; asks before it imports the module."""
    module, _, name = model.partition(":")
    if not name:
        raise UserError(f"{model} names no model", fix="write MODULE:MODEL, e.g. shop.forms:Order")
    question = f"Importing {module} runs its code. Import it?"
    if not yes and not click.confirm(question, err=True):
        raise UserError(f"{module} was not imported", fix="answer y, or give --yes")
    from llm_lora.schema import AnswerSchema

    document = _model_schema(module, name)
    AnswerSchema.from_text(json.dumps(document), model)
    _write(document, out)


@schema.command()
@click.argument("file", type=PATH)
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def sample(file: Path, count: int, seed: int) -> None:
    """Generate random valid answers, one per line."""
    from llm_lora.grammar import sampling
    from llm_lora.schema import AnswerSchema

    for text in sampling.sample(AnswerSchema.load(file), count, seed):
        click.echo(text)


def _cost(loaded: AnswerSchema, base: Base) -> dict[str, float] | None:
    from llm_lora.grammar import masks

    try:
        return masks.cost(loaded, base).to_dict()
    except UserError:
        return None  # A refused schema has no masks; lint reports the reason.


def _fix(loaded: AnswerSchema, fix: Path, data: Path | None) -> list[dict[str, str]]:
    from llm_lora.grammar import stricter

    answers = [] if data is None else [
        answer for answer in _answers(data) if loaded.judge_value(answer).valid
    ]  # fmt: skip
    document, changes = stricter(loaded, answers)
    _write(document, fix)
    return [{"where": change.where, "what": change.what} for change in changes]


def _answers(data: Path) -> list[Any]:
    """The parsed answers of training data; answers that are not JSON are skipped."""
    from llm_lora.data.text import formats
    from llm_lora.example import Rejected
    from llm_lora.schema import json_text as jsontext

    found = []
    for example in formats.read(data):
        if not isinstance(example, Rejected):
            try:
                found.append(jsontext.parse(example.answer))
            except jsontext.NotJson:
                continue
    return found


def _model_schema(module: str, name: str) -> dict[str, Any]:
    import importlib
    import sys

    from pydantic import BaseModel

    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # The module's code may raise anything.
        raise UserError(f"cannot be imported: {error!r}", where=module) from None
    finally:
        sys.path.pop(0)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise UserError(
            f"{name} is not a pydantic model", where=module, fix="name a BaseModel class in it"
        )
    return found.model_json_schema()


def _show(told: Lint, cost: dict[str, float] | None) -> None:
    if told.refused is not None:
        click.echo(f"refused by {told.version}: {told.refused}")
    for one in told.not_enforced():
        click.echo(f"{one.state}: {one.name} in {one.where}" + (f" ({one.why})" if one.why else ""))
    for remark in told.remarks:
        click.echo(f"{remark.kind}: {remark.where}: {remark.message}")
        if remark.fix:
            click.echo(f"  → {remark.fix}")
    longest = told.to_dict()["extent"]["longest"]
    shown = "unlimited" if longest is None else f"about {longest}"
    click.echo(f"answers: shortest about {told.extent.shortest}, longest {shown} ({told.unit})")
    click.echo(f"grammar: compiled in {told.seconds * 1e3:.1f} ms")
    if cost is not None:
        mean, worst = cost["mask_seconds"] * 1e6, cost["worst_mask_seconds"] * 1e6
        click.echo(f"masks: {mean:.0f} µs a token, slowest {worst:.0f} µs")
    verdict = "enforces all of it" if told.enforceable else "does not enforce all of it"
    click.echo(f"{told.version} {verdict}")


def _show_changes(changes: list[dict[str, str]], fix: Path) -> None:
    for change in changes:
        click.echo(f"changed: {change['where']}: {change['what']}")
    click.echo(f"{len(changes)} changes; the stricter schema is in {fix}")


def _write(document: dict[str, Any], out: Path | None) -> None:
    from llm_lora import files

    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    if out is None:
        click.echo(text, nl=False)
    else:
        files.write_text(out, text)
