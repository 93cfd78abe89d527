"""Disk cache of encoded pictures and texts, shared by all runs.

One safetensors file for each picture or text, named by everything that its content depends on. The
cache can be deleted at any time.
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
    """A folder of cached encodings; an unreadable entry counts as missing."""

    def __init__(self, kind: str, *depends: str) -> None:
        """`depends` names what all entries depend on: the encoder's digest, the precision."""
        self.folder = files.cache() / kind / files.sha256("\n".join((_FORMAT, *depends)))[:16]

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors stored under this key; None if there are none."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            found, _ = arrays.read(path)
        except UserError:  # A crash of the machine can leave a truncated file.
            return None
        return {name: torch.from_numpy(array.copy()) for name, array in found.items()}

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store tensors.

        Raises:
            UserError: the disk is full or the folder may not be written.
        """
        found = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
        arrays.write(self._path(key), found, {})

    def _path(self, key: str) -> Path:
        return self.folder / f"{files.sha256(key)}.safetensors"
