"""Output of `llm-lora chat`: each answer with its verdict."""

from __future__ import annotations

import json
import sys

from llm_lora.cli.console import console
from llm_lora.example import Answer
from llm_lora.schema import Verdict
from llm_lora.tasks.text import Talker


def once(talker: Talker, message: str, *, as_json: bool) -> None:
    """Answer one message and print it with its verdict."""
    answer, verdict = talker.ask(message)
    _print(answer, verdict, as_json)


def loop(talker: Talker, *, as_json: bool) -> None:
    """Answer messages from the terminal until it ends (Ctrl-D)."""
    interactive = sys.stdin.isatty()
    if interactive:
        console.print("One message per line; Ctrl-D quits.")
    while True:
        if interactive:
            console.print("[bold]> [/]", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            once(talker, line.strip(), as_json=as_json)


def _print(answer: Answer, verdict: Verdict | None, as_json: bool) -> None:
    if as_json:
        row = {
            "answer": answer.text,
            "finish": answer.finish,
            "verdict": verdict.to_dict() if verdict else None,
        }
        print(json.dumps(row, ensure_ascii=False), flush=True)
        return
    console.print(answer.text, markup=False)
    if answer.finish == "length":
        console.print("  [yellow]cut off at the token limit[/]")
    if verdict is not None:
        mark = "[green]valid[/]" if verdict.valid else f"[red]{verdict.kind}[/]"
        console.print(f"  {mark}")
        for reason in verdict.reasons:
            console.print(f"  {reason.message}", markup=False)
