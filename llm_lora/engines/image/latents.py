"""Latents of pictures: cropped to their bucket, optionally mirrored, and encoded by the VAE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from llm_lora.data.image import Bucket, Crop, Picture
from llm_lora.data.image import files as picture_files
from llm_lora.engines.image.cache import Cache
from llm_lora.engines.image.loading import Loaded
from llm_lora.engines.image.noise import Moments


@dataclass(frozen=True)
class Cut:
    """A picture as it is shown once: its crop, its size, and whether it is mirrored."""

    picture: Picture
    bucket: Bucket
    crop: Crop
    flip: bool

    @property
    def time_ids(self) -> tuple[float, ...]:
        """SDXL's size conditioning: picture size, crop corner and bucket size, height first.

        The corner is in pixels of the scaled picture (arXiv 2307.01952, section 2.2), and is
        mirrored with the picture.
        """
        scale = self.bucket.width / (self.crop.right - self.crop.left)
        left = self.picture.width - self.crop.right if self.flip else self.crop.left
        corner = (round(self.crop.top * scale), round(left * scale))
        size = (self.picture.height, self.picture.width)
        return (*size, *corner, self.bucket.height, self.bucket.width)

    @property
    def key(self) -> str:
        """Everything that its latents depend on, except the VAE."""
        return f"{self.picture.sha256} {self.bucket} {self.crop} {self.flip}"


def pixels(cut: Cut) -> torch.Tensor:
    """A picture's crop at its bucket's size: 3 x height x width, from -1 to 1."""
    image = picture_files.load(cut.picture.path)
    size = (cut.bucket.width, cut.bucket.height)
    if image.size != size or cut.crop.box() != (0, 0, *size):
        image = image.resize(size, Image.Resampling.LANCZOS, box=cut.crop.box())
    array = np.asarray(image, np.float32)
    if cut.flip:
        array = array[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1) / 127.5 - 1


class Latents:
    """Latents of pictures: encoded on request, and cached if there is a cache."""

    def __init__(self, loaded: Loaded, cache: Cache | None) -> None:
        """Without a cache nothing is kept, and every request encodes again."""
        self._loaded = loaded
        self._cache = cache
        self._known: dict[str, Moments] = {}

    def __getitem__(self, cut: Cut) -> Moments:
        """Mean and standard deviation of a picture's latents, on the CPU."""
        key = cut.key
        if key in self._known:
            return self._known[key]
        kept = self._cache.get(key) if self._cache else None
        made = Moments(kept["mean"], kept["spread"]) if kept is not None else self._encode(cut)
        if self._cache:
            if kept is None:
                self._cache.put(key, {"mean": made.mean, "spread": made.spread})
            self._known[key] = made
        return made

    def _encode(self, cut: Cut) -> Moments:
        vae = self._loaded.pipe.vae
        with torch.no_grad():
            # One by one: the result must not depend on the other pictures of a batch.
            found = vae.encode(pixels(cut)[None].to(vae.device)).latent_dist
        return Moments(found.mean[0].cpu(), found.std[0].cpu())
