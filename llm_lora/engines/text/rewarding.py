"""Reinforcement learning on top of a trained adapter: TRL's GRPO with the judge's reward.

Separate from `preferring`, because TRL's GRPO imports vLLM if it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from llm_lora.base import Base, Chat
from llm_lora.engines.shared import Loaded, Metrics
from llm_lora.engines.text import tuning
from llm_lora.engines.text.preferring import Resumed, go_on
from llm_lora.errors import UserError
from llm_lora.example import Example
from llm_lora.progress import Fit, Listener, silent
from llm_lora.recipe.text import Recipe
from llm_lora.run import Places
from llm_lora.schema import AnswerSchema
from llm_lora.scores import reward


class _Rewarded(Resumed, GRPOTrainer):
    """TRL's GRPO over prompts with the token ids that the server builds."""

    def __init__(self, *, prompt_ids: dict[str, list[int]], **options: Any) -> None:
        self._prompt_ids = prompt_ids
        super().__init__(**options)

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        return [self._prompt_ids[prompt] for prompt in prompts], None, {}


def reinforce(
    recipe: Recipe,
    examples: Sequence[Example],
    schema: AnswerSchema,
    base: Base,
    chat: Chat,
    places: Places,
    *,
    max_new_tokens: int,
    start: Path,
    resume: bool = False,
    listener: Listener = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Train an adapter further with GRPO (arXiv 2402.03300), and write it to `places.adapter`.

    Args:
        examples: their prompts are answered repeatedly, by the adapter as trained so far.
        schema: judges the answers; `preference.reward` is the reward.
        max_new_tokens: the longest answer.
        For the others see `preferring.prefer`.

    Raises:
        Interrupted: the user pressed Ctrl-C; a checkpoint was saved.
        UserError: out of memory, a NaN loss, or too few prompts for one step.
    """
    samples = recipe.prefer.samples
    each = recipe.train.batch_size * recipe.train.accumulate // samples
    if len(examples) < each:
        raise UserError(
            f"{len(examples)} prompts do not fill one step of {each} prompts x {samples} answers",
            where="prefer.prompts",
            fix="raise it, or lower train.batch_size or train.accumulate",
        )
    steps_per_epoch = len(examples) // each
    steps = max(1, round(recipe.prefer.epochs * steps_per_epoch))
    # TRL expects texts: rendered prompts are keys to their token ids, so none is tokenized again.
    prompts = [chat.render(one.prompt, add_generation_prompt=True) for one in examples]

    def rewards(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        answers = zip(completion_ids, number, strict=True)
        return [reward(schema, examples[i].answer, chat.decode(ids)) for ids, i in answers]

    def trainer(loaded: Loaded, options: tuning.Options) -> GRPOTrainer:
        config = GRPOConfig(
            **options,
            beta=recipe.prefer.beta,
            num_generations=samples,
            temperature=recipe.prefer.temperature,
            max_completion_length=max_new_tokens,
            disable_dropout=True,
        )
        return _Rewarded(
            prompt_ids={
                text: chat.prompt_ids(one.prompt)
                for text, one in zip(prompts, examples, strict=True)
            },
            model=loaded.model,
            reward_funcs=[rewards],
            args=tuning.on_one_card(config),
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": text, "number": number} for number, text in enumerate(prompts)]
            ),
            processing_class=AutoTokenizer.from_pretrained(
                base.path, local_files_only=True, padding_side="left"
            ),
        )

    tell(f"grpo on {len(examples)} prompts, {samples} answers each: {steps} steps")
    record = Metrics(places, listener, [0] * (steps + 1), steps_per_epoch)
    return go_on(recipe, base, places, trainer, record, start=start, resume=resume)
