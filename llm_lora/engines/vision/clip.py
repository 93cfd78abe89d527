"""CLIP: pictures and texts embedded in one space, where similar ones lie close together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from llm_lora.engines.vision.loading import load
from llm_lora.vision import VisionModel

if TYPE_CHECKING:
    from PIL import Image


class Clip:
    """A CLIP model for inference only; it is never trained."""

    def __init__(self, model: VisionModel, device: str | None = None) -> None:
        """Load the model in fp32.

        Args:
            model: of kind "clip".
            device: where it runs; by default the GPU, if there is one.
        """
        self._model, self._device = load(CLIPModel, model, device)
        # The image processor that works without torchvision.
        self._processor = CLIPImageProcessorPil.from_pretrained(model.path, local_files_only=True)
        self._tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)

    @property
    def temperature(self) -> float:
        """The learned temperature, by which similarities are divided before the softmax."""
        return float((-self._model.logit_scale).exp())

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image], batch_size: int = 32) -> Tensor:
        """Embeddings of RGB pictures: (pictures, dimensions), unit length, fp32 on the CPU."""
        found = []
        for start in range(0, len(images), batch_size):
            some = list(images[start : start + batch_size])
            pixels = self._processor(images=some, return_tensors="pt")["pixel_values"]
            output = self._model.get_image_features(pixel_values=pixels.to(self._device))
            found.append(output.pooler_output.float().cpu())
        return _of_length_one(found, self._model.config.projection_dim)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Embeddings of texts: (texts, dimensions), unit length; longer texts are truncated."""
        limit = self._model.config.text_config.max_position_embeddings
        found = []
        for start in range(0, len(texts), batch_size):
            tokens = self._tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            output = self._model.get_text_features(
                input_ids=tokens["input_ids"].to(self._device),
                attention_mask=tokens["attention_mask"].to(self._device),
            )
            found.append(output.pooler_output.float().cpu())
        return _of_length_one(found, self._model.config.projection_dim)


def _of_length_one(parts: Sequence[Tensor], dimensions: int) -> Tensor:
    whole = torch.cat(list(parts)) if parts else torch.empty(0, dimensions)
    return torch.nn.functional.normalize(whole, dim=-1)
