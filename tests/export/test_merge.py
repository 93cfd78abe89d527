"""Merging: exact against PEFT and the engine's own NF4, in little memory, complete or absent."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.commands import Command
from support.places import TESTS

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.folder import Adapter
from llm_lora.adapter.manifest import Manifest, Origin
from llm_lora.base import text as bases
from llm_lora.errors import UserError
from llm_lora.export import merge as merging
from llm_lora.weights import tensors
from llm_lora.weights.tensors import Tensor


def test_shards_hold_what_they_may_and_keep_the_order() -> None:
    made = [Tensor(str(i), "F32", (size,), Path(), 0, size) for i, size in enumerate((4, 4, 9, 1))]
    assert [[one.name for one in part] for part in tensors.shards(made, 8)] == [
        ["0", "1"],
        ["2"],
        ["3"],
    ]


@pytest.mark.parametrize("limit", [10**6, 165])
def test_what_is_written_is_what_the_library_reads(tmp_path: Path, limit: int) -> None:
    random = np.random.default_rng(0)
    wanted = {
        "b": random.normal(size=(5, 7)).astype(np.float32),
        "a": random.normal(size=(3, 4)).astype(np.float16),
        "c": random.integers(0, 9, (2, 2)),
    }
    save_file(wanted, tmp_path / "source.safetensors")
    source = tensors.of_file(tmp_path / "source.safetensors")
    out = tmp_path / "out"
    tensors.write_model(out, list(source.values()), Tensor.pieces, limit)
    read: dict[str, Any] = {}
    for path in out.glob("*.safetensors"):
        read |= load_file(path)
    assert read.keys() == wanted.keys()
    assert all(np.array_equal(read[name], wanted[name]) for name in wanted)
    again = tensors.of_model(out)
    assert {name: tensor.read() for name, tensor in again.items()} == {
        name: tensor.read() for name, tensor in source.items()
    }
    assert (out / tensors.INDEX).is_file() == (limit == 165)
    assert len(list(out.glob("*.safetensors"))) == (2 if limit == 165 else 1)


def test_a_workspace_sweeps_what_the_dead_left_and_spares_the_living(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    dead = tmp_path / ".merged.abc.unfinished"
    (dead / "deep").mkdir(parents=True)
    alive = tmp_path / ".merged.def.unfinished"
    alive.mkdir()
    handle = os.open(alive, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with files.workspace(target) as space:
        assert not dead.exists() and alive.is_dir()
        (space / "built").mkdir()
        (space / "built" / "file").write_text("x")
        files.put(space / "built", target)
    os.close(handle)
    assert (target / "file").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "merged"]
    with pytest.raises(UserError, match="this path exists already"):
        files.require_new(target)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.workspace(tmp_path / "out") as space:
        (space / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["4bit", "nf4", "NF4", "int4"])
def test_merging_into_4_bits_is_refused_with_the_reason(word: str) -> None:
    with pytest.raises(UserError, match="changes are smaller than the steps between 4-bit numbers"):
        merging.check_into(word)


def test_other_words_are_told_apart() -> None:
    with pytest.raises(UserError, match="one of auto, dequantised, original"):
        merging.check_into("bf16")
    with pytest.raises(UserError, match=r"lora\.bits: 16\); merge into original"):
        merging._candidates("dequantised", 16, measure=True)
    assert merging._candidates("auto", 16, measure=True) == ["original"]
    assert merging._candidates("auto", 4, measure=False) == ["dequantised"]


def test_examples_are_spread_over_all() -> None:
    assert merging.spread(list(range(10)), 5) == [0, 2, 4, 6, 8]  # type: ignore[arg-type]
    assert merging.spread([1, 2], 5) == [1, 2]  # type: ignore[arg-type]


def test_other_things_than_plain_lora_are_refused(tmp_path: Path) -> None:
    manifest = Manifest(digest="d", base=Origin("tiny", "d"))
    adapter = Adapter(tmp_path, "d", rank=16, alpha=8, modules=(), manifest=manifest)

    def scale(**config: object) -> float:
        files.write_json(tmp_path / adapters.CONFIG, {"bias": "none", **config})
        return adapters.scale(adapter)

    assert scale(init_lora_weights=True) == 0.5
    assert scale(use_rslora=True) == 2.0
    for config in (
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 4}},
        {"init_lora_weights": "pissa"},
    ):
        with pytest.raises(UserError, match=f"{next(iter(config))}=.*only plain LoRA"):
            scale(**config)


def merge(base: Path, adapter: Path, out: Path, into: str = "original", **options: Any) -> Path:
    """Merge like the command, without a run."""
    from llm_lora.engines.text import merging as engine

    out.mkdir()
    found = bases.resolve(str(base))
    untied = engine.merge(
        found,
        adapters.read(adapter),
        out,
        into=into,
        **{"precision": "fp32", "shard_bytes": 10**9, **options},
    )
    for path in base.glob("*.json"):
        if path.name != tensors.INDEX:
            files.write_bytes(out / path.name, path.read_bytes())
    if untied:
        config = {**bases.read_config(base), "tie_word_embeddings": False}
        files.write_json(out / "config.json", config)
    return out


def test_a_merged_weight_is_the_base_plus_scale_times_b_a(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from llm_lora.engines.text import merging as engine

    # Two rows at a time; small whole numbers, so that every sum is exact.
    monkeypatch.setattr(engine, "_PART", 8)
    random = np.random.default_rng(1)
    weight, a, b = (
        random.integers(-4, 5, shape).astype(np.float32) for shape in ((7, 4), (2, 4), (7, 2))
    )
    save_file({"layers.0.q_proj.weight": weight}, tmp_path / tensors.WEIGHTS)
    prefix = "base_model.model.layers.0.q_proj"
    save_file(
        {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, tmp_path / adapters.WEIGHTS
    )
    files.write_json(tmp_path / adapters.CONFIG, {"bias": "none"})
    adapter = Adapter(tmp_path, "d", 2, 6, ("layers.0.q_proj",), {})
    ((name, update),) = engine._updates(adapter).items()
    (source,) = tensors.of_file(tmp_path / tensors.WEIGHTS).values()
    assert name == source.name
    merged = engine._merged(source, update, None, torch.float32)
    found = np.frombuffer(merged, np.float32).reshape(7, 4)
    assert np.array_equal(found, weight + 6 / 2 * (b @ a))
    kept = engine._merged(source, None, None, torch.float32)
    assert bytes(kept) == weight.tobytes()


NF4 = (
    "-1.0 -0.6961928 -0.52507305 -0.3949175 -0.28444138 -0.18477343 -0.091050036 0.0 "
    "0.0795803 0.1609302 0.2461123 0.33791524 0.44070983 0.562617 0.72295684 1.0"
)
"""The 16 values of NF4 (Dettmers et al. 2023, appendix E)."""


def test_what_nf4_makes_of_a_weight_is_the_nearest_of_its_16_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from bitsandbytes import functional as bnb
    from transformers import BitsAndBytesConfig

    from llm_lora.engines.text import merging as engine

    def through(weight: torch.Tensor, double: bool) -> torch.Tensor:
        options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
        config = BitsAndBytesConfig(load_in_4bit=True, **options)
        found = weight.clone()
        engine._through_nf4(found, config, torch.float32, torch.device("cpu"))
        return found

    monkeypatch.setattr(engine, "_PART", 1024)
    # 320 blocks of 64, more than share one scale of scales; each block has a scale of its own.
    weight = torch.randn(40, 512, generator=torch.Generator().manual_seed(3))
    weight *= torch.linspace(0.5, 4, 40)[:, None]
    blocks = weight.view(-1, 64)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    values = torch.tensor([float(one) for one in NF4.split()])
    nearest = ((blocks / scales)[..., None] - values).abs().argmin(dim=-1)
    wanted = (values[nearest] * scales).view(40, 512)
    assert torch.allclose(through(weight, double=False), wanted, rtol=1e-5)
    # Double quantisation rounds the scales to 8 bits, as the library does with a whole tensor.
    doubled = through(weight, double=True)
    packed, state = bnb.quantize_4bit(
        weight.view(-1), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    assert torch.equal(doubled, bnb.dequantize_4bit(packed, state).view(40, 512))
    assert (doubled - wanted).abs().max() < 0.02 * scales.max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_merge_is_pefts_merge_and_unload(tmp_path: Path, kind: str, tied: bool) -> None:
    import torch
    from support import random_models as models

    base = models.make_model(tmp_path / "base", kind, tie_word_embeddings=tied)
    adapter = models.make_adapter(tmp_path / "adapter", base)
    out = merge(base, adapter, tmp_path / "out")
    merged = models.logits(models.load(out))
    assert torch.equal(merged, models.logits(models.with_adapter(base, adapter).merge_and_unload()))
    assert (merged - models.logits(models.load(base))).abs().max() > 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_bases_keep_their_numbers_and_are_rounded_once(tmp_path: Path, dtype: str) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file as load_torch
    from support import random_models as models
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    base = models.make_model(tmp_path / "base", dtype=kind)
    adapter = models.make_adapter(tmp_path / "adapter", base)
    out = merge(base, adapter, tmp_path / "out")
    found = load_torch(out / tensors.WEIGHTS)
    assert {tensor.dtype for tensor in found.values()} == {kind}
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=kind)
    wanted = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.slow
def test_shards_in_and_out_change_nothing(tmp_path: Path) -> None:
    import torch
    from support import random_models as models

    whole = models.make_model(tmp_path / "whole")
    parts = models.make_model(tmp_path / "parts", shard="200KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    adapter = models.make_adapter(tmp_path / "a", whole)
    other = models.make_adapter(tmp_path / "b", parts)
    one = merge(whole, adapter, tmp_path / "one")
    many = merge(parts, other, tmp_path / "many", shard_bytes=100_000)
    written = tensors.of_model(many)
    assert len({tensor.file for tensor in written.values()}) > 2
    for path in many.glob("*.safetensors"):
        held = [tensor for tensor in written.values() if tensor.file == path]
        assert len(held) == 1 or sum(tensor.size for tensor in held) <= 100_000
    assert torch.equal(models.logits(models.load(one)), models.logits(models.load(many)))


@pytest.mark.slow
def test_an_adapted_output_embedding_is_untied_from_the_input(tmp_path: Path) -> None:
    import torch
    from support import random_models as models

    base = models.make_model(tmp_path / "base", tie_word_embeddings=True)
    adapter = models.make_adapter(tmp_path / "adapter", base, ["lm_head", "q_proj"])
    out = merge(base, adapter, tmp_path / "out")
    assert bases.read_config(out)["tie_word_embeddings"] is False
    merged = models.load(out)
    assert torch.equal(
        merged.get_input_embeddings().weight, models.load(base).get_input_embeddings().weight
    )
    wanted = models.logits(models.with_adapter(base, adapter))
    assert torch.allclose(models.logits(merged), wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_dequantised_base_is_the_engines_own_to_the_bit(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from support import random_models as models

    from llm_lora.engines.shared import loading
    from llm_lora.engines.text import merging as engine

    # Small blocks, so that these small matrices take several.
    monkeypatch.setattr(engine, "_PART", 1024)
    base = models.make_model(tmp_path / "base", dtype=torch.bfloat16)
    adapter = models.make_adapter(tmp_path / "adapter", base, ["q_proj", "down_proj"])
    out = merge(base, adapter, tmp_path / "out", "dequantised", precision=precision)
    found = load_torch(out / tensors.WEIGHTS)
    loaded = loading.load_base(bases.resolve(str(base)), bits=4, precision=precision)
    wanted = loaded.model.dequantize().state_dict()
    original = load_torch(base / tensors.WEIGHTS)
    halves = load_torch(adapter / adapters.WEIGHTS)
    changed = 0
    for name, tensor in found.items():
        expected = wanted[name].float()
        half = f"base_model.model.{name.removesuffix('weight')}lora_A.weight"
        if half in halves:
            expected = expected + (halves[half.replace("_A", "_B")] @ halves[half]) * 3.0
        assert torch.equal(tensor, expected.to(torch.bfloat16)), name
        changed += not torch.equal(tensor, original[name])
    assert changed == 2 * 7


@pytest.mark.slow
def test_rows_that_end_within_a_block_are_refused_in_nf4_on_a_cpu(tmp_path: Path) -> None:
    """bitsandbytes reads them wrongly with AVX-512; once that is fixed, the refusal can go."""
    import torch
    from bitsandbytes import functional as bnb
    from support import random_models as models

    from llm_lora.engines.shared import loading

    if loading.device().type != "cpu":
        pytest.skip("only the CPU's way of reading NF4 is concerned")
    weight = torch.randn(64, 96)
    rows, flat = (
        bnb.dequantize_4bit(*bnb.quantize_4bit(one, quant_type="nf4", blocksize=64))
        for one in (weight, weight.flatten())
    )
    assert (flat.reshape(64, 96) - weight).abs().max() < 1
    reads_wrongly = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert torch.equal(rows, flat.reshape(64, 96)) is not reads_wrongly
    base = bases.resolve(str(models.make_model(tmp_path / "base", intermediate_size=96)))
    with pytest.raises(UserError, match=r"down_proj has 96 inputs, no multiple of 64"):
        loading.load_base(base, bits=4, precision="fp32")
    loading.load_base(base, bits=16, precision="fp32")


@pytest.mark.slow
def test_an_adapter_that_has_no_place_in_the_files_is_refused(tmp_path: Path) -> None:
    from support import random_models as models

    base = models.make_model(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base, ["q_proj"])
    narrow = models.make_model(tmp_path / "narrow", num_attention_heads=2)
    with pytest.raises(UserError, match=r"has shape .* but the adapter's factors give"):
        merge(narrow, adapter, tmp_path / "one")
    short = models.make_model(tmp_path / "short", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"model\.layers\.1\..* is not a separate tensor"):
        merge(short, adapter, tmp_path / "two")


_PEAK = """
import resource, sys
from pathlib import Path
sys.path[:0] = {tests!r}
from test_merge import merge

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = Path({folder!r})
merge(folder / "small", folder / "small_adapter", folder / "small_out", {into!r})
before = peak()
merge(folder / "large", folder / "large_adapter", folder / {into!r}, {into!r}, shard_bytes=10**8)
print(peak() - before)
"""


def large(folder: Path, name: str, layers: int) -> int:
    """A model of random numbers and its adapter, written without holding it; its size in bytes."""
    from support import random_models as models

    base = models.make_model(folder / "mould", num_hidden_layers=1)
    config = bases.read_config(base)
    width, hidden = 1024, 2816
    config |= {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}
    config |= {"layer_types": ["full_attention"] * layers, "dtype": "bfloat16"}
    shapes = {"q_proj": (width, width), "k_proj": (width, width), "v_proj": (width, width)}
    shapes |= {"o_proj": (width, width)}
    wide = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    modules = {
        f"model.layers.{i}.{part}.{name}": shape
        for i in range(layers)
        for part, group in (("self_attn", shapes), ("mlp", wide))
        for name, shape in group.items()
    }
    made = [
        Tensor(f"{module}.weight", "BF16", shape, Path(), 0, 2 * shape[0] * shape[1])
        for module, shape in modules.items()
    ]
    made += [
        Tensor("model.embed_tokens.weight", "BF16", (4096, width), Path(), 0, 2 * 4096 * width)
    ]
    random = np.random.default_rng(0)
    block = (random.normal(0, 0.05, 2 * 2**20).astype(np.float32).view(np.uint32) >> 16).astype(
        "<u2"
    )

    def numbers(tensor: Tensor) -> list[bytes]:
        return [np.resize(block, tensor.size // 2).tobytes()]

    out = folder / name
    tensors.write_model(out, made, numbers, 2 * 10**8)
    for path in base.glob("*.json"):
        files.write_bytes(out / path.name, path.read_bytes())
    files.write_bytes(out / adapters.TEMPLATE, (base / adapters.TEMPLATE).read_bytes())
    files.write_json(out / "config.json", config)
    halves = {}
    for module, (rows, columns) in modules.items():
        key = f"base_model.model.{module}.lora_"
        halves[f"{key}A.weight"] = random.normal(0, 0.01, (4, columns)).astype(np.float32)
        halves[f"{key}B.weight"] = random.normal(0, 0.01, (rows, 4)).astype(np.float32)
    adapter = folder / f"{name}_adapter"
    adapter.mkdir()
    save_file(halves, adapter / adapters.WEIGHTS)
    files.write_json(adapter / adapters.CONFIG, {"r": 4, "lora_alpha": 8, "bias": "none"})
    digest = adapters.digest(adapter)
    told = {"name": name, "digest": "d" * 64}
    files.write_json(adapter / adapters.MANIFEST, {"digest": digest, "base": told})
    return sum(tensor.size for tensor in made)


@pytest.mark.slow
def test_memory_is_that_of_a_tensor_not_of_the_model(tmp_path: Path) -> None:
    large(tmp_path, "small", layers=1)
    size = large(tmp_path, "large", layers=16)
    biggest = 2 * 4096 * 1024
    assert size > 400e6
    for into in ("original", "dequantised"):
        code = _PEAK.format(
            tests=[str(TESTS), str(TESTS / "export")], folder=str(tmp_path), into=into
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        # The smaller model was merged first, so the rest grows with the model.
        assert int(done.stdout.split()[-1]) < 3 * biggest
        assert sum(tensor.size for tensor in tensors.of_model(tmp_path / into).values()) == size
        subprocess.run(["rm", "-r", str(tmp_path / "small_out")], check=True)


@pytest.mark.slow
def test_divergence_and_loss_are_what_torch_says() -> None:
    import torch
    from torch.nn import functional

    from llm_lora.base.chat import Encoded
    from llm_lora.engines.text.comparing import _sums

    torch.manual_seed(0)
    reference, other = (torch.randn(3, 11).log_softmax(-1) for _ in range(2))
    row = Encoded([1, 2, 7, 8, 9, 4], [0, 0, 1, 1, 1, 0])
    loss, kl, same = _sums(reference, other, row).tolist()
    targets = torch.tensor([7, 8, 9])
    assert loss == pytest.approx(functional.nll_loss(other, targets, reduction="sum").item())
    expected = functional.kl_div(other, reference, log_target=True, reduction="sum").item()
    assert kl == pytest.approx(expected, rel=1e-5)
    assert same == (reference.argmax(-1) == other.argmax(-1)).sum()
    assert _sums(reference, reference, row)[1:].tolist() == [0.0, 3.0]


@pytest.mark.slow
def test_a_run_is_merged_measured_and_loads_in_plain_transformers(
    small_run: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    code, output = Command("merge", small_run, "--out", out).finish()
    assert code == 0, output
    for part in ("NF4 base + adapter, as trained", "unmerged", "(kept)", str(out)):
        assert part in output, output
    manifest = json.loads((out / "llm_lora.json").read_text())
    figures = manifest["merged"]["measured"]
    assert figures["examples"] == 12 and figures["tokens"] > 300
    forms = figures["forms"]
    assert forms.keys() == {"dequantised", "original", "unmerged"}
    nearest = min(("dequantised", "original"), key=lambda name: forms[name]["kl"])
    assert manifest["merged"]["into"] == nearest
    # What NF4 changes dwarfs what rounding to bf16 changes.
    assert nearest == "dequantised" and forms["dequantised"]["kl"] < forms["original"]["kl"] / 3
    assert manifest["kind"] == "merged" and manifest["system"]
    assert manifest["adapter"]["digest"] == adapters.read(small_run / "adapter").digest
    assert manifest["digest"] == bases.resolve(str(out)).digest
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).is_file()
    schema = (small_run / "adapter" / "answer.schema.json").read_bytes()
    assert (out / "answer.schema.json").read_bytes() == schema

    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(out).chat_template
    code, output = Command("merge", small_run, "--out", out).finish()
    assert code == 2 and "this path exists already" in output
    code, output = Command("merge", small_run, "--out", tmp_path / "b", "--into", "nf4").finish()
    assert code == 2 and "merging into 4-bit weights is refused" in output
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_kill_leaves_no_folder_and_the_next_merge_sweeps_up(
    small_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    command = Command("merge", small_run, "--out", out)
    command.wait_until(lambda: any(tmp_path.glob(".merged.*/dequantised/config.json")))
    command.kill()
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1
    code, output = Command(
        "merge", small_run, "--out", out, "--no-measure", "--shard-size", "1MB", "--json"
    ).finish()
    assert code == 0, output
    assert json.loads(output) == {"out": str(out), "into": "dequantised", "measured": None}
    assert list(tmp_path.iterdir()) == [out]
    assert len(list(out.glob("model-*.safetensors"))) > 5
