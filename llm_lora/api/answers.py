"""Answers: asking an adapter, and judging what any model said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from llm_lora import run as runs
from llm_lora.schema import AnswerSchema, Verdict

Schema: TypeAlias = AnswerSchema


def judge(text: str, schema: Schema | Mapping[str, Any] | str | PathLike[str]) -> Verdict:
    """Judge the text of an answer.

    Args:
        text: the answer, from any source.
        schema: the schema, its document, or its file. `Schema.load` reads a file only once.

    Raises:
        UserError: the schema is not valid or its file cannot be read.
    """
    if isinstance(schema, str | PathLike):
        schema = Schema.load(schema)
    elif isinstance(schema, Mapping):
        schema = Schema.from_text(json.dumps(schema))
    return schema.judge(text)


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
        text: the answer as written.
        verdict: whether it fits the adapter's schema; None if the adapter has none.
        complete: false if the token limit cut it off.
    """

    text: str
    verdict: Verdict | None
    complete: bool

    @property
    def value(self) -> Any:
        """The parsed JSON; None if the text is not JSON or the adapter has no schema."""
        return None if self.verdict is None else self.verdict.value


class Chat:
    """The adapter of a text run, loaded into this process; answers are constrained to its schema.

    Each question starts a new conversation, as in training. Use it in a `with` statement, or call
    `close` to release the memory.
    """

    def __init__(self, run: str | PathLike[str], *, free: bool = False) -> None:
        """Load the model.

        Args:
            run: a run, or its folder.
            free: do not constrain the answers.

        Raises:
            UserError: the run is not trained or not of a text recipe, its base is missing or
                changed, or memory ran out.
        """
        # Imported here, so that judging stays light.
        from llm_lora.tasks.text import Talker

        self._talker = Talker(runs.find(Path(run)), free=free)

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, text: str) -> Answer:
        """The answer to a question."""
        answer, verdict = self._talker.ask(text)
        return Answer(answer.text, verdict, answer.finish == "stop")

    def close(self) -> None:
        """Release the memory."""
        self._talker.close()
