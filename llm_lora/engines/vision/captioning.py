"""Captions from local models: CLIP chooses among candidates, BLIP writes its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

from llm_lora.engines.vision.clip import Clip
from llm_lora.engines.vision.loading import load
from llm_lora.label import Label, Part, candidates
from llm_lora.vision import VisionModel

if TYPE_CHECKING:
    from PIL import Image

_MOST_TOKENS = 50
_BEAMS = 3


class ZeroShot:
    """Chooses captions among candidates with CLIP (arXiv 2103.00020, section 3.1)."""

    def __init__(
        self, model: VisionModel, parts: Sequence[Part], device: str | None = None
    ) -> None:
        """Load the model and embed all candidates once."""
        self._clip = Clip(model, device)
        self._parts = parts
        self._points = [self._clip.texts(part.texts) for part in parts]

    def __call__(self, images: Sequence[Image.Image]) -> list[Label]:
        """A caption for each picture; its score is the probability of its least certain part."""
        seen = self._clip.images(images)
        shares = [
            torch.softmax(seen @ points.T / self._clip.temperature, dim=-1).tolist()
            for points in self._points
        ]
        chosen = [
            candidates.choose(self._parts, [likely[index] for likely in shares])
            for index in range(len(images))
        ]
        return [Label(choice.caption, round(choice.share, 4)) for choice in chosen]


class Captioner:
    """Describes pictures with BLIP (arXiv 2201.12086)."""

    def __init__(self, model: VisionModel, device: str | None = None) -> None:
        """Load the model in fp32; the GPU is used where there is one."""
        self._model, self._device = load(BlipForConditionalGeneration, model, device)
        self._processor = BlipImageProcessorPil.from_pretrained(model.path, local_files_only=True)
        self._tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Label]:
        """A caption for each picture; the score is its probability, averaged over its tokens."""
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        written = self._model.generate(
            pixel_values=pixels.to(self._device),
            max_length=_MOST_TOKENS,
            num_beams=_BEAMS,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        texts = self._tokenizer.batch_decode(written.sequences, skip_special_tokens=True)
        scores = written.sequences_scores.exp().tolist()
        return [
            Label(text.strip(), round(score, 4)) for text, score in zip(texts, scores, strict=True)
        ]
