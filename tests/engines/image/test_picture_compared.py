"""Comparison of pictures with held-out ones: by the embedder, a DINO model, or faces.

The photographs are those in face_recognition's own tests: five of one person, some of them cropped,
and one of another.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from support import package_source
from test_picture_scores import QUICK, RECIPE, Artist, Draw, fact, findings, fit, good
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from llm_lora import recipe as recipes
from llm_lora.data.image import files as picture_files
from llm_lora.engines.image.measure import measuring as picture_scores
from llm_lora.engines.vision.dino import Dino
from llm_lora.engines.vision.faces import SAME, Faces
from llm_lora.errors import UserError
from llm_lora.tasks.image import task as image_task
from llm_lora.vision import models as vision_models

MODELS = {"dinov2": (Dinov2Config, Dinov2Model), "vit": (ViTConfig, ViTModel)}
ONE = ("obama.jpg", "obama2.jpg", "obama3.jpg")
ONE_CUT = ("obama_partial_face.jpg", "obama_partial_face2.jpg")
ANOTHER = "biden.jpg"

Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Judges a painter by the shipped recipe with some changes."""

    def judged(draw: Draw, *overrides: str) -> dict[str, Any]:
        recipe = recipes.load(RECIPE, profile="cpu", overrides=[*QUICK, *overrides])
        usual = recipe.judge.model_copy(update={"likeness": None})
        prepared = image_task.prepare(recipe.model_copy(update={"judge": usual}))
        artist = Artist(prepared.base, draw)
        monkeypatch.setattr(picture_scores, "Painter", lambda *given: artist)
        return picture_scores.judge(
            recipe,
            prepared.dataset,
            prepared.base,
            adapter=tmp_path,
            pictures=tmp_path / "pictures",
            fit=fit(),
        )

    return judged


@pytest.fixture(scope="module", params=MODELS)
def dino(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model of the family."""
    kind, model = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = kind(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=56,
        patch_size=14,
    )
    model(config).eval().save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}
    ).save_pretrained(folder)
    return folder


def photos() -> Path:
    sha256 = "5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec"
    return package_source.folder("face_recognition", "1.3.0", sha256) / "tests" / "test_images"


@cache
def photo(name: str) -> Image.Image:
    """A photograph, at most 600 pixels high."""
    picture = picture_files.load(photos() / name)
    picture.thumbnail((600, 600))
    return picture


@pytest.fixture
def portraits(tmp_path: Path) -> list[str]:
    """Settings of a recipe for one person, trained and evaluated on different photographs."""
    for side, names in (("train", ONE_CUT), ("held_out", ONE)):
        folder = tmp_path / side
        folder.mkdir()
        for number, name in enumerate(names):
            photo(name).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(f"a red circle on a blue background {number}")
    return [
        f"data.train={tmp_path / 'train'}",
        f"data.held_out={tmp_path / 'held_out'}",
        "data.schema=null",
        "data.trigger=null",
        "judge.likeness=faces",
        "judge.seeds=2",
        "judge.strengths=[1.0]",
    ]


def portrait(name: str, rng: random.Random) -> Image.Image:
    """A varied photograph: possibly mirrored, lighter or darker."""
    picture = ImageOps.mirror(photo(name)) if rng.random() < 0.5 else photo(name)
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.2))
    return ImageOps.fit(picture, (256, 384), centering=(0.5, 0.2))


def likeness_of(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    """The bare base paints another person, the adapter the one that it learned."""
    return portrait(rng.choice(ONE) if strength > 0.5 else ANOTHER, rng)


def faceless(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    return good(prompt, strength, rng).resize((256, 384))


def test_points_are_the_class_token_of_what_the_processor_makes(dino: Path) -> None:
    model = vision_models.resolve(str(dino), *vision_models.DINO)
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (80, width, 3), dtype=np.uint8))
        for width in (70, 90, 200)
    ]
    points = Dino(model, device="cpu").points(pictures)
    assert [point.shape for point in points] == [(32,)] * 3
    assert np.linalg.norm(points, axis=1) == pytest.approx(np.ones(3))
    _, whole = MODELS[model.kind]
    alone = whole.from_pretrained(dino, attn_implementation="eager").eval()
    processor = BitImageProcessorPil.from_pretrained(dino)
    for picture, point in zip(pictures, points, strict=True):
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 56, 56)
        with torch.no_grad():
            token = alone(pixels).last_hidden_state[0, 0]
        assert point == pytest.approx((token / token.norm()).numpy(), abs=1e-5)


def test_fidelity_by_dino(judge: Judge, dino: Path) -> None:
    by_clip, found = judge(good), judge(good, f"judge.likeness={dino}")
    assert fact(by_clip, "fidelity", "compared by") == "clip"
    model = vision_models.resolve(str(dino), *vision_models.DINO)
    assert fact(found, "fidelity", "compared by") == model.kind
    assert str(dino) not in json.dumps(found), "reports are mailed"
    recipe = recipes.load(RECIPE, profile="cpu", overrides=QUICK)
    held_out = image_task.prepare(recipe).dataset.held_out
    points = np.stack(Dino(model).points([picture_files.load(one.path) for one in held_out]))
    cosines = points @ points.T
    expected = cosines[~np.eye(len(cosines), dtype=bool)].mean()
    label = "likeness of held-out pictures to each other"
    assert fact(found, "fidelity", label) == pytest.approx(expected, abs=1e-3)
    assert fact(by_clip, "fidelity", label) != fact(found, "fidelity", label)
    others = [name for name in by_clip["scores"] if name != "fidelity"]
    assert all(by_clip["scores"][name] == found["scores"][name] for name in others)
    methods = [next(one for one in run["dimensions"] if one["name"] == "fidelity")["method"]
               for run in (by_clip, found)]  # fmt: skip
    assert "CLIP-I" in methods[0] and "class tokens" in methods[1]


def test_a_model_that_tells_nothing_apart(judge: Judge, tmp_path: Path) -> None:
    """Then fidelity has no figure, even if the embedder distinguishes the pictures."""
    config, model = MODELS["dinov2"]
    torch.manual_seed(0)
    blind = model(config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    for name, weight in blind.named_parameters():
        if name.startswith("embeddings.patch"):
            weight.data.zero_()
    blind.save_pretrained(tmp_path / "blind")
    BitImageProcessorPil().save_pretrained(tmp_path / "blind")
    found = judge(good, f"judge.likeness={tmp_path / 'blind'}")
    assert found["scores"]["fidelity"] is None
    assert "choose another model there" in found["reasons"]["fidelity"]
    assert found["scores"]["generalisation"] > 0.85


@pytest.mark.parametrize("likeness", ["null", "faces"])
def test_one_held_out_picture_is_too_few(
    judge: Judge, portraits: list[str], tmp_path: Path, likeness: str
) -> None:
    for number in (1, 2):
        (tmp_path / "held_out" / f"{number}.png").unlink()
    found = judge(likeness_of, *portraits, f"judge.likeness={likeness}")
    assert (
        found["scores"]["fidelity"] is None and "held-out picture" in found["reasons"]["fidelity"]
    )
    assert fact(found, "fidelity", "compared by") == ("clip" if likeness == "null" else "faces")
    assert fact(found, "fidelity", "likeness of training pictures") > 0.5
    assert fact(found, "fidelity", "likeness of pictures of the same caption") > 0.5


def test_faces_of_one_person_are_close() -> None:
    faces = Faces(vision_models.resolve_faces())
    one = [faces.largest(photo(name)) for name in (*ONE, *ONE_CUT)]
    another = faces.largest(photo(ANOTHER))
    assert all(face is not None and face.shape == (128,) for face in (*one, another))
    assert max(float(np.linalg.norm(a - b)) for a in one for b in one) < SAME
    assert min(float(np.linalg.norm(a - another)) for a in one) > SAME
    assert faces.largest(Image.new("RGB", (256, 256), "grey")) is None


def test_the_largest_face_of_several_counts() -> None:
    faces = Faces(vision_models.resolve_faces())
    near, far = photo(ONE[0]), photo(ANOTHER).reduce(2)
    both = Image.new("RGB", (near.width + far.width, 600), "white")
    both.paste(far, (0, 0))
    both.paste(near, (far.width, 0))
    alone, found = faces.largest(near), faces.largest(both)
    assert alone is not None and found is not None
    assert float(np.linalg.norm(alone - found)) < 0.2


def test_fidelity_by_faces(judge: Judge, portraits: list[str]) -> None:
    found = judge(likeness_of, *portraits)
    assert found["scores"]["fidelity"] > 0.85, found["reasons"]
    assert fact(found, "fidelity", "compared by") == "faces"
    assert fact(found, "fidelity", "share taken for a held-out picture's person") == 1
    assert fact(found, "fidelity", "share of the bare base's taken for one") == 0
    assert fact(found, "fidelity", "likeness of the bare base's") < 0.3
    assert fact(found, "fidelity", "likeness of training pictures") > 0.5
    assert findings(found, "fidelity") == ""


def test_a_strangers_face_is_worth_nothing(judge: Judge, portraits: list[str]) -> None:
    """Even if the bare base paints no face at all."""

    def stranger(prompt: str, strength: float, rng: random.Random) -> Image.Image:
        return portrait(ANOTHER, rng) if strength > 0.5 else faceless(prompt, strength, rng)

    found = judge(stranger, *portraits)
    assert found["scores"]["fidelity"] == 0
    assert fact(found, "fidelity", "share of pictures with a face") == 1
    assert fact(found, "fidelity", "share taken for a held-out picture's person") == 0
    assert "no face was found in 3 of 3 pictures of the bare base" in findings(found, "fidelity")


def test_pictures_without_a_face_are_like_nobody(judge: Judge, portraits: list[str]) -> None:
    found = judge(faceless, *portraits)
    assert found["scores"]["fidelity"] == 0
    assert fact(found, "fidelity", "share of pictures with a face") == 0
    assert "no face was found in 3 of 3 pictures of the adapter" in findings(found, "fidelity")


def test_held_out_pictures_without_a_face_are_left_out(
    judge: Judge, portraits: list[str], tmp_path: Path
) -> None:
    def noise(number: int) -> None:
        grey = Image.effect_noise((256, 384), 60 + number).convert("RGB")
        grey.save(tmp_path / "held_out" / f"{number}.png")

    noise(0)
    found = judge(likeness_of, *portraits)
    assert "no face was found in 1 of 3 held-out pictures" in findings(found, "fidelity")
    assert fact(found, "fidelity", "share of held-out pictures with a face") == 0.6667
    faces = Faces(vision_models.resolve_faces())
    left = [faces.largest(photo(name)) for name in ONE[1:]]
    assert left[0] is not None and left[1] is not None
    expected = 1 - float(np.linalg.norm(left[0] - left[1]))
    told = fact(found, "fidelity", "likeness of held-out pictures to each other")
    assert told == pytest.approx(expected, abs=1e-3)
    noise(1)
    found = judge(likeness_of, *portraits)
    assert found["scores"]["fidelity"] is None
    assert "faces were found in fewer than two" in found["reasons"]["fidelity"]


def test_painted_captions_may_all_have_pictures_without_a_face(
    judge: Judge, portraits: list[str], tmp_path: Path
) -> None:
    """The first 16 held-out captions are painted; here only later pictures show a face."""
    for number in range(3, 18):
        name = f"{number:02}"
        (tmp_path / "held_out" / f"{name}.txt").write_text(f"a green star {number}")
        if number < 16:
            grey = Image.effect_noise((64, 64 + 8 * number), 60 + number).convert("RGB")
            grey.save(tmp_path / "held_out" / f"{name}.png")
        else:
            photo(ONE[number - 16]).resize((300, 400)).save(tmp_path / "held_out" / f"{name}.png")
    for number in range(3):
        grey = Image.effect_noise((80, 64 + 8 * number), 90 + number).convert("RGB")
        grey.save(tmp_path / "held_out" / f"{number}.png")
    found = judge(likeness_of, *portraits)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    told = fact(found, "fidelity", "share of held-out pictures with a face")
    assert told == pytest.approx(2 / 18, abs=1e-3)


def test_a_missing_model_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def prepare(likeness: str) -> None:
        overrides = [*QUICK, f"judge.likeness={likeness}"]
        image_task.prepare(recipes.load(RECIPE, profile="cpu", overrides=overrides))

    with pytest.raises(UserError, match=r"judge\.likeness: \./nowhere") as caught:
        prepare("./nowhere")
    assert "write faces, or name a DINO model" in str(caught.value)
    with pytest.raises(UserError, match="this is a model of type clip, not dinov2 or"):
        prepare("tiny")
    bare = tmp_path / "bare"
    MODELS["vit"][1](ViTConfig(hidden_size=12, num_hidden_layers=1)).save_pretrained(bare)
    with pytest.raises(UserError, match=r"preprocessor_config\.json is missing"):
        prepare(str(bare))
    prepare("faces")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dlib")
    with pytest.raises(
        UserError, match="not installed: dlib and face_recognition_models"
    ) as caught:
        prepare("faces")
    assert "pip install 'llm-lora[faces]'" in str(caught.value)


def test_judging_again_tells_it_before_anything_is_painted(judge: Judge) -> None:
    def painted(prompt: str, strength: float, rng: random.Random) -> Image.Image:
        raise AssertionError("something was painted")

    with pytest.raises(UserError, match=r"judge\.likeness: \./nowhere: no such folder"):
        judge(painted, "judge.likeness=./nowhere")
