"""Key by key from an adapter onto its base, and everything that a server would not say."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapter_folders import RANK, lora, write_adapter

from llm_lora.adapter import folder as adapters
from llm_lora.adapter.mapping import text as mapping
from llm_lora.base import text as bases
from llm_lora.base.text import Base
from llm_lora.errors import UserError
from llm_lora.weights.header import safetensors_header

TINY = bases.resolve("tiny")
PREFIX = "base_model.model."


def problems(folder: Path, base: Base | None = TINY) -> str:
    """Every finding, one a line."""
    return "\n".join(map(str, mapping.problems(adapters.read(folder), base)))


def test_an_adapter_that_fits_has_no_findings(tmp_path: Path) -> None:
    adapter = adapters.read(write_adapter(tmp_path / "a"))
    assert mapping.problems(adapter, TINY) == []
    mapping.effect(adapter, TINY)
    mapping.effect(adapter)


@pytest.mark.parametrize(
    ("rank", "served"), [(1, 1), (2, 8), (8, 8), (9, 16), (64, 64), (300, 320), (512, 512)]
)
def test_the_rank_that_a_server_must_allow(rank: int, served: int) -> None:
    assert mapping.server_rank(rank) == served


def test_a_rank_above_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rank 513 is above 512, the most that vLLM serves"):
        mapping.server_rank(513)
    tensors = {
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((513, 256), np.float32),
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((256, 513), np.float32),
    }
    folder = write_adapter(tmp_path / "a", tensors=tensors, r=513)
    assert "rank 513 is above 512" in problems(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "OLoRA"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"layer_replication": [[0, 4], [2, 6]]},
        {"alora_invocation_tokens": [1, 2]},
        {"trainable_token_indices": [7]},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
        {"kasa_config": {"beta": 1e-4}},
        {"peft_type": "LOHA"},
        {"target_modules": None},
        {"lora_alpha": 0},
    ],
    ids=lambda config: "-".join(f"{key}={value}" for key, value in config.items())[:40],
)
def test_features_that_are_not_served_are_named(tmp_path: Path, config: dict[str, Any]) -> None:
    found = problems(write_adapter(tmp_path / "a", **config))
    assert found.count("\n") == 0
    assert next(iter(config)) in found
    assert "adapter_config.json" in found


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "mica", None])
def test_plain_ways_to_begin_are_served(tmp_path: Path, init: object) -> None:
    folder = write_adapter(tmp_path / "a", init_lora_weights=init, use_rslora=True, loftq_config={})
    assert problems(folder) == ""


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_weights_without_effect(tmp_path: Path, side: str) -> None:
    tensors = lora(TINY)
    for key in tensors:
        if side in key:
            tensors[key] = np.zeros_like(tensors[key])
    # Minus zero is zero as well.
    first = next(key for key in tensors if side in key)
    tensors[first] = -tensors[first]
    assert "no effect" in problems(write_adapter(tmp_path / "a", tensors=tensors))
    # A single module that was trained is an effect.
    tensors[first] = np.full_like(tensors[first], 1e-30)
    assert problems(write_adapter(tmp_path / "b", tensors=tensors)) == ""


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, kind: type, value: float) -> None:
    tensors = {key: half.astype(kind) for key, half in lora(TINY).items()}
    assert problems(write_adapter(tmp_path / "a", tensors=tensors)) == ""
    last = sorted(tensors)[-1]
    tensors[last][-1, -1] = value
    found = problems(write_adapter(tmp_path / "b", tensors=tensors))
    assert f"1 tensors hold NaN or infinity, the first: {last}" in found


def as_type(folder: Path, kind: str, width: int, fill: bytes) -> Path:
    """Rewrite an adapter's weights in a type that numpy does not have, each number `fill`."""
    path = folder / adapters.WEIGHTS
    written: dict[str, Any] = {}
    end = 0
    for key, tensor in safetensors_header(path).items():
        size = int(np.prod(tensor["shape"])) * width
        written[key] = {"dtype": kind, "shape": tensor["shape"], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(written).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + fill * (end // len(fill)))
    manifest = json.loads((folder / adapters.MANIFEST).read_text())
    manifest["digest"] = adapters.digest(folder)
    (folder / adapters.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_types_that_numpy_lacks(tmp_path: Path) -> None:
    def one(fill: bytes) -> str:
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return problems(as_type(write_adapter(tmp_path / "a"), "BF16", 2, fill))

    assert one(b"\x80\x3f") == ""  # 1.0
    assert "no effect" in one(b"\x00\x80")  # -0.0
    assert "NaN or infinity" in one(b"\x80\x7f")
    found = problems(as_type(write_adapter(tmp_path / "b"), "F8_E4M3", 1, b"\x38"))
    assert "numbers of type F8_E4M3, which servers do not load" in found


def test_weights_whose_header_lies(tmp_path: Path) -> None:
    """Sizes add up, but one tensor is longer than its shape: the library refuses it."""
    folder = write_adapter(tmp_path / "a")
    adapter = adapters.read(folder)
    path = folder / adapters.WEIGHTS
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    first = min(
        (key for key in header if key != "__metadata__"),
        key=lambda key: header[key]["data_offsets"],
    )
    header[first]["dtype"] = "F64"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    (found,) = mapping.problems(adapter, TINY)
    assert "damaged" in str(found)


def rename(old: str, new: str) -> dict[str, np.ndarray[Any, Any]]:
    return {key.replace(old, new): half for key, half in lora(TINY).items()}


@pytest.mark.parametrize(
    ("old", "new", "count", "first"),
    [
        # vLLM compares only the last part of a name: these would load, and do nothing.
        ("layers.5.", "layers.99.", 2, "model.layers.99.mlp.down_proj"),
        ("model.layers", "transformer.h", 12, "transformer.h.0.mlp.down_proj"),
        ("self_attn.q_proj", "attn.q_proj", 6, "model.layers.0.attn.q_proj"),
        # A norm has a weight, but no linear one.
        ("layers.0.self_attn.q_proj", "layers.0.input_layernorm", 1, "layers.0.input_layernorm"),
    ],
)
def test_keys_that_meet_no_weight(
    tmp_path: Path, old: str, new: str, count: int, first: str
) -> None:
    found = problems(write_adapter(tmp_path / "a", tensors=rename(old, new)))
    assert f"{count} of 12 adapted modules are not linear weights of tiny, the first: " in found
    assert first in found
    assert "a server would ignore them; serve it on tiny, the base it was" in found


def test_halves_that_do_not_fit(tmp_path: Path) -> None:
    tensors = lora(TINY)
    key = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_"
    tensors[f"{key}A.weight"] = np.ones((RANK, 128), np.float32)
    tensors[f"{key}B.weight"] = np.ones((512, RANK), np.float32)
    found = problems(write_adapter(tmp_path / "a", tensors=tensors))
    assert "1 of 12 adapted modules have another shape in tiny" in found
    assert "layers.0.self_attn.q_proj ([512, 128] on [256, 256])" in found


def test_embeddings_are_not_served(tmp_path: Path) -> None:
    tensors = lora(TINY) | {
        f"{PREFIX}lm_head.lora_A.weight": np.ones((RANK, 256), np.float32),
        f"{PREFIX}lm_head.lora_B.weight": np.ones((4096, RANK), np.float32),
    }
    folder = write_adapter(tmp_path / "a", tensors=tensors)
    assert "lm_head: vLLM does not apply adapted embeddings for every model" in problems(folder)


def test_another_base_is_named_with_all_else(tmp_path: Path) -> None:
    """One error tells everything."""
    tensors = rename("layers.5.", "layers.99.")
    adapter = adapters.read(write_adapter(tmp_path / "a", tensors=tensors, use_dora=True))
    other = replace(TINY, name="other/model", digest="e" * 64)
    with pytest.raises(UserError) as caught:
        mapping.effect(adapter, other)
    found = [problem.what for problem in caught.value.problems]
    assert len(found) == 3
    assert found[0] == "use_dora=True is not served by vLLM"
    assert found[1].startswith("trained on tiny (")
    assert found[1].endswith("not on other/model (eeeeeeeeeeee)")
    assert "2 of 12 adapted modules" in found[2]


def test_a_base_in_several_files(tmp_path: Path) -> None:
    """Shards with their index, as large models come."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    folder = tmp_path / "base"
    shutil.copytree(TINY.path, folder)
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    (folder / "model.safetensors").unlink()
    index = {}
    for number, start in enumerate((0, 1, 2), 1):
        names = sorted(shapes)[start::3]
        shard = f"model-{number:05}-of-00003.safetensors"
        save_file({key: np.zeros(shapes[key], np.float16) for key in names}, folder / shard)
        index |= dict.fromkeys(names, shard)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    base = bases.resolve(str(folder))
    assert problems(write_adapter(tmp_path / "a", base=base), base) == ""
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="1 of 3 weight files are missing"):
        problems(tmp_path / "a", base)


@pytest.mark.parametrize("on_disk", ["language_model.model.", "model.language_model.", "model."])
@pytest.mark.parametrize("in_memory", ["model.language_model.", "language_model.model.", "model."])
def test_the_text_model_of_a_multimodal_base(tmp_path: Path, on_disk: str, in_memory: str) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "base"
    shutil.copytree(TINY.path, folder)
    shape, name = (8, 16), "layers.0.self_attn.q_proj"
    tower = "model.visual.layers.0.self_attn.q_proj.weight"
    weights = {f"{on_disk}{name}.weight": np.zeros(shape, np.float16)}
    save_file(weights | {tower: np.zeros((4, 4), np.float16)}, folder / "model.safetensors")
    base = bases.resolve(str(folder))
    tensors = {
        f"{PREFIX}{in_memory}{name}.lora_A.weight": np.ones((RANK, 16), np.float32),
        f"{PREFIX}{in_memory}{name}.lora_B.weight": np.ones((8, RANK), np.float32),
    }
    assert problems(write_adapter(tmp_path / "a", tensors=tensors, base=base), base) == ""
