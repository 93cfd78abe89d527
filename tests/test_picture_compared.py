"""What compares pictures with held-out ones: the embedder, a DINO model, or faces.

The photographs are those that face_recognition ships to test itself with: five of one person, some
of them cut, and one of another.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import package_source
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from test_picture_scores import QUICK, RECIPE, Artist, Draw, fact, findings, fit, good
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from llm_lora import face_models, image_task, picture_files, vision_models
from llm_lora import recipe as recipes
from llm_lora.engines import picture_scores
from llm_lora.engines.dino import Dino
from llm_lora.engines.faces import SAME, Faces
from llm_lora.errors import UserError

MODELS = {"dinov2": (Dinov2Config, Dinov2Model), "vit": (ViTConfig, ViTModel)}
ONE = ("obama.jpg", "obama2.jpg", "obama3.jpg")
ONE_CUT = ("obama_partial_face.jpg", "obama_partial_face2.jpg")
ANOTHER = "biden.jpg"

Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Judges a painter, by the shipped recipe with some changes."""

    def judged(draw: Draw, *overrides: str) -> dict[str, Any]:
        recipe = recipes.load(RECIPE, profile="cpu", overrides=[*QUICK, *overrides])
        prepared = image_task.prepare(recipe)
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
    """A small model of the family, untrained."""
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
    """Settings of a recipe that learns one person: from some photographs, judged by others."""
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
    """A photograph as nobody took it: mirrored or not, lighter or darker."""
    picture = ImageOps.mirror(photo(name)) if rng.random() < 0.5 else photo(name)
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.2))
    return ImageOps.fit(picture, (256, 384), centering=(0.5, 0.2))


def likeness_of(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    """The bare base knows another person; the adapter the one that it learned."""
    return portrait(rng.choice(ONE) if strength > 0.5 else ANOTHER, rng)


def stranger(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    return portrait(ANOTHER, rng)


def faceless(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    return good(prompt, strength, rng).resize((256, 256))


def test_points_are_the_class_token_of_what_the_processor_makes(dino: Path) -> None:
    model = Dino(vision_models.resolve(str(dino), *vision_models.DINO), device="cpu")
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (80, width, 3), dtype=np.uint8))
        for width in (70, 90, 200)
    ]
    points = model.images(pictures, batch_size=2)
    assert points.shape == (3, 32) and points.norm(dim=-1).numpy() == pytest.approx(np.ones(3))
    assert len(model.images([])) == 0
    _, whole = MODELS[vision_models.resolve(str(dino), *vision_models.DINO).kind]
    alone = whole.from_pretrained(dino, attn_implementation="eager").eval()
    processor = BitImageProcessorPil.from_pretrained(dino)
    for picture, point in zip(pictures, points, strict=True):
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 56, 56)
        with torch.no_grad():
            token = alone(pixels).last_hidden_state[0, 0]
        assert torch.allclose(point, token / token.norm(), atol=1e-5)


def test_fidelity_by_dino(judge: Judge, dino: Path) -> None:
    by_clip, found = judge(good), judge(good, f"judge.likeness={dino}")
    assert fact(by_clip, "fidelity", "compared by") == "tiny (CLIP)"
    assert fact(found, "fidelity", "compared by") == f"{dino} (DINO)"
    label = "likeness of held-out pictures to each other"
    recipe = recipes.load(RECIPE, profile="cpu", overrides=QUICK)
    held_out = image_task.prepare(recipe).dataset.held_out
    points = Dino(vision_models.resolve(str(dino), *vision_models.DINO)).images(
        [picture_files.load(one.path) for one in held_out]
    )
    cosines = (points @ points.T).double().numpy()
    expected = cosines[~np.eye(len(cosines), dtype=bool)].mean()
    assert fact(found, "fidelity", label) == pytest.approx(expected, abs=1e-3)
    assert fact(by_clip, "fidelity", label) != fact(found, "fidelity", label)
    others = [name for name in by_clip["scores"] if name != "fidelity"]
    assert all(by_clip["scores"][name] == found["scores"][name] for name in others)


def test_faces_of_one_person_are_close() -> None:
    faces = Faces(face_models.resolve())
    one = [faces.largest(photo(name)) for name in (*ONE, *ONE_CUT)]
    another = faces.largest(photo(ANOTHER))
    assert all(face is not None and face.shape == (128,) for face in (*one, another))
    assert max(float(np.linalg.norm(a - b)) for a in one for b in one) < SAME
    assert min(float(np.linalg.norm(a - another)) for a in one) > SAME
    assert faces.largest(Image.new("RGB", (256, 256), "grey")) is None


def test_the_largest_face_of_several_counts() -> None:
    faces = Faces(face_models.resolve())
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
    assert fact(found, "fidelity", "compared by") == "faces (dlib)"
    assert fact(found, "fidelity", "share taken for a held-out picture's person") == 1
    assert fact(found, "fidelity", "share of the bare base's taken for one") == 0
    assert fact(found, "fidelity", "likeness of the bare base's") < 0.3
    assert fact(found, "fidelity", "likeness of training pictures") > 0.5
    assert findings(found, "fidelity") == ""


def test_an_adapter_that_learned_nobody(judge: Judge, portraits: list[str]) -> None:
    found = judge(stranger, *portraits)
    assert found["scores"]["fidelity"] == 0
    assert fact(found, "fidelity", "share taken for a held-out picture's person") == 0


def test_pictures_without_a_face_are_like_nobody(judge: Judge, portraits: list[str]) -> None:
    found = judge(faceless, *portraits)
    assert found["scores"]["fidelity"] == 0
    assert fact(found, "fidelity", "share of pictures with a face") == 0
    assert "3 of the adapter's 3 pictures show no face" in findings(found, "fidelity")


def test_held_out_pictures_without_a_face_are_left_out(
    judge: Judge, portraits: list[str], tmp_path: Path
) -> None:
    whole = judge(likeness_of, *portraits)
    Image.effect_noise((256, 384), 60).convert("RGB").save(tmp_path / "held_out" / "0.png")
    found = judge(likeness_of, *portraits)
    assert "1 of 3 held-out pictures show no face" in findings(found, "fidelity")
    assert fact(found, "fidelity", "share of held-out pictures with a face") == 0.6667
    assert abs(found["scores"]["fidelity"] - whole["scores"]["fidelity"]) < 0.2
    Image.effect_noise((256, 384), 70).convert("RGB").save(tmp_path / "held_out" / "1.png")
    found = judge(likeness_of, *portraits)
    assert found["scores"]["fidelity"] is None
    assert "fewer than two held-out pictures show a face" in found["reasons"]["fidelity"]


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
    prepare("faces")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dlib")
    with pytest.raises(
        UserError, match="not installed: dlib and face_recognition_models"
    ) as caught:
        prepare("faces")
    assert "pip install 'llm-lora[faces]'" in str(caught.value)
