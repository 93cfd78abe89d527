"""`llm-lora validate`: its arguments. The rest is imported when the command runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("answers", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--schema",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The answer schema.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write all verdicts to this file (JSON Lines).",
)
@click.option(
    "--fix",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write all answers to this file, repaired where the repair is unambiguous.",
)
@click.option(
    "--column",
    metavar="NAME",
    help="Parquet column, or key of JSON records, that holds the answer.",
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Processes for a large file.  [default: one per core]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def validate(
    answers: Path,
    schema: Path,
    out: Path | None,
    fix: Path | None,
    column: str | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Check every answer in a file against a schema.

    FILE holds JSON Lines or one JSON array, optionally compressed (.gz, .zst), or is a Parquet
    file; - reads stdin. With --fix, answers are judged after repair. The exit code is 1 if any
    answer is invalid, or if there are none.
    """
    from llm_lora import files
    from llm_lora.cli import verdicts
    from llm_lora.schema import AnswerSchema
    from llm_lora.validate import Judge, judge_blocks

    files.require_apart([answers, schema], {"--out": out, "--fix": fix})
    judge = Judge(
        AnswerSchema.load(schema), column, rows=as_json or out is not None, fix=fix is not None
    )
    judged = judge_blocks(answers, judge, jobs=jobs)
    if not verdicts.show(judged, as_json=as_json, out=out, fix=fix):
        raise SystemExit(1)
