"""Filter from rows to examples that pass every check; each row set aside has a reason.

It stops what TRL would silently train on: empty or missing answers, answers that do not fit the
schema or that the decoder would not write, control tokens inside texts, examples longer than the
context (TRL truncates their answers), and templates that change a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lora.base import Chat, Unencodable
from llm_lora.data.finding import Finding
from llm_lora.data.text import formats
from llm_lora.errors import Problem, UserError
from llm_lora.example import RAW_LIMIT, Example, Rejected, make_example
from llm_lora.grammar import Fit, lint

if TYPE_CHECKING:
    from llm_lora.recipe.text import Recipe
    from llm_lora.schema import AnswerSchema, Verdict


class Sieve:
    """Reads files and records what it set aside and what it changed.

    `rows` counts the rows read; `rejected` holds those set aside; `equal` and `changed` are the
    places of duplicate rows and of answers rewritten in canonical form; `shapes` holds the formats
    of the files; `tokens` the lengths of prompt and answer by the example's id.
    """

    def __init__(self, recipe: Recipe, schema: AnswerSchema | None, chat: Chat | None) -> None:
        """Prepare the checks without reading a file.

        Raises:
            UserError: the decoder refuses the schema.
        """
        self.rows = 0
        self.rejected: list[Rejected] = []
        self.equal: list[str] = []
        self.changed: list[str] = []
        self.shapes: dict[str, formats.Shape] = {}
        self.tokens: dict[str, tuple[int, int]] = {}
        self._recipe, self._schema, self._chat = recipe, schema, chat
        self._fit = Fit(schema) if schema is not None else None

    def read(
        self, held_out: Sequence[Path], train: Sequence[Path]
    ) -> tuple[list[Example], list[Example]]:
        """The examples of held-out files and of train files.

        The first of equal examples is kept; a train example that is also held out is set aside.

        Raises:
            UserError: one or more files cannot be read; carries the problems of all of them.
        """
        problems: list[Problem] = []
        judged: dict[str, Example] = {}
        learned: dict[str, Example] = {}
        for paths, kept in ((held_out, judged), (train, learned)):
            for path in paths:
                try:
                    for example in self._read(path):
                        if example.id in kept:
                            self.equal.append(example.where)
                        elif example.id in judged:
                            like = judged[example.id].where
                            self.reject(example, f"also held out: equal to {like}")
                        else:
                            kept[example.id] = example
                except UserError as error:
                    problems += error.problems
        if problems:
            raise UserError(problems)
        return list(judged.values()), list(learned.values())

    def reject(self, example: Example, reason: str) -> None:
        """Set an example aside."""
        self.rejected.append(_rejected(example, reason))

    def findings(self) -> Iterator[Finding]:
        """Findings from reading the files."""
        if self.changed:
            message = "answers were rewritten in canonical form (the schema's order, compact)"
            yield Finding("canonical", message, len(self.changed), self.changed[0])
        if self._schema is not None and (left := lint(self._schema).not_enforced()):
            names = ", ".join(dict.fromkeys(f"{one.name} ({one.where})" for one in left[:3]))
            message = f"parts of the schema are judged but not enforced while decoding: {names}"
            yield Finding("not_enforced", message, len(left), self._schema.where)
        if self.equal:
            message = "rows are equal to an earlier one and were dropped"
            yield Finding("equal", message, len(self.equal), self.equal[0])
        if self._chat is not None and "strftime_now" in self._chat.variables:
            message = "the chat template inserts today's date, so prompts differ from day to day"
            yield Finding("dated_template", message, 1)

    def _read(self, path: Path) -> Iterator[Example]:
        data = self._recipe.data
        shape = formats.detect(path) if data.format == "auto" else data.format
        self.shapes[str(path)] = shape
        for row in formats.read(path, format=shape, system=data.system):
            self.rows += 1
            checked = row if isinstance(row, Rejected) else self._check(row)
            if isinstance(checked, Rejected):
                self.rejected.append(checked)
            else:
                yield checked

    def _check(self, example: Example) -> Example | Rejected:
        if self._schema is not None:
            verdict = self._schema.judge(example.answer)
            if not verdict.valid:
                return _rejected(example, _reason(verdict))
            answer = self._schema.canonical_text(example.answer)
            if answer != example.answer:
                self.changed.append(example.where)
                example = make_example(
                    example.prompt, answer, part=example.part, where=example.where
                )
            refusal = self._fit.check(answer) if self._fit is not None else None
            if refusal is not None:
                return _rejected(example, f"the decoder would not write the answer: {refusal}")
        return example if self._chat is None else self._measure(example, self._chat)

    def _measure(self, example: Example, chat: Chat) -> Example | Rejected:
        try:
            encoded = chat.encode(example)
        except Unencodable as error:
            return _rejected(example, str(error))
        prompt, answer = encoded.prompt_tokens, encoded.answer_tokens
        setting = self._recipe.train.max_tokens
        limit, name = setting, "train.max_tokens"
        if chat.context_length is not None and chat.context_length < setting:
            limit, name = chat.context_length, "the base's context"
        total = len(encoded.input_ids)
        if total > limit:
            return _rejected(
                example,
                f"too long: {total} tokens (prompt {prompt}, answer {answer}), "
                f"over the limit of {limit} ({name})",
            )
        self.tokens[example.id] = prompt, answer
        return example


def _reason(verdict: Verdict) -> str:
    """The reason on one line; rows are grouped by the part before the colon."""
    first = verdict.reasons[0]
    if not verdict.parsed:
        return f"the answer is not JSON: {first}"
    place = f" at {first.field}" if first.field else ""
    return f"the answer does not fit the schema{place}: {'; '.join(map(str, verdict.reasons))}"


def _rejected(example: Example, reason: str) -> Rejected:
    turns = [asdict(message) for message in example.prompt]
    turns.append({"role": "assistant", "content": example.answer})
    raw = json.dumps({"messages": turns}, ensure_ascii=False)
    return Rejected(example.where, reason, raw[:RAW_LIMIT])
