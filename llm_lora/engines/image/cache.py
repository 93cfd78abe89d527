"""What was encoded once and stays the same, kept on the disk from run to run.

One safetensors file for each picture or text, named by everything that its content depends on.
Nothing in it is needed: it may be deleted at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from llm_lora import files
from llm_lora.errors import UserError
from llm_lora.weights import arrays

_FORMAT = "1"


class Cache:
    """A folder of encoded things; what cannot be read counts as absent."""

    def __init__(self, kind: str, *depends: str) -> None:
        """`depends` tells what all entries depend on: the encoder's digest, the precision."""
        self.folder = files.cache() / kind / files.sha256("\n".join((_FORMAT, *depends)))[:16]

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """What was put under this key."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            found, _ = arrays.read(path)
        except UserError:  # A killed machine may leave a file torn.
            return None
        return {name: torch.from_numpy(array.copy()) for name, array in found.items()}

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep tensors.

        Raises:
            UserError: the disk is full or the folder may not be written.
        """
        found = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
        arrays.write(self._path(key), found, {})

    def _path(self, key: str) -> Path:
        return self.folder / f"{files.sha256(key)}.safetensors"
