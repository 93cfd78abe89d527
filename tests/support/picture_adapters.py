"""Adapters for pictures, for tests: real files that fit the embedded base, with random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.base import image as picture_base
from llm_lora.store.store import Store, Version
from llm_lora.weights import header

RANK = 4
ENDS = ("attn1.to_q", "attn2.to_v", "ff.net.2", "self_attn.q_proj")
SAMPLING = {
    "steps": 3,
    "guidance": 3.0,
    "negative_prompt": "",
    "width": 64,
    "height": 64,
    "scheduler": "ddim",
}


def shapes() -> dict[str, list[int]]:
    """Modules of the embedded base that these adapters change, with the shapes of their weights."""
    base = picture_base.resolve("tiny")
    found = {}
    for part in ("unet", "text_encoder"):
        for path in (base.path / part).glob("*.safetensors"):
            for key, tensor in header.safetensors_header(path).items():
                module = key.removesuffix(".weight")
                if module.endswith(ENDS):
                    text = part != "unet" and not module.startswith("text_model.")
                    name = f"text_model.{module}" if text else module
                    found[f"{part}.{name}"] = tensor["shape"]
    return found


def write_adapter(
    folder: Path,
    name: str = "style_lora",
    *,
    seed: int = 0,
    scale: float = 0.3,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    config: dict[str, Any] | None = None,
    **manifest: Any,
) -> Path:
    """A complete adapter folder; each seed gives different weights."""
    folder.mkdir(parents=True, exist_ok=True)
    base = picture_base.resolve("tiny")
    save_file(tensors or lora(seed, scale), folder / adapters.WEIGHTS)
    usual = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "bias": "none"}
    files.write_json(folder / adapters.CONFIG, usual | (config or {}))
    told = {"name": base.name, "digest": base.digest, "revision": None}
    told |= {"architecture": base.family, "prediction": base.prediction}
    files.write_json(
        folder / adapters.MANIFEST,
        {
            "format": 1,
            "name": name,
            "task": "image",
            "digest": adapters.digest(folder),
            "base": told,
            "trigger": "ink sketch style",
            "sampling": SAMPLING,
            "scores": {"strength": 1.0},
        }
        | manifest,
    )
    return folder


def lora(seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray[Any, Any]]:
    """Both halves for some modules of the UNet and the text encoder."""
    random = np.random.default_rng(seed)
    found = {}
    for module, shape in shapes().items():
        inputs = math.prod(shape[1:])
        down, up = random.normal(size=(RANK, inputs)), random.normal(size=(shape[0], RANK))
        found[f"{module}.lora_A.weight"] = (down / math.sqrt(inputs)).astype(np.float32)
        found[f"{module}.lora_B.weight"] = (scale * up).astype(np.float32)
    return found


def report_of(folder: Path, *, passed: bool = True) -> dict[str, Any]:
    """A report on an adapter, with only what the store needs."""
    digest = json.loads((folder / adapters.MANIFEST).read_text())["digest"]
    value = 1.0 if passed else 0.2
    gate = {"name": "strength", "threshold": 0.6, "value": value, "passed": passed}
    return {
        "recipe": {"name": "small", "digest": "a" * 64, "profile": None},
        "base": {"name": "tiny"},
        "adapter": {"digest": digest, "rank": RANK},
        "scores": {"strength": value},
        "gates": [gate],
        "passed": passed,
    }


def publish(
    store: Store, folder: Path, name: str, *, seed: int = 0, live: bool = True, **more: Any
) -> Version:
    """Publish an adapter of its own seed, from `folder`/SEED."""
    made = write_adapter(folder / str(seed), seed=seed, **more)
    base = picture_base.resolve("tiny")
    version = store.publish(made, name, report=report_of(made), by="test", base=base)
    if live:
        store.promote(name, version.number, by="test", base=base)
    return version
