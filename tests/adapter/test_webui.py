"""WebUI key names: against independent lists, round trips, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import webui_names as names

from llm_lora.adapter.webui import files as lora_files
from llm_lora.adapter.webui import modules as webui
from llm_lora.adapter.webui.files import Lora, Module
from llm_lora.base.family import Family
from llm_lora.errors import UserError
from llm_lora.weights import arrays

DOTTED = {
    "attn1_to_q": "attn1.to_q",
    "attn1_to_k": "attn1.to_k",
    "attn1_to_v": "attn1.to_v",
    "attn1_to_out_0": "attn1.to_out.0",
    "attn2_to_q": "attn2.to_q",
    "attn2_to_k": "attn2.to_k",
    "attn2_to_v": "attn2.to_v",
    "attn2_to_out_0": "attn2.to_out.0",
    "ff_net_0_proj": "ff.net.0.proj",
    "ff_net_2": "ff.net.2",
}
TEXT = {
    "self_attn_q_proj": "self_attn.q_proj",
    "self_attn_k_proj": "self_attn.k_proj",
    "self_attn_v_proj": "self_attn.v_proj",
    "self_attn_out_proj": "self_attn.out_proj",
    "mlp_fc1": "mlp.fc1",
    "mlp_fc2": "mlp.fc2",
}


def text_modules(component: str, layers: int) -> list[str]:
    return [
        f"{component}.text_model.encoder.layers.{layer}.{part}"
        for layer in range(layers)
        for part in TEXT.values()
    ]


def sd1_modules() -> list[str]:
    """diffusers' module paths of Stable Diffusion 1.5, by its configuration."""
    places = [f"down_blocks.{i}.attentions.{j}" for i in (0, 1, 2) for j in (0, 1)]
    places += ["mid_block.attentions.0"]
    places += [f"up_blocks.{i}.attentions.{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
    parts = ["proj_in", "proj_out", *(f"transformer_blocks.0.{part}" for part in DOTTED.values())]
    return [f"unet.{place}.{part}" for place in places for part in parts]


def sdxl_modules() -> list[str]:
    found = []
    for place, (_, depth) in zip(names.SDXL_DIFFUSERS, names.SDXL_PLACES, strict=True):
        found += [f"unet.{place}.proj_in", f"unet.{place}.proj_out"]
        for block in range(depth):
            found += [f"unet.{place}.transformer_blocks.{block}.{p}" for p in DOTTED.values()]
    return found


def lora(modules: list[str], rank: int = 2, alpha: float = 3.0) -> Lora:
    random = np.random.default_rng(0)
    return {
        module: Module(
            random.standard_normal((rank, 5), np.float32),
            random.standard_normal((7, rank), np.float32),
            alpha,
        )
        for module in modules
    }


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_the_names_of_sd1_are_kohyas(family: Family) -> None:
    unet = {webui.stem(module, family) for module in sd1_modules()}
    text = {webui.stem(module, family) for module in text_modules("text_encoder", 12)}
    assert (len(unet), len(text)) == (192, 72)
    assert unet == names.sd1_unet()
    assert text == names.sd1_text()


def test_the_names_of_sdxl_are_kohyas() -> None:
    unet = {webui.stem(module, "sdxl") for module in sdxl_modules()}
    text = {webui.stem(module, "sdxl") for module in text_modules("text_encoder", 12)}
    text |= {webui.stem(module, "sdxl") for module in text_modules("text_encoder_2", 32)}
    assert (len(unet), len(text)) == (722, 264)
    assert unet == names.sdxl_unet()
    assert text == names.sdxl_text()


def test_the_places_of_sdxl_go_to_their_own_numbers() -> None:
    """Equality of sets would not detect two swapped places."""
    for dotted, (place, depth) in zip(names.SDXL_DIFFUSERS, names.SDXL_PLACES, strict=True):
        module = f"unet.{dotted}.transformer_blocks.{depth - 1}.attn2.to_k"
        stem = f"lora_unet_{place}_transformer_blocks_{depth - 1}_attn2_to_k"
        assert webui.stem(module, "sdxl") == stem
        assert webui.module(stem, "sdxl") == module


@pytest.mark.parametrize(
    ("module", "stem"),
    [
        ("down_blocks.0.resnets.1.conv1", "input_blocks_2_0_in_layers_2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op"),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks_4_0_skip_connection"),
        ("down_blocks.2.resnets.1.time_emb_proj", "input_blocks_8_0_emb_layers_1"),
        ("mid_block.resnets.0.conv2", "middle_block_0_out_layers_3"),
        ("mid_block.resnets.1.conv1", "middle_block_2_in_layers_2"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"),
        ("up_blocks.2.resnets.2.conv2", "output_blocks_8_0_out_layers_3"),
        ("conv_in", "input_blocks_0_0"),
        ("time_embedding.linear_2", "time_embed_2"),
        ("add_embedding.linear_1", "label_emb_0_0"),
        ("conv_out", "out_2"),
    ],
)
def test_convolutions_and_ends_of_sdxl(module: str, stem: str) -> None:
    assert webui.stem(f"unet.{module}", "sdxl") == f"lora_unet_{stem}"
    assert webui.module(f"lora_unet_{stem}", "sdxl") == f"unet.{module}"


blocks = st.sampled_from(["down_blocks.{}", "up_blocks.{}", "mid_block"])
leaves = st.one_of(
    st.builds(
        "attentions.{}.transformer_blocks.{}.{}".format,
        st.integers(0, 2),
        st.integers(0, 9),
        st.sampled_from([*DOTTED.values()]),
    ),
    st.builds(
        "attentions.{}.{}".format, st.integers(0, 2), st.sampled_from(["proj_in", "proj_out"])
    ),
    st.builds(
        "resnets.{}.{}".format,
        st.integers(0, 1),
        st.sampled_from(["conv1", "conv2", "conv_shortcut", "time_emb_proj"]),
    ),
)
in_unet = st.builds(
    lambda block, level, leaf: f"unet.{block.format(level)}.{leaf}",
    blocks,
    st.integers(0, 3),
    leaves,
).filter(lambda name: "mid_block.attentions" not in name or "attentions.0" in name)
in_text = st.builds(
    "text_encoder.text_model.encoder.layers.{}.{}".format,
    st.integers(0, 99),
    st.sampled_from([*TEXT.values()]),
)


@settings(deadline=None)
@given(module=st.one_of(in_unet, in_text), family=st.sampled_from(["sd1", "sd2", "sdxl"]))
def test_every_name_comes_back(module: str, family: Family) -> None:
    if family == "sdxl" and "down_blocks" in module and ("ions.2" in module):
        return  # Down blocks have two attentions each; the third place is the downsampler's.
    stem = webui.stem(module, family)
    assert "." not in stem
    assert webui.module(stem, family) == module


@settings(deadline=None)
@given(st.text(max_size=40))
def test_other_text_is_no_name(text: str) -> None:
    for name in (text, f"lora_unet_{text}", f"lora_te_{text}"):
        with pytest.raises(ValueError):
            webui.module(name, "sd1")


def test_diffusers_names_of_sdxl_with_underscores_are_read_too() -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q"
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    assert webui.module(stem, "sdxl") == module


@settings(deadline=None)
@given(
    modules=st.lists(st.one_of(in_unet, in_text), min_size=1, max_size=8, unique=True),
    rank=st.integers(1, 4),
    alpha=st.floats(0.5, 64, width=32),
)
def test_arrays_come_back(modules: list[str], rank: int, alpha: float) -> None:
    before = lora(modules, rank, alpha)
    after = lora_files.from_arrays(lora_files.to_arrays(before, "sd1"), "sd1", "test")
    assert after.keys() == before.keys()
    for name, update in before.items():
        assert after[name].alpha == alpha
        assert np.array_equal(after[name].down, update.down)
        assert np.array_equal(after[name].up, update.up)


def test_a_file_comes_back(tmp_path: Path) -> None:
    before = lora(sd1_modules()[:3])
    arrays.write(
        tmp_path / "a.safetensors", lora_files.to_arrays(before, "sd1"), {"b": "2", "a": "ä"}
    )
    arrays.write(
        tmp_path / "b.safetensors", lora_files.to_arrays(before, "sd1"), {"a": "ä", "b": "2"}
    )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert arrays.metadata(tmp_path / "a.safetensors") == {"a": "ä", "b": "2"}
    after = lora_files.read(tmp_path / "a.safetensors", "sd1")
    assert {name: update.alpha for name, update in after.items()} == dict.fromkeys(before, 3.0)


def test_the_safetensors_library_reads_what_is_written_and_the_reverse(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    made = {
        "half": torch.randn(3, 5).half(),
        "whole": torch.tensor(2.5),
        "count": torch.arange(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "brain": torch.randn(4, 3).bfloat16(),
    }
    save_file(made, tmp_path / "theirs.safetensors", {"k": "v"})
    found, notes = arrays.read(tmp_path / "theirs.safetensors")
    assert notes == {"k": "v"}
    assert np.array_equal(found["brain"], made["brain"].float().numpy())
    arrays.write(tmp_path / "ours.safetensors", found, notes)
    again = load_file(tmp_path / "ours.safetensors")
    for name, tensor in made.items():
        assert torch.equal(again[name].to(tensor.dtype), tensor), name


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ],
)
def test_other_layouts_are_read(down: str, up: str) -> None:
    zero = np.zeros((2, 2), np.float32)
    paths = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": "unet.mid_block"
        ".attentions.0.transformer_blocks.0.attn1.to_out.0",
        "text_encoder.encoder.layers.0.mlp.fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora": "unet"
        ".mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    }
    keys = {f"{path}.{half}": zero for path in paths for half in (down, up)}
    found = lora_files.from_arrays(keys, "sd1", "test")
    assert found.keys() == set(paths.values())
    assert {update.alpha for update in found.values()} == {2.0}


def test_alpha_comes_from_the_configuration_or_the_metadata(tmp_path: Path) -> None:
    module = "unet.mid_block.attentions.0.proj_in"
    found = {
        f"{module}.lora_A.weight": np.zeros((4, 3), np.float32),
        f"{module}.lora_B.weight": np.zeros((3, 4), np.float32),
    }
    arrays.write(tmp_path / "adapter_model.safetensors", found, {})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 10}))
    assert lora_files.read(tmp_path, "sd1")[module].alpha == 10
    plain = tmp_path / "plain.safetensors"
    arrays.write(plain, found, {})
    assert lora_files.read(plain, "sd1")[module].alpha == 4
    noted = {"unet.lora_alpha": 6, "unet.alpha_pattern": {}, "text_encoder.lora_alpha": 9}
    arrays.write(plain, found, {"lora_adapter_metadata": json.dumps(noted)})
    assert lora_files.read(plain, "sd1")[module].alpha == 6
    noted["unet.alpha_pattern"] = {"proj_in": 7}
    arrays.write(plain, found, {"lora_adapter_metadata": json.dumps(noted)})
    assert lora_files.read(plain, "sd1")[module].alpha == 7


@pytest.mark.filterwarnings("error")
def test_an_alpha_may_be_a_list_of_one() -> None:
    found = lora_files.to_arrays(lora(sd1_modules()[:1]), "sd1")
    found = {key: one.reshape(one.shape or (1,)) for key, one in found.items()}
    (update,) = lora_files.from_arrays(found, "sd1", "test").values()
    assert update.alpha == 3.0


def test_scales_by_the_root_of_the_rank_are_taken_over(tmp_path: Path) -> None:
    """PEFT then scales by alpha / sqrt(rank), with the rank of each module."""
    small, large = "unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_out"
    found = {}
    for module, rank in ((small, 4), (large, 9)):
        found[f"{module}.lora_A.weight"] = np.zeros((rank, 3), np.float32)
        found[f"{module}.lora_B.weight"] = np.zeros((3, rank), np.float32)
    config = {"r": 4, "lora_alpha": 10, "use_rslora": True, "rank_pattern": {"proj_out": 9}}
    arrays.write(tmp_path / "adapter_model.safetensors", found, {})
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    noted = {f"unet.{key}": value for key, value in config.items()}
    plain = tmp_path / "plain.safetensors"
    arrays.write(plain, found, {"lora_adapter_metadata": json.dumps(noted)})
    for path in (tmp_path, plain):
        read = lora_files.read(path, "sd1")
        assert read[small].alpha / read[small].rank == pytest.approx(10 / 2)
        assert read[large].alpha / read[large].rank == pytest.approx(10 / 3)


@pytest.mark.parametrize("damaged", ["{broken", "[1]", '{"lora_alpha": "x"}', "\udcff"])
def test_a_damaged_configuration_is_told(tmp_path: Path, damaged: str) -> None:
    module = "unet.mid_block.attentions.0.proj_in"
    found = {
        f"{module}.lora_A.weight": np.zeros((4, 3), np.float32),
        f"{module}.lora_B.weight": np.zeros((3, 4), np.float32),
    }
    arrays.write(tmp_path / "adapter_model.safetensors", found, {})
    config = tmp_path / "adapter_config.json"
    config.write_bytes(damaged.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="its configuration is damaged; copy it again") as error:
        lora_files.read(tmp_path, "sd1")
    assert error.value.problems[0].where == str(config)
    if damaged.isascii():
        plain = tmp_path / "plain.safetensors"
        noted = damaged.replace("lora_alpha", "unet.lora_alpha")
        arrays.write(plain, found, {"lora_adapter_metadata": noted})
        with pytest.raises(UserError, match="its configuration is damaged") as error:
            lora_files.read(plain, "sd1")
        assert error.value.problems[0].where == str(plain)


def refused(keys: list[str], family: Family = "sd1") -> str:
    with pytest.raises(UserError) as error:
        lora_files.from_arrays(dict.fromkeys(keys, np.zeros((1, 1), np.float32)), family, "x")
    return str(error.value)


def test_a_wrong_architecture_names_every_key() -> None:
    good = "lora_unet_mid_block_attentions_0_proj_in"
    wrong = ["lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_unet_input_blocks_4_1_proj_in"]
    told = refused([f"{name}.alpha" for name in [good, *wrong]])
    assert "2 of 3 modules" in told and all(name in told for name in wrong) and good not in told
    assert "SDXL by its names" in told
    assert "SD 1 or SD 2" in refused(["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"], "sdxl")
    assert "FLUX" in refused(["transformer.single_blocks.0.x.lora_A.weight"])


def test_what_is_no_lora_is_refused_by_name() -> None:
    module = "lora_unet_mid_block_attentions_0_proj_in"
    assert "LoHa" in refused([f"{module}.hada_w1_a"])
    assert "DoRA" in refused([f"{module}.dora_scale", f"{module}.lora_up.weight"])
    assert "no weights" in refused([])
    assert "keys are not LoRA keys" in refused(["model.diffusion_model.input_blocks.0.0.weight"])
    assert "has no matching up half" in refused([f"{module}.lora_down.weight"])


def test_pickled_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pickled"):
        lora_files.read(tmp_path / "style.ckpt", "sd1")
    with pytest.raises(UserError, match="no such file"):
        lora_files.read(tmp_path / "style.safetensors", "sd1")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(UserError, match="damaged"):
        lora_files.read(tmp_path / "torn.safetensors", "sd1")


def test_an_adapter_of_another_size_does_not_fit() -> None:
    made = lora(["unet.mid_block.attentions.0.proj_in", "unet.conv_in"])
    shapes = {"unet.mid_block.attentions.0.proj_in": (7, 6, 1, 1)}
    with pytest.raises(UserError) as error:
        lora_files.require_fit(made, shapes, "x")
    assert "2 of 2 modules" in str(error.value)
    assert "unet.conv_in is not in the base" in str(error.value)
    assert "is 7 x 5, in the base 7 x 6" in str(error.value)
    lora_files.require_fit(
        made, {"unet.mid_block.attentions.0.proj_in": (7, 5, 1, 1), "unet.conv_in": (7, 5)}, "x"
    )


def test_modules_that_a_family_lacks_are_not_exported() -> None:
    made = lora(["unet.mid_block.attentions.0.proj_in", "text_encoder_2.text_model.encoder.x"])
    with pytest.raises(UserError, match="1 of 2 modules"):
        lora_files.to_arrays(made, "sd1")
