"""`llm-lora chat`: questions to a run's adapter, each answer with its verdict."""

from __future__ import annotations

import json
import sys

from llm_lora import engines
from llm_lora.adapter import folder as adapters
from llm_lora.cli.console import console
from llm_lora.example import Answer, Message
from llm_lora.run import Run
from llm_lora.tasks.text import task as text_task


class Talker:
    """A loaded adapter; each message starts a new conversation, as in training."""

    def __init__(
        self, prepared: text_task.Prepared, here: Run, *, free: bool, base_only: bool
    ) -> None:
        adapters.require_base(adapters.read(here.adapter), prepared.base)
        recipe = prepared.recipe
        engine = engines.load(recipe.task)
        self._schema = prepared.schema
        self._constrained = prepared.schema is not None and not free
        self._base_only = base_only
        self._system = recipe.data.system
        self._sampling = engine.Sampling(
            max_new_tokens=text_task.max_new_tokens(prepared),
            temperature=recipe.generate.temperature,
            top_p=recipe.generate.top_p,
            batch_size=1,
        )
        self._answerer = engine.Answerer(
            prepared.base,
            prepared.chat,
            adapter=here.adapter,
            bits=recipe.lora.bits,
            precision=recipe.train.precision,
        )

    def once(self, message: str, *, as_json: bool) -> None:
        """Answer one message and print it with its verdict."""
        prompt = [Message("user", message)]
        if self._system:
            prompt.insert(0, Message("system", self._system))
        (answer,) = self._answerer.answer(
            [tuple(prompt)],
            self._sampling,
            schema=self._schema if self._constrained else None,
            base_only=self._base_only,
        )
        self._print(answer, as_json)

    def loop(self, *, as_json: bool) -> None:
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
                self.once(line.strip(), as_json=as_json)

    def _print(self, answer: Answer, as_json: bool) -> None:
        verdict = self._schema.judge(answer.text) if self._schema else None
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
