"""Finding an image base: accepted forms, refused ones, and the advice in each refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.picture_bases import change, original_shapes, write_folder, write_header
from test_base import ask_for

from llm_lora.adapter import sources as picture_sources
from llm_lora.adapter.manifest import Manifest, Origin
from llm_lora.base import configs as picture_configs
from llm_lora.base import image as picture_base
from llm_lora.base.family import CONFIGS, Family
from llm_lora.errors import UserError

SHARDS = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests neither use nor fill the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LLM_LORA_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


def refused(name: str | Path, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        picture_base.resolve(str(name), **options)
    (problem,) = caught.value.problems
    assert problem.fix, problem
    return str(problem)


# Folders in diffusers' layout


@pytest.mark.parametrize(
    ("family", "resolution", "prediction"),
    [("sd1", 512, "epsilon"), ("sd2", 768, "v"), ("sdxl", 1024, "epsilon")],
)
def test_families_are_told_apart(
    tmp_path: Path, family: str, resolution: int, prediction: str
) -> None:
    folder = write_folder(tmp_path / "model", family)
    found = picture_base.resolve(str(folder))
    assert (found.path, found.config, found.single_file) == (folder, folder, False)
    assert (found.family, found.resolution, found.prediction) == (family, resolution, prediction)
    assert (found.revision, found.variant, found.embedded) == (None, None, False)
    assert found == picture_base.resolve(str(folder))


def test_the_embedded_base() -> None:
    if not picture_base.TINY.is_dir():
        pytest.skip("the embedded base is not there yet")
    found = picture_base.resolve("tiny")
    assert (found.embedded, found.path, found.family) == (True, picture_base.TINY, "sd1")
    assert found.resolution == 64


def test_what_the_recipe_says_of_the_prediction_goes_first(folder: Path) -> None:
    assert picture_base.resolve(str(folder), prediction="v").prediction == "v"
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "the base predicts sample" in refused(folder)
    assert picture_base.resolve(str(folder), prediction="epsilon").prediction == "epsilon"


def test_the_digest_follows_every_part(folder: Path) -> None:
    seen = {picture_base.resolve(str(folder)).digest}
    for name in (
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ):
        path = folder / name
        if path.suffix == ".safetensors":
            write_header(path, {"weight": [8]}, seed=1)
        else:
            path.write_text(path.read_text() + "\n")
        seen.add(picture_base.resolve(str(folder)).digest)
    assert len(seen) == 6
    moved = folder.parent / "moved"
    shutil.copytree(folder, moved)
    assert picture_base.resolve(str(moved)).digest in seen


def test_half_weights_alone_are_a_variant(tmp_path: Path, folder: Path) -> None:
    half = write_folder(tmp_path / "half", variant=".fp16")
    assert picture_base.resolve(str(half)).variant == "fp16"
    write_header(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"weight": [8]})
    assert picture_base.resolve(str(folder)).variant is None


def test_weights_in_shards(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps(SHARDS))
    write_header(folder / "unet" / "part-1.safetensors", {"a": [8]})
    assert "a weight file is missing: part-2.safetensors" in refused(folder)
    write_header(folder / "unet" / "part-2.safetensors", {"b": [8]})
    assert picture_base.resolve(str(folder)).family == "sd1"


def test_pickled_weights_are_refused(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "only pickled weights (.bin), which may run code" in refused(folder)
    weights.with_suffix(".bin").unlink()
    assert "no safetensors weights" in refused(folder)


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_damaged_weights(folder: Path, size: int) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "damaged or incomplete safetensors" in refused(folder)


def test_a_part_is_missing(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    assert "no tokenizer in this folder" in refused(folder)


@pytest.mark.parametrize(
    ("channels", "why"),
    [
        (9, "9 channels instead of 4: it is made for inpainting"),
        (8, "8 channels instead of 4: it edits pictures"),
        (5, "5 channels instead of 4: it generates from depth maps"),
        (16, "16 channels instead of 4: its input is more than a picture"),
        (None, "unet/config.json does not state them"),
    ],
)
def test_unets_that_take_more_than_a_picture(folder: Path, channels: int | None, why: str) -> None:
    change(folder / "unet" / "config.json", in_channels=channels)
    assert why in refused(folder)


@pytest.mark.parametrize(
    ("pipeline", "why"),
    [
        ("StableDiffusion3Pipeline", "this is Stable Diffusion 3: its transformer learns by flow"),
        ("FluxPipeline", "this is FLUX: its transformer learns by flow matching"),
        ("StableDiffusionXLInpaintPipeline", "made for inpainting"),
        ("StableDiffusionControlNetPipeline", "steered by a ControlNet"),
        ("LatentConsistencyModelPipeline", "unknown pipeline class LatentConsistencyModelPipeline"),
    ],
)
def test_pipelines_that_are_not_trained(folder: Path, pipeline: str, why: str) -> None:
    change(folder / "model_index.json", _class_name=pipeline)
    assert why in refused(folder)


def test_the_refiner_and_quantised_bases(tmp_path: Path, folder: Path) -> None:
    refiner = write_folder(tmp_path / "refiner", "sdxl")
    shutil.rmtree(refiner / "text_encoder")
    assert "the refiner of SDXL" in refused(refiner)
    change(folder / "unet" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "already quantised" in refused(folder)


def test_folders_that_are_something_else(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    assert "this is a text model (Qwen3ForCausalLM); set task: text" in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    assert "this is a ControlNet" in refused(tmp_path)
    assert "only a part of a base (UNet2DConditionModel)" in refused(folder / "unet")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "this is an adapter, not a base" in refused(tmp_path)
    loose = tmp_path / "loose"
    loose.mkdir()
    assert "no model_index.json" in refused(loose)
    write_header(loose / "dream.safetensors", original_shapes())
    assert f"name the file itself, such as {loose}/dream.safetensors" in refused(loose)
    (loose / "dream.safetensors").rename(loose / "dream.gguf")
    assert "stable-diffusion.cpp" in refused(loose)


# Single files in the original layout


@pytest.mark.parametrize(("family", "resolution"), [("sd1", 512), ("sd2", 768), ("sdxl", 1024)])
def test_single_files(tmp_path: Path, cache: Path, family: str, resolution: int) -> None:
    path = write_header(tmp_path / "dream.safetensors", original_shapes(family))
    found = picture_base.resolve(str(path), prediction="v" if family == "sd2" else "auto")
    assert (found.family, found.resolution, found.single_file) == (family, resolution, True)
    assert found.path == path and found.config.is_relative_to(cache)
    shipped = {one.relative_to(CONFIGS / family) for one in (CONFIGS / family).rglob("*.json")}
    assert shipped < {one.relative_to(found.config) for one in found.config.rglob("*.json")}


def test_what_a_single_file_tells_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "dream.safetensors"
    told = {"modelspec.resolution": "960x1024", "modelspec.prediction_type": "v"}
    write_header(path, original_shapes("sdxl"), told)
    found = picture_base.resolve(str(path))
    assert (found.resolution, found.prediction) == (960, "v")
    write_header(path, {**original_shapes("sdxl"), "v_pred": [0]})
    assert picture_base.resolve(str(path)).prediction == "v"
    write_header(path, original_shapes("sdxl"))
    assert picture_base.resolve(str(path)).prediction == "epsilon"


def test_a_single_file_tells_that_its_noise_ends_in_nothing_but_noise(tmp_path: Path) -> None:
    path = tmp_path / "dream.safetensors"
    for marks, zero_snr in (({"v_pred": [0]}, False), ({"v_pred": [0], "ztsnr": [0]}, True)):
        write_header(path, {**original_shapes("sdxl"), **marks})
        found = picture_base.resolve(str(path))
        assert (found.prediction, found.zero_snr) == ("v", zero_snr)


def test_single_files_with_half_a_unet(tmp_path: Path) -> None:
    whole = original_shapes("sd1")
    flat = {**whole, "model.diffusion_model.input_blocks.0.0.weight": [320]}
    bare = {key: shape for key, shape in whole.items() if "attn2.to_k" not in key}
    for number, shapes in enumerate((flat, bare)):
        path = write_header(tmp_path / f"{number}.safetensors", shapes)
        assert "its UNet is incomplete; download or copy it again" in refused(path)


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max"])
def test_single_files_of_other_noise_are_refused(tmp_path: Path, mark: str) -> None:
    path = write_header(tmp_path / "dream.safetensors", {**original_shapes("sdxl"), mark: [4]})
    assert "its noise levels are not shares of signal and noise (EDM)" in refused(path)


@pytest.mark.parametrize(
    "told",
    [
        {"_class_name": "EDMDPMSolverMultistepScheduler"},
        {"_class_name": "EDMEulerScheduler", "sigma_data": 1.0},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    ],
)
def test_folders_of_other_noise_are_refused(folder: Path, told: dict[str, Any]) -> None:
    change(folder / "scheduler" / "scheduler_config.json", **told)
    assert f"not shares of signal and noise ({told['_class_name']})" in refused(folder)
    assert "not shares of signal" in refused(folder, prediction="v")


def test_a_single_file_of_sd2_must_be_told_its_prediction(tmp_path: Path) -> None:
    path = write_header(tmp_path / "dream.safetensors", original_shapes("sd2"))
    assert "set train.prediction: v for a model of 768 pixels, epsilon for" in refused(path)
    # For 2.x, the model with 512 pixels predicts noise; metadata in the file take precedence.
    found = picture_base.resolve(str(path), prediction="epsilon")
    assert (found.prediction, found.resolution) == ("epsilon", 512)
    write_header(path, original_shapes("sd2"), {"modelspec.resolution": "640x640"})
    assert picture_base.resolve(str(path), prediction="epsilon").resolution == 640


def test_a_base_that_is_named_predicts_what_its_adapter_was_trained_for(tmp_path: Path) -> None:
    path = write_header(tmp_path / "dream.safetensors", original_shapes("sd2"))
    base = picture_base.resolve(str(path), prediction="v")
    manifest = Manifest(
        digest=None,
        base=Origin(name="moved", digest=base.digest, revision=None, prediction="v"),
    )
    source = picture_sources.Source("ink", tmp_path / "ink", manifest)
    assert picture_sources.base_of([source], str(path)) == base


def test_a_single_file_of_unknown_shapes_takes_the_configuration_beside_it(
    tmp_path: Path,
) -> None:
    shapes = original_shapes()
    shapes["model.diffusion_model.input_blocks.0.0.weight"] = [48, 4, 3, 3]
    path = write_header(tmp_path / "small.safetensors", shapes)
    assert f"into {tmp_path}/small/" in refused(path)
    beside = write_folder(tmp_path / "small")
    change(beside / "unet" / "config.json", block_out_channels=[48, 96, 96, 96], sample_size=16)
    found = picture_base.resolve(str(path))
    assert (found.config, found.resolution) == (beside, 128)


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        (original_shapes(channels=9), "inpainting"),
        ({"lora_unet_mid_block_attentions_0_proj_in.alpha": []}, "this is a LoRA, not a base"),
        ({"unet.mid_block.attentions.0.to_q.lora_A.weight": [4, 8]}, "this is a LoRA"),
        ({"control_model.time_embed.0.weight": [8]}, "this is a ControlNet"),
        ({**original_shapes(), "control_model.out.weight": [8]}, "this is a ControlNet"),
        ({"conv_in.weight": [320, 4, 3, 3]}, "only the UNet, in diffusers' layout"),
        ({"decoder.conv_in.weight": [512, 4, 3, 3]}, "this is only a VAE"),
        ({"emb_params": [4, 768]}, "textual inversion"),
        ({"model.diffusion_model.joint_blocks.0.x.weight": [8]}, "this is Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": [8]}, "this is FLUX"),
        ({"transformer_blocks.0.attn.to_q.weight": [8]}, "this generates with a transformer"),
        ({"model.layers.0.self_attn.q_proj.weight": [8]}, "this is a text model"),
        ({"something.else": [8]}, "contains no UNet in Stable Diffusion's original layout"),
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": [384, 4, 3, 3],
                "conditioner.embedders.0.model.text_projection": [8],
            },
            "the refiner of SDXL",
        ),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3]},
            "the file has no text encoder",
        ),
    ],
)
def test_single_files_that_are_no_bases(
    tmp_path: Path, shapes: dict[str, list[int]], why: str
) -> None:
    assert why in refused(write_header(tmp_path / "dream.safetensors", shapes))


@pytest.mark.parametrize("kind", ["ckpt", "pt", "bin"])
def test_pickled_single_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"dream.{kind}"
    path.write_bytes(b"\x80\x04.")
    assert f"pickled weights (.{kind}), which may run code" in refused(path)


def test_names_that_lead_nowhere() -> None:
    assert "stable-diffusion.cpp" in refused("dream-Q4_0.gguf")
    assert refused("./no/such").startswith("./no/such: no such folder or file")


# The hub


def test_offline(tmp_path: Path) -> None:
    told = ask_for("image", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert "not in the local cache" in told
    assert "--set base=tiny" in told


def test_a_cached_base_is_found_offline(tmp_path: Path) -> None:
    commit = "a" * 40
    cached = tmp_path / "hub" / "models--owner--model"
    write_folder(cached / "snapshots" / commit, "sdxl", variant=".fp16")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    told = ask_for("image", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert f"revision='{commit}'" in told
    assert "family='sdxl'" in told and "variant='fp16'" in told


# The shipped configurations


def test_text_models_say_that_a_base_paints(folder: Path) -> None:
    from llm_lora.base import text as base

    with pytest.raises(UserError, match="this is an image model; set task: image"):
        base.resolve(str(folder))


def test_resolving_loads_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys\nfrom llm_lora.base import image as picture_base\n"
        f"picture_base.resolve({str(folder)!r})\n"
        "print(sorted({'torch', 'transformers', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "counts"),
    [
        # Published parameter counts: UNet, VAE, text encoders.
        ("sd1", (859_520_964, 83_653_863, 123_060_480)),
        ("sd2", (865_910_724, 83_653_863, 340_387_840)),
        ("sdxl", (2_567_463_684, 83_653_863, 123_060_480, 694_659_840)),
    ],
)
def test_the_configurations_are_those_of_the_published_models(
    family: Family, counts: tuple[int, ...]
) -> None:
    import torch
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = picture_configs.folder(family)
    with torch.device("meta"):
        parts = [
            UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
            AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
        ]
        for name in ("text_encoder", "text_encoder_2"):
            if (folder / name).is_dir():
                config = transformers.CLIPTextConfig.from_pretrained(folder / name)
                parts.append(getattr(transformers, config.architectures[0])(config))
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == counts
    # CLIP's token ids of these words, between its start and end tokens; second tokenizers, and that
    # of 2.x, pad with id 0, the others with the end token.
    words = [49406, 320, 1125, 539, 320, 2368, 49407]
    for part in sorted(folder.glob("tokenizer*")):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(part)
        told = tokenizer("a photo of a CAT", padding="max_length", max_length=9).input_ids
        padding = 0 if family == "sd2" or part.name == "tokenizer_2" else 49407
        assert told == [*words, padding, padding], part
        assert len(tokenizer) == 49408 and tokenizer.model_max_length == 77


def test_a_configuration_is_made_once_and_mended(cache: Path) -> None:
    folder = picture_configs.folder("sdxl")
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in written}
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    assert (len(vocabulary), vocabulary["!"], vocabulary["cat</w>"]) == (49408, 0, 2368)
    assert picture_configs.folder("sdxl") == folder
    assert {path: path.stat().st_mtime_ns for path in written} == times
    # A clean-up of the cache may have removed some files.
    (folder / "tokenizer_2" / "vocab.json").unlink()
    shutil.rmtree(folder / "unet")
    picture_configs.folder("sdxl")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == written
