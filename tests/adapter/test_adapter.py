"""Adapter folders are verified from disk before anything trusts them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.manifest import Answered, Manifest, Origin
from llm_lora.base.text import Base
from llm_lora.errors import UserError

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def write(
    folder: Path,
    *,
    rank: int = 4,
    alpha: object = 8,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    shapes = tensors or {
        f"{MODULE}.lora_A.weight": (rank, 8),
        f"{MODULE}.lora_B.weight": (8, rank),
    }
    save_file(
        {key: np.ones(shape, np.float32) for key, shape in shapes.items()},
        folder / adapters.WEIGHTS,
    )
    (folder / adapters.CONFIG).write_text(json.dumps({"r": rank, "lora_alpha": alpha}))
    files.write_json(
        folder / adapters.MANIFEST,
        {
            "digest": adapters.digest(folder),
            "base": {"name": "tiny", "digest": "d" * 64},
            "schema_digest": files.sha256("{}"),
            "chat_template_digest": files.sha256("hello"),
        },
    )
    files.write_text(folder / adapters.SCHEMA, "{}")
    files.write_text(folder / adapters.TEMPLATE, "hello")
    return folder


def test_a_whole_adapter_is_read(tmp_path: Path) -> None:
    adapter = adapters.read(write(tmp_path / "a"))
    assert (adapter.rank, adapter.alpha, adapter.base_name) == (4, 8, "tiny")
    assert adapter.modules == ("model.layers.0.self_attn.q_proj",)
    assert adapter.schema_path == tmp_path / "a" / "answer.schema.json"


@pytest.mark.parametrize(
    ("alpha", "shown"), [(0.5, "0.5"), (45.25, "45.25"), (8.0, "8"), (16, "16")]
)
def test_alpha_need_not_be_whole(tmp_path: Path, alpha: float, shown: str) -> None:
    """An adapter that goes on from a WebUI's file keeps the alpha that it has there."""
    adapter = adapters.read(write(tmp_path / "a", alpha=alpha))
    assert (adapter.alpha, str(adapter.alpha)) == (alpha, shown)
    assert adapters.scale(adapter) == alpha / 4


@pytest.mark.parametrize("alpha", [None, "8", True, float("nan"), float("inf"), 10**400, {}])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: object) -> None:
    with pytest.raises(UserError, match=r"adapter_config.json: lora_alpha must be a number, not"):
        adapters.read(write(tmp_path / "a", alpha=alpha))


def cut_weights(folder: Path) -> None:
    path = folder / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])


def huge_header(folder: Path) -> None:
    (folder / adapters.WEIGHTS).write_bytes(b"\xff" * 16)


def other_weights(folder: Path) -> None:
    path = folder / adapters.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def other_rank(folder: Path) -> None:
    files.write_json(folder / adapters.CONFIG, {"r": 8, "lora_alpha": 8})


def pickled(folder: Path) -> None:
    (folder / adapters.WEIGHTS).rename(folder / "adapter_model.bin")


def no_manifest(folder: Path) -> None:
    (folder / adapters.MANIFEST).unlink()


def broken_manifest(folder: Path) -> None:
    (folder / adapters.MANIFEST).write_text("{")


def other_schema(folder: Path) -> None:
    (folder / adapters.SCHEMA).write_text('{"type":"object"}')


def no_template(folder: Path) -> None:
    (folder / adapters.TEMPLATE).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "damaged or incomplete safetensors file"),
        (huge_header, "damaged or incomplete safetensors file"),
        (other_weights, "the weights were changed after training"),
        (other_rank, "lora_A.weight has shape .*, but the rank is 8"),
        (pickled, r"the weights are pickled \(adapter_model.bin\)"),
        (no_manifest, "llm_lora.json: missing; copy the whole adapter folder"),
        (other_schema, "answer.schema.json: not the file that training used"),
        (no_template, "chat_template.jinja: not the file that training used"),
        (broken_manifest, "llm_lora.json:1: not JSON"),
    ],
)
def test_damage_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = write(tmp_path / "a")
    damage(folder)
    with pytest.raises(UserError, match=message):
        adapters.read(folder)


def test_half_a_pair_and_foreign_tensors_are_refused(tmp_path: Path) -> None:
    half = write(tmp_path / "half", tensors={f"{MODULE}.lora_A.weight": (4, 8)})
    with pytest.raises(UserError, match=r"half of the pair is missing for model\.layers\.0"):
        adapters.read(half)
    foreign = write(tmp_path / "foreign", tensors={"model.embed_tokens.weight": (4, 8)})
    with pytest.raises(UserError, match=r"unexpected tensor model.embed_tokens.weight"):
        adapters.read(foreign)


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("shape", [(), (4,), (0, 8)])
def test_halves_without_two_sides_or_any_rank_are_refused(
    tmp_path: Path, rank: int, shape: tuple[int, ...]
) -> None:
    for side, other in (("A", (8, rank)), ("B", (rank, 8))):
        tensors = {f"{MODULE}.lora_{side}.weight": shape}
        tensors |= {f"{MODULE}.lora_{'BA'[side == 'B']}.weight": other}
        with pytest.raises(UserError, match=rf"has shape .*, but the rank is {rank}"):
            adapters.read(write(tmp_path / side, rank=rank, tensors=tensors))


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    adapter = adapters.read(write(tmp_path / "a"))
    other = Base("other", tmp_path, "e" * 64, "Qwen3ForCausalLM", 2048, None, False)
    with pytest.raises(UserError, match=r"was trained on tiny \(dddddddddddd\), not on other"):
        adapters.require_base(adapter, other)
    same = Base("tiny", tmp_path, "d" * 64, "Qwen3ForCausalLM", 2048, None, True)
    adapters.require_base(adapter, same)


@pytest.mark.parametrize(
    ("task", "base", "own"),
    [("text", {"bits": 4}, {"system": "Be brief."}), ("image", {"prediction": "v"}, {})],
)
def test_a_manifest_is_read_as_it_was_written(
    task: str, base: dict[str, Any], own: dict[str, Any]
) -> None:
    scored = {"schema_valid": 1.0, "precision": 0.5, "field_f1": 0}
    made = Manifest(
        name="a",
        task=task,
        digest="e" * 64,
        base=Origin("tiny", "d" * 64, "main", "sd1", **base),
        sampling={"steps": 4},
        scores={"constrained": {}, "unconstrained": {"all": scored}},
        versions={"peft": "1"},
        **own,
    )
    assert Manifest.from_json(made.to_json(), Path()) == made
    assert made.answered("constrained", "unconstrained") == Answered(1.0, 0)
    assert made.answered("constrained") is None
    # Without a precision it is a mean in which values that both sides left out counted as right.
    old = replace(made, scores={"unconstrained": {"all": {"schema_valid": 1.0, "field_f1": 0.9}}})
    assert old.answered("unconstrained") == Answered(1.0, None)


def test_the_manifest_is_json_a_person_can_read(tmp_path: Path) -> None:
    text = (write(tmp_path / "a") / adapters.MANIFEST).read_text()
    assert json.loads(text)["base"]["name"] == "tiny"
    assert text.count("\n") > 3
