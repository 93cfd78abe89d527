"""The embedded picture pipeline and its judge: files, what they can do, and how they are made."""

from __future__ import annotations

import csv
import importlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support.places import ROOT

ASSETS = ROOT / "llm_lora" / "assets"
PIPELINE, JUDGE = ASSETS / "tiny_image", ASSETS / "tiny_judge"
TEMPLATE = ROOT / "data_templates" / "style_lora"
STYLE = "ink sketch style"
# Bounds a little below what was measured (pretraining/image/README.md).
PLAIN_DECIBELS, INK_DECIBELS = 22.5, 18.5
SHAPE_SHARE, COLOUR_SHARE, GROUND_SHARE = 0.75, 0.95, 0.95
JUDGED = {"style": 0.95, "shape": 0.85, "colour": 0.95, "ground_colour": 0.95, "place": 0.85}


def pretraining(module: str) -> Any:
    """A module of the pretraining scripts, which are no part of the package."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"pretraining.image.{module}")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(
        PIPELINE, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def judge() -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(JUDGE, dtype=torch.float32, local_files_only=True)
    return model.eval(), CLIPTokenizer.from_pretrained(JUDGE, local_files_only=True)


def test_files_are_small_and_never_pickles() -> None:
    for folder, most in ((PIPELINE, 25), (JUDGE, 5)):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= most * 2**20
        assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    for path in [*PIPELINE.rglob("*.safetensors"), *JUDGE.rglob("*.safetensors")]:
        with safe_open(path, "pt") as weights:
            tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
        assert {tensor.dtype for tensor in tensors} <= {torch.float16, torch.int64}
        assert all(torch.isfinite(tensor).all() for tensor in tensors)


def test_no_file_tells_where_it_was_made() -> None:
    for path in ASSETS.rglob("*.json"):
        assert '_name_or_path": "/' not in path.read_text(), path


def test_the_layout_is_that_of_stable_diffusion_1_5() -> None:
    unet = json.loads((PIPELINE / "unet" / "config.json").read_text())
    assert unet["layers_per_block"] == 2  # front ends count three blocks in a level
    assert unet["down_block_types"] == [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]
    assert json.loads((PIPELINE / "vae" / "config.json").read_text())["scaling_factor"] == 0.18215
    noise = json.loads((PIPELINE / "scheduler" / "scheduler_config.json").read_text())
    assert noise["prediction_type"] == "v_prediction"
    assert noise["rescale_betas_zero_snr"] is True
    assert noise["timestep_spacing"] == "trailing"
    index = json.loads((PIPELINE / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == [None, None]
    with safe_open(PIPELINE / "text_encoder" / "model.safetensors", "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118


def test_the_tokenizer_has_every_byte_and_ends_where_the_model_looks(pipeline: Any) -> None:
    tokenizer, config = pipeline.tokenizer, pipeline.text_encoder.config
    assert config.eos_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    assert config.bos_token_id == tokenizer.bos_token_id
    assert config.max_position_embeddings == tokenizer.model_max_length
    for word in ("red", "circle", "background", "checkered", "ink", "sketch", "style"):
        assert len(tokenizer(word).input_ids) == 3
    for text in ("cyberpunk Köln", "日本 42", "<lora:a:1>"):
        assert tokenizer.eos_token_id not in tokenizer(text).input_ids[1:-1]


def test_pictures_get_through_the_vae(pipeline: Any) -> None:
    vae, scenes = pretraining("vae"), pretraining("scenes")
    pictures = pretraining("pictures")
    rng = random.Random(77)
    drawn = [scenes.held_out_scene(rng) for _ in range(24)]
    plain = pictures.drawn(drawn, [""] * 24, 5)
    ink = pictures.drawn(drawn, [STYLE] * 24, 5)
    assert vae.decibels(pipeline.vae, plain) > PLAIN_DECIBELS
    assert vae.decibels(pipeline.vae, ink) > INK_DECIBELS


@pytest.mark.slow
@pytest.mark.long
def test_the_base_follows_its_prompt(pipeline: Any) -> None:
    scenes, following = pretraining("scenes"), pretraining("following")
    paint = pretraining("pipeline").paint
    rng = random.Random(4)
    plain = {"size": "", "place": "", "texture": "", "ground": ""}
    kinds = [scenes.training_scene, scenes.held_out_scene]
    asked = [replace(kind(rng), **plain) for kind in kinds for _ in range(32)]
    painted = paint(pipeline, [scenes.caption(scene) for scene in asked], 100)
    shares = following.following(painted, asked)
    assert shares["shape"] >= SHAPE_SHARE, shares
    assert shares["colour"] >= COLOUR_SHARE, shares
    assert shares["ground_colour"] >= GROUND_SHARE, shares


def test_a_plain_picture_is_read_off_as_it_was_drawn() -> None:
    scenes, following = pretraining("scenes"), pretraining("following")
    rng = random.Random(3)
    drawn = [scenes.draw_scene(rng, plain=1.0) for _ in range(100)]
    pictures = pretraining("pictures").drawn(drawn, [""] * 100, 1)
    assert following.following(pictures, drawn)["all"] >= 0.98
    wrong = [replace(scene, shape="ring" if scene.shape != "ring" else "star") for scene in drawn]
    assert following.following(pictures, wrong)["shape"] <= 0.02
    blank = np.full((64, 64, 3), 250, np.uint8)
    assert following.see(blank) == following.Seen("", "", "white")


@pytest.mark.parametrize("name", list(JUDGED))
def test_the_judge_tells_pictures_apart(judge: tuple[Any, Any], name: str) -> None:
    scenes, pictures = pretraining("scenes"), pretraining("pictures")
    rng = random.Random(31)
    drawn = [scenes.held_out_scene(rng) for _ in range(80)]
    styles = pictures.some_styles(80, 0.5, rng)
    share = pretraining("judge").accuracy(
        *judge, pictures.drawn(drawn, styles, 9), drawn, styles, name
    )
    assert share >= JUDGED[name]


def test_the_template_is_what_its_script_draws(tmp_path: Path) -> None:
    template, captions = pretraining("template"), pretraining("scenes").caption
    template.write(tmp_path)
    seen: list[str] = []
    for name, (count, seed) in template.SETS.items():
        files = sorted(path.name for path in (TEMPLATE / name).iterdir())
        assert files == sorted(path.name for path in (tmp_path / name).iterdir())
        assert len(files) == count + 1
        for file in files:
            ours, theirs = TEMPLATE / name / file, tmp_path / name / file
            if file == "metadata.csv":
                assert ours.read_bytes() == theirs.read_bytes()
            else:
                assert np.array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(theirs)))
        with (TEMPLATE / name / "metadata.csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["prompt"] for row in rows] == [
            captions(scene) for scene in template.scenes(count, seed)
        ]
        seen += [row["prompt"] for row in rows]
    assert not any("style" in text or "ink" in text.split() for text in seen)
    assert not any(shape in text for text in seen for shape in template.UNSEEN_SHAPES)


def test_a_scene_is_drawn_and_said_the_same_every_time() -> None:
    scenes, styles = pretraining("scenes"), pretraining("styles").STYLES
    for style in styles.values():
        twice = [
            np.asarray(style(scenes.draw_scene(random.Random(8)), random.Random(9)))
            for _ in range(2)
        ]
        assert twice[0].shape == (64, 64, 3)
        assert np.array_equal(*twice)
    said = [scenes.vary(scenes.draw_scene(random.Random(8)), random.Random(n)) for n in range(40)]
    assert len(set(said)) > 3


def test_a_stopped_training_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    training = pretraining("training")

    def run(checkpoint: Path, *ends: int) -> torch.Tensor:
        """Train to each of the ends in turn, every time from the checkpoint; the last weights."""
        for end in ends:
            torch.manual_seed(0)
            model = torch.nn.Linear(3, 1)

            def loss(step: int, generator: torch.Generator, model: Any = model) -> torch.Tensor:
                data = torch.randn(8, 3, generator=generator)
                return (model(data) - data.sum(1, keepdim=True)).square().mean()

            plan = training.Plan(checkpoint, end, 1e-2, decay=0, warm_up=1)
            assert training.train(model, plan, loss, look=lambda step: None, look_every=1000)
        return model.weight.detach().clone()

    broken = run(tmp_path / "a.safetensors", 7, 20)
    assert torch.equal(broken, run(tmp_path / "b.safetensors", 20))
    assert not torch.equal(broken, run(tmp_path / "c.safetensors", 7))


def test_a_training_stops_when_its_time_is_up(tmp_path: Path) -> None:
    training = pretraining("training")
    model = torch.nn.Linear(1, 1)
    plan = training.Plan(tmp_path / "a.safetensors", 10, 1e-2, decay=0, minutes=0.0)
    done = training.train(
        model, plan, lambda step, generator: model(torch.ones(1, 1)).sum(),
        look=lambda step: None, look_every=5,
    )  # fmt: skip
    assert not done
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["facts"])["step"] == 0
