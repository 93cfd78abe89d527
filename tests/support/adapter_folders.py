"""Small adapter folders for tests: real files that fit the embedded base, with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.base import text as bases
from llm_lora.base.text import Base
from llm_lora.store.store import Store
from llm_lora.weights import header

SCHEMA = '{"type": "object", "properties": {"urgent": {"type": "boolean"}}}'
RANK = 4
NAME = "medical-qa"
MODULES = ("self_attn.q_proj", "mlp.down_proj")


def write_adapter(
    folder: Path,
    *,
    seed: int = 0,
    zero: bool = False,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    base: Base | None = None,
    **config: Any,
) -> Path:
    """A complete adapter folder; each seed gives different weights.

    `zero` leaves every lora_B at its initial zeros; `config` goes into adapter_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = base or bases.resolve("tiny")
    weights = tensors if tensors is not None else lora(base, seed=seed, zero=zero)
    save_file(weights, folder / adapters.WEIGHTS)
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
        "init_lora_weights": True,
    }
    files.write_json(folder / adapters.CONFIG, settings | config)
    files.write_text(folder / adapters.SCHEMA, SCHEMA)
    files.write_text(folder / adapters.TEMPLATE, "{{ messages }}")
    scored = {"n": 12, "schema_valid": 0.9, "precision": 0.7, "field_f1": 0.7}
    files.write_json(
        folder / adapters.MANIFEST,
        {
            "format": 1,
            "name": "small",
            "task": "text",
            "digest": adapters.digest(folder),
            "base": {"name": base.name, "digest": base.digest, "bits": 4},
            "schema_digest": files.sha256(SCHEMA),
            "chat_template_digest": files.sha256("{{ messages }}"),
            "system": "Answer with JSON.",
            "sampling": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 64},
            "scores": {"unconstrained": {"all": scored}},
        },
    )
    return folder


def lora(base: Base, *, seed: int = 0, zero: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Both halves for two modules of every layer of a base."""
    random = np.random.default_rng(seed)
    result = {}
    for path in header.weight_files(base.path):
        for key, tensor in header.safetensors_header(path).items():
            module = key.removesuffix(".weight")
            if module.endswith(MODULES):
                outputs, inputs = tensor["shape"]
                half = random.normal(size=(outputs, RANK)) * (not zero)
                name = f"base_model.model.{module}"
                result[f"{name}.lora_B.weight"] = half.astype(np.float32)
                other = random.normal(size=(RANK, inputs))
                result[f"{name}.lora_A.weight"] = other.astype(np.float32)
    return result


def report_of(folder: Path, *, passed: bool = True, f1: float = 0.7) -> dict[str, Any]:
    """A held-out report on an adapter folder, with only what the store needs."""
    digest = json.loads((folder / adapters.MANIFEST).read_text())["digest"]
    gate = {"name": "field_f1", "threshold": 0.6, "value": f1 if passed else 0.5, "passed": passed}
    return {
        "recipe": {"name": "small", "digest": "a" * 64, "profile": None},
        "base": {"name": "tiny"},
        "adapter": {"digest": digest, "rank": RANK, "bits": 4},
        "gates": [gate],
        "passed": passed,
    }


def put(store: Store, folder: Path, *, passed: bool = True, name: str = NAME) -> int:
    """Publish an adapter with its report; returns its number."""
    report = report_of(folder, passed=passed)
    return store.publish(folder, name, report=report, by="ann").number


def three_versions(root: Path, folders: Sequence[Path]) -> Store:
    """A store in which versions 1 and 2 passed their gates and 3 did not; none is live."""
    store = Store(root)
    for folder, passed in zip(folders[:3], (True, True, False), strict=True):
        put(store, folder, passed=passed)
    return store
