"""DINO: pictures as points of a space that was learned from pictures alone.

What tells two things of a kind apart counts more in it than in CLIP's, which learned to pass over
what captions do not say (Ruiz et al., DreamBooth, arXiv 2208.12242, compare subjects by it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from llm_lora.engines.clip import quieten
from llm_lora.vision_models import VisionModel

if TYPE_CHECKING:
    from PIL import Image


class Dino:
    """A vision transformer of the DINO family, for looking only."""

    def __init__(self, model: VisionModel, device: str | None = None) -> None:
        """Load the model in fp32.

        Args:
            model: of a kind of `vision_models.DINO`.
            device: where it computes; the GPU where there is one.
        """
        quieten()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = AutoModel.from_pretrained(
            model.path, use_safetensors=True, dtype=torch.float32, local_files_only=True
        )
        self._model.requires_grad_(False).eval().to(self.device)
        # The processor that works without torchvision.
        self._processor = AutoImageProcessor.from_pretrained(
            model.path, backend="pil", local_files_only=True
        )

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image], batch_size: int = 32) -> Tensor:
        """Points of pictures in RGB, as the class token has them after the last norm:
        (pictures, dimensions), of length 1, fp32 on the CPU.
        """
        found = [torch.empty(0, self._model.config.hidden_size)]
        for start in range(0, len(images), batch_size):
            some = list(images[start : start + batch_size])
            pixels = self._processor(images=some, return_tensors="pt")["pixel_values"]
            output = self._model(pixel_values=pixels.to(self.device))
            found.append(output.last_hidden_state[:, 0].float().cpu())
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)
