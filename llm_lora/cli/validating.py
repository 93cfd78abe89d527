"""`llm-lora validate`: its arguments. The rest is imported when the command runs."""

from __future__ import annotations

from pathlib import Path

import click

from llm_lora.cli.options import count_option, json_option, path_option
from llm_lora.cli.outcome import require


@click.command()
@click.argument("answers", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@path_option(
    "--schema",
    metavar="FILE",
    required=True,
    help="The answer schema.",
)
@path_option(
    "--out",
    metavar="FILE",
    help="Write all verdicts to this file (JSON Lines).",
)
@path_option(
    "--fix",
    metavar="FILE",
    help="Write all answers to this file, repaired where the repair is unambiguous.",
)
@click.option(
    "--column",
    metavar="NAME",
    help="Parquet column, or key of JSON records, that holds the answer.",
)
@count_option(
    "--jobs",
    metavar="N",
    help="Processes for a large file.  [default: one per core]",
)
@json_option
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
    require(verdicts.show(judged, as_json=as_json, out=out, fix=fix))
