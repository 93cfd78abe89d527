"""Hand-made runs, in milliseconds: an adapter of random weights that fits the tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.base import text as bases
from llm_lora.run import Manifest

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def make_adapter(
    folder: Path,
    *,
    name: str = "small_run",
    rank: int = 8,
    seed: int = 0,
    modules: tuple[str, ...] = MODULES,
    base: dict[str, Any] | None = None,
    template: str | None = None,
    **config: Any,
) -> Path:
    """An adapter folder as training leaves it; `config` goes into PEFT's configuration."""
    tiny = bases.resolve("tiny")
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    save_file(
        {
            f"base_model.model.{module}.lora_{side}.weight": random.normal(0, 0.1, shape).astype(
                np.float32
            )
            for module in modules
            for side, shape in (("A", (rank, 256)), ("B", (256, rank)))
        },
        folder / adapters.WEIGHTS,
    )
    targets = sorted({module.rpartition(".")[2] for module in modules})
    files.write_json(
        folder / adapters.CONFIG,
        {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": targets, **config},
    )
    files.write_json(folder / adapters.SCHEMA, SCHEMA)
    files.write_text(folder / adapters.TEMPLATE, template or bases.chat_template(tiny.path)[0])
    told = {"name": "tiny", "revision": None, "digest": tiny.digest, "bits": 4}
    files.write_json(
        folder / adapters.MANIFEST,
        {
            "format": 1,
            "name": name,
            "digest": adapters.digest(folder),
            "base": told | (base or {}),
            "schema_digest": files.file_sha256(folder / adapters.SCHEMA),
            "chat_template_digest": files.file_sha256(folder / adapters.TEMPLATE),
            "system": "Answer with JSON.",
            "sampling": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 64},
            "scores": None,
        },
    )
    return folder


FINISHED = Manifest(
    name="demo", recipe_digest="a", profile=None, seed=1, base_name="tiny", base_digest="b",
    dataset_fingerprint="c", adapter_digest="d", steps=1, passed=True, seconds=1.0,
    peak_memory_bytes=1, versions={}, files={},
)  # fmt: skip
"""What a finished run says of itself."""


def make_run(folder: Path, *, passed: bool = True, **adapter: Any) -> Path:
    """A finished run with such an adapter; its parent folder names the recipe."""
    make_adapter(folder / "adapter", **{"name": folder.parent.name, **adapter})
    files.write_text(folder / "recipe.yaml", "task: text\n")
    gate = {"name": "schema_valid", "threshold": 0.95, "value": 0.96 if passed else 0.5}
    digest = adapters.digest(folder / "adapter")
    files.write_json(
        folder / "report.json",
        {
            "adapter": {"digest": digest},
            "gates": [{**gate, "passed": passed}],
            "passed": passed,
            "scores": {},
        },
    )
    message = {"role": "user", "content": "It's a cough."}
    example = {"id": "1", "messages": [message], "answer": '{"a":1}'}
    files.write_text(folder / "dataset" / "held_out.jsonl", json.dumps(example) + "\n")
    return folder
