"""Questions to the adapter of a run, one at a time."""

from __future__ import annotations

from llm_lora import engines
from llm_lora.adapter import folder as adapters
from llm_lora.example import Answer, Message
from llm_lora.run import Run
from llm_lora.schema import Verdict
from llm_lora.tasks.text.prepared import max_new_tokens
from llm_lora.tasks.text.task import reopen


class Talker:
    """A loaded adapter; each message starts a new conversation, as in training."""

    def __init__(self, here: Run, *, free: bool = False, base_only: bool = False) -> None:
        """Load the model.

        Args:
            here: a run of a text recipe.
            free: do not constrain the answers to the schema.
            base_only: answer without the adapter.

        Raises:
            UserError: the run is not trained or of another task, its base is missing or changed,
                or memory ran out.
        """
        prepared = reopen(here)
        adapters.require_base(adapters.read(here.adapter), prepared.base)
        recipe = prepared.recipe
        engine = engines.load(recipe.task)
        self._schema = prepared.schema
        self._constrained = prepared.schema is not None and not free
        self._base_only = base_only
        self._system = recipe.data.system
        self._sampling = engine.Sampling(
            max_new_tokens=max_new_tokens(prepared),
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

    def ask(self, message: str) -> tuple[Answer, Verdict | None]:
        """The answer to a message, and its verdict if the adapter has a schema."""
        prompt = [Message("user", message)]
        if self._system:
            prompt.insert(0, Message("system", self._system))
        answer: Answer
        (answer,) = self._answerer.answer(
            [tuple(prompt)],
            self._sampling,
            schema=self._schema if self._constrained else None,
            base_only=self._base_only,
        )
        return answer, self._schema.judge(answer.text) if self._schema else None

    def close(self) -> None:
        """Release the memory."""
        self._answerer.close()
