"""Answers by batched generation: base or adapter, free or constrained by the answer schema."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList
from transformers import logging as transformers_logging

from llm_lora.base import Base, Chat
from llm_lora.engines.shared import Loaded, free_memory, load_base, out_of_memory, peak_memory_bytes
from llm_lora.engines.text.constrain import Constraints
from llm_lora.example import Answer, Message
from llm_lora.progress import Listener, Progress, silent
from llm_lora.schema import AnswerSchema


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 32


def load_trained(base: Base, *, adapter: Path | None, bits: int, precision: str) -> Loaded:
    """Load a base, optionally with an adapter, in the form that was trained, for answering.

    The 4-bit base is dequantised once, to the values that its matrix products use anyway: the
    answers stay the same, and no token pays for dequantisation.

    Raises:
        UserError: the base cannot be loaded.
    """
    transformers_logging.set_verbosity_error()
    loaded = load_base(base, bits=bits, precision=precision)
    model = loaded.model
    if bits == 4 and loaded.device.type == "cpu":
        model = model.dequantize().to(loaded.compute)
    if adapter is not None:
        # Without training's cast to fp32: bf16 products round the weights anyway.
        model = PeftModel.from_pretrained(
            model, adapter, is_trainable=False, autocast_adapter_dtype=False
        )
    return replace(loaded, model=model.eval())


class Answerer:
    """A loaded base, optionally with an adapter, that answers prompts."""

    def __init__(
        self, base: Base, chat: Chat, *, adapter: Path | None, bits: int, precision: str
    ) -> None:
        """Load the model in the form that was trained.

        Raises:
            UserError: out of memory, or the base cannot be loaded.
        """
        with out_of_memory():
            loaded = load_trained(base, adapter=adapter, bits=bits, precision=precision)
        self._chat = chat
        self._model = loaded.model
        self._adapted = adapter is not None
        self._device = loaded.device
        self._constraints = Constraints(
            AutoTokenizer.from_pretrained(base.path, local_files_only=True)
        )

    def decoding(self) -> dict[str, float]:
        """Time spent on constraints so far: compiling, and a mask at each step."""
        return self._constraints.pace.to_dict()

    def close(self) -> None:
        """Release the memory."""
        del self._model
        free_memory()

    def answer(
        self,
        prompts: Sequence[tuple[Message, ...]],
        sampling: Sampling,
        *,
        schema: AnswerSchema | None = None,
        base_only: bool = False,
        chances: bool = False,
        seed: int = 0,
        listener: Listener = silent,
    ) -> list[Answer]:
        """One answer for each prompt, in their order.

        Args:
            prompts: messages; the last one is from the user.
            sampling: the sampling settings.
            schema: constrains the answers; None leaves them unconstrained.
            base_only: answer without the adapter.
            chances: also return the probability of every token (at temperature 1).
            seed: of the sampling, if temperature is above 0.
            listener: called after each batch.

        Raises:
            UserError: out of memory, or a schema that the decoder refuses.
        """
        ids = [self._chat.prompt_ids(prompt) for prompt in prompts]
        # Sorted by length: prompts of similar length need little padding when batched.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found: dict[int, Answer] = {}
        started, tokens = time.monotonic(), 0
        torch.manual_seed(seed)
        adapter_off = self._adapted and base_only
        for start in range(0, len(order), sampling.batch_size):
            chosen = order[start : start + sampling.batch_size]
            with (
                out_of_memory(),
                torch.inference_mode(),
                self._model.disable_adapter() if adapter_off else nullcontext(),
            ):
                batch = self._generate([ids[i] for i in chosen], sampling, schema, chances)
            found.update(zip(chosen, batch, strict=True))
            tokens += sum(answer.tokens for answer in batch)
            elapsed = max(time.monotonic() - started, 1e-6)
            listener(
                Progress(
                    stage="answering",
                    done=len(found),
                    total=len(order),
                    tokens_per_second=tokens / elapsed,
                    memory_bytes=peak_memory_bytes(),
                    seconds_left=(len(order) - len(found)) * elapsed / len(found),
                )
            )
        return [found[i] for i in range(len(ids))]

    def _generate(
        self,
        rows: list[list[int]],
        sampling: Sampling,
        schema: AnswerSchema | None,
        chances: bool,
    ) -> list[Answer]:
        longest = max(len(row) for row in rows)
        pad, stops = self._chat.pad_id, set(self._chat.eos_ids)
        # Padded on the left: every row's answer then starts at the same column.
        ids = torch.full((len(rows), longest), pad, device=self._device)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
        options: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if options["do_sample"]:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        recorder = _Recorder()
        processors = [self._constraints.of(schema)] if schema is not None else []
        processors += [recorder] if chances else []
        if processors:
            options["logits_processor"] = LogitsProcessorList(processors)
        out = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(stops),
            pad_token_id=pad,
            **options,
        )
        answers = out[:, longest:].tolist()
        logs = recorder.finish(out) if chances else [()] * len(rows)
        return [self._finish(*row, stops) for row in zip(answers, logs, strict=True)]

    def _finish(self, tokens: list[int], logs: Sequence[float], stops: set[int]) -> Answer:
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        kept = tokens if end is None else tokens[:end]
        places = self._chat.places(kept) if logs else ()
        return Answer(
            text=self._chat.decode(kept),
            tokens=len(kept) + (end is not None),
            finish="length" if end is None else "stop",
            chances=tuple(zip(places, logs, strict=False)),
        )


class _Recorder(LogitsProcessor):
    """Records the log-probability of each token that was chosen.

    It runs after the constraint, so tokens that the schema rules out have no probability.
    """

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None
        self._taken: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Record what the previous call's `scores` [rows, vocabulary] gave the chosen token."""
        self._note(input_ids)
        self._last = scores.float().log_softmax(-1)
        return scores

    def _note(self, input_ids: torch.Tensor) -> None:
        if self._last is not None:
            self._taken.append(self._last.gather(1, input_ids[:, -1:])[:, 0])

    def finish(self, input_ids: torch.Tensor) -> list[list[float]]:
        """The log-probabilities of every row's tokens, padding included."""
        self._note(input_ids)
        found: list[list[float]] = torch.stack(self._taken, dim=1).tolist()
        return found
