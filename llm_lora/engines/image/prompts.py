"""Text conditioning of the UNet: hidden states of the text encoders, and SDXL's pooled vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from llm_lora.engines.image.cache import Cache
from llm_lora.engines.image.loading import Loaded

_MOST_BYTES = 2 * 2**30
"""Memory limit: if all encoded texts need more, they are encoded at every step instead."""


@dataclass(frozen=True)
class Embedding:
    """Encoded texts: `hidden` is batch x tokens x width; `pooled` (SDXL) is batch x width."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None

    def to(self, device: torch.device, dtype: torch.dtype) -> Embedding:
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return Embedding(self.hidden.to(device, dtype), pooled)

    def __getitem__(self, part: slice) -> Embedding:
        return Embedding(self.hidden[part], None if self.pooled is None else self.pooled[part])


def encode(loaded: Loaded, texts: Sequence[str]) -> Embedding:
    """Encode texts as the pipeline does for generation.

    If the pipeline uses zeros for an empty negative prompt (SDXL), an empty text is zeros here too:
    steps without a caption then train the same input that guidance uses as unconditional.
    """
    found = loaded.pipe.encode_prompt(
        prompt=list(texts),
        device=loaded.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    hidden, pooled = found[0], found[2] if len(found) > 2 else None
    if loaded.pipe.config.get("force_zeros_for_empty_prompt"):
        told = torch.tensor([bool(text) for text in texts], device=hidden.device)
        hidden = hidden * told[:, None, None]
        pooled = None if pooled is None else pooled * told[:, None]
    return Embedding(hidden, pooled)


def cut_off(loaded: Loaded, texts: Iterable[str]) -> int:
    """The number of texts that exceed the text encoder's limit and are truncated."""
    tokens = loaded.pipe.tokenizer
    limit = tokens.model_max_length
    return sum(len(tokens(text).input_ids) > limit for text in texts)


class Texts:
    """Texts encoded once, kept in memory and, if a cache is given, on disk."""

    def __init__(self, loaded: Loaded, cache: Cache | None) -> None:
        self._loaded = loaded
        self._cache = cache
        self._known: dict[str, Embedding] = {}

    def fits(self, texts: Iterable[str]) -> bool:
        """Whether these texts can all be kept in memory."""
        size = self._one("").hidden.numel() * 4
        return len(set(texts)) * size <= _MOST_BYTES

    def learn(self, texts: Iterable[str]) -> None:
        """Encode new texts, one by one, so that none depends on the others of a batch."""
        for text in sorted(set(texts)):
            if text not in self._known:
                self._known[text] = self._one(text)

    def __getitem__(self, texts: Sequence[str]) -> Embedding:
        """A batch of texts, on the CPU."""
        self.learn(texts)
        found = [self._known[text] for text in texts]
        pooled = [one.pooled for one in found if one.pooled is not None]
        return Embedding(
            torch.cat([one.hidden for one in found]), torch.cat(pooled) if pooled else None
        )

    def _one(self, text: str) -> Embedding:
        kept = self._cache.get(text) if self._cache else None
        if kept is not None:
            return Embedding(kept["hidden"], kept.get("pooled"))
        with torch.no_grad():
            made = encode(self._loaded, [text]).to(torch.device("cpu"), torch.float32)
        if self._cache:
            tensors = {"hidden": made.hidden}
            if made.pooled is not None:
                tensors["pooled"] = made.pooled
            self._cache.put(text, tensors)
        return made
