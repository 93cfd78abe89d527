"""DINO and similar models: pictures embedded in a space that was learned without captions.

It separates two objects of the same kind better than CLIP, which learned to ignore what captions do
not mention (Ruiz et al., DreamBooth, arXiv 2208.12242, compare subjects by it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import AutoImageProcessor, AutoModel

from llm_lora.engines.vision.loading import load
from llm_lora.scores.image import Floats
from llm_lora.vision import VisionModel

if TYPE_CHECKING:
    from PIL import Image


class Dino:
    """A vision transformer for inference only."""

    def __init__(self, model: VisionModel, device: str | None = None) -> None:
        """Load the model in fp32.

        Args:
            model: of one of the kinds `vision.models.DINO`.
            device: where it runs; by default the GPU, if there is one.
        """
        self._model, self._device = load(AutoModel, model, device)
        # The image processor that works without torchvision.
        self._processor = AutoImageProcessor.from_pretrained(
            model.path, backend="pil", local_files_only=True
        )

    @torch.inference_mode()
    def points(self, images: Sequence[Image.Image]) -> list[Floats]:
        """Embeddings of RGB pictures, in one batch: the class token after the last norm, one vector
        (dimensions) of unit length each.
        """
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        tokens = self._model(pixel_values=pixels.to(self._device)).last_hidden_state[:, 0]
        return list(torch.nn.functional.normalize(tokens.double().cpu(), dim=-1).numpy())
