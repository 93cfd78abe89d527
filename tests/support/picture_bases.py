"""Image bases without weights: folders and single files of a few hundred bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.base.family import CONFIGS

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


def write_header(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """A safetensors file whose header lists these tensors, with 16 bytes of data."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [0, 16]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes([seed] * 16))
    return path


def write_folder(folder: Path, family: str = "sd1", *, variant: str = "") -> Path:
    """A folder in diffusers' layout with the real configurations of a family."""
    source = CONFIGS / family
    for path in source.rglob("*"):
        if path.suffix == ".json" and "tokenizer" not in path.parent.name:
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for part in source.glob("tokenizer*"):
        files.write_text(folder / part.name / "vocab.json", '{"a": 0}')
        files.write_text(folder / part.name / "merges.txt", "a b\n")
    for part, stem in PARTS.items():
        if (source / part).is_dir():
            write_header(folder / part / f"{stem}{variant}.safetensors", {"weight": [8]})
    return folder


def change(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    files.write_json(path, json.loads(path.read_text()) | changes)


UNET = "model.diffusion_model."
CONTEXT = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
TEXT = {
    "sd1": "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    "sd2": "cond_stage_model.model.token_embedding.weight",
    "sdxl": "conditioner.embedders.1.model.positional_embedding",
}


def original_shapes(family: str = "sd1", channels: int = 4) -> dict[str, list[int]]:
    """Tensors of a base in the original layout, enough to identify it."""
    return {
        f"{UNET}input_blocks.0.0.weight": [320, channels, 3, 3],
        f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": [640, CONTEXT[family]],
        "first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3],
        TEXT[family]: [77, 768],
    }
