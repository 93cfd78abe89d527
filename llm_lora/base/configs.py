"""Configurations and tokenizers for single-file bases, which do not contain them.

Configurations ship for each family. All tokenizers are CLIP's and differ only in the padding token,
so CLIP's merges ship once, and a complete folder in diffusers' layout is assembled in the cache on
first use. `pretraining/picture_configs.py` made the files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llm_lora import files
from llm_lora.base.family import CONFIGS, Family

MERGES = CONFIGS / "merges.txt"
"""CLIP's byte-pair merges, in the form that tokenizers read."""

_VOCABULARY = "vocab.json"


def folder(family: Family) -> Path:
    """A folder in diffusers' layout with configurations and tokenizers of a family, no weights.

    Raises:
        UserError: the cache cannot be written.
    """
    source = CONFIGS / family
    shipped = {
        path.relative_to(source): files.read_bytes(path) for path in sorted(source.rglob("*.json"))
    }
    merges = files.read_bytes(MERGES)
    content = [f"{path.as_posix()} {files.sha256(data)}" for path, data in shipped.items()]
    mark = files.sha256("\n".join([*content, files.sha256(merges)]))[:16]
    target = files.cache() / "configs" / f"{family}-{mark}"
    # Files are written atomically, and their content is determined by the folder's name.
    for path, data in shipped.items():
        _put(target / path, data)
    for part in source.glob("tokenizer*"):
        _put(target / part.name / MERGES.name, merges)
        if not (target / part.name / _VOCABULARY).is_file():
            told = vocabulary(merges.decode().splitlines()[1:])
            data = json.dumps(told, ensure_ascii=False).encode()
            _put(target / part.name / _VOCABULARY, data)
    return target


def _put(path: Path, data: bytes) -> None:
    if not path.is_file():
        files.write_bytes(path, data)


def vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """CLIP's vocabulary: bytes, bytes that end a word, merges, start and end tokens.

    Source: simple_tokenizer.py of openai/CLIP.
    """
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}


def _letters() -> list[str]:
    """A visible letter for each byte, in the order of CLIP's vocabulary (GPT-2's letters)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]
