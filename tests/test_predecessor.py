"""docs/predecessor.md: every row has a test that is there, and what it says is refused is refused.

Beside it stand the tests of rows that belong to no single part.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import picture_models
from support.places import ROOT, TESTS

from llm_lora import lora_prompt, run
from llm_lora.base import image as picture_base
from llm_lora.base import text as bases
from llm_lora.base.family import CONFIGS
from llm_lora.engines.image import lora as picture_lora
from llm_lora.engines.image.loading import Loaded
from llm_lora.errors import UserError
from llm_lora.export import merge
from llm_lora.recipe import loading as recipe
from llm_lora.recipe.image.blocks import ImageLora
from llm_lora.recipe.image.recipe import ImageRecipe
from llm_lora.vision import models as vision_models

PAGE = ROOT / "docs" / "predecessor.md"
ROWS = 65

_ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+) \| (.+?) \|$", re.MULTILINE)
_TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
_REFUSED = re.compile(r"Refused[^“]*“([^”]+)”")


def rows() -> dict[int, tuple[str, str]]:
    """Number → what is said of it here, and its proof."""
    return {int(row[1]): (row[3], row[4]) for row in _ROW.finditer(PAGE.read_text())}


@cache
def names_in(name: str) -> set[str]:
    """The tests that pytest finds in a file."""
    tree = ast.parse(next(TESTS.rglob(name)).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_no_row_is_missing() -> None:
    numbers = [int(row[1]) for row in _ROW.finditer(PAGE.read_text())]
    assert numbers == [*range(1, ROWS + 1)]


@pytest.mark.parametrize("number", range(1, ROWS + 1))
def test_every_row_has_tests_that_are_there(number: int) -> None:
    _, proof = rows()[number]
    named = _TEST.findall(proof)
    assert named, "no test is named"
    for file, name in named:
        assert name in names_in(file), f"{file}::{name}"
    # Whatever else stands there would pass for a proof.
    assert not _TEST.sub("", proof).replace(",", "").strip()


def flat(**more: object) -> Callable[[Path], object]:
    """Reads a flat recipe with these keys."""

    def read(folder: Path) -> object:
        keys = {"train_data_dir": "pictures", "base_model": "tiny", **more}
        path = folder / "flat.yaml"
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
        return recipe.load(path)

    return read


def weights_alone(folder: Path) -> Path:
    path = folder / "old.safetensors"
    path.touch()
    return path


def pickled(folder: Path) -> object:
    (folder / "model.ckpt").write_bytes(b"\x80\x04")
    return picture_base.resolve(str(folder / "model.ckpt"))


def ggml(folder: Path) -> object:
    (folder / "llama-2-7b-chat.ggmlv3.q4_0.bin").write_bytes(b"tjgg")
    return bases.resolve(f"{folder}/llama-2-7b-chat.ggmlv3.q4_0.bin")


def unlabelled(method: str) -> Callable[[Path], object]:
    def label(folder: Path) -> object:
        (folder / "config.json").write_text(json.dumps({"model_type": method}))
        return vision_models.resolve(str(folder), "blip")

    return label


def text_from_weights(folder: Path) -> object:
    (folder / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    start = {"resume_from_checkpoint": str(weights_alone(folder))}
    return flat(task_type="llm", train_data_dir=str(folder), **start)(folder)


def merged_pictures(folder: Path) -> object:
    style = "task: image\nname: style\nbase: tiny\ndata: {train: pictures}\n"
    here = run.create(folder / "runs", "style", lambda _: style)
    here.fit.write_text("{}")
    here.dataset.mkdir()
    return merge.merge(here, folder / "merged", SimpleNamespace(stage=print))  # type: ignore[arg-type]


REFUSALS: dict[int, Callable[[Path], object]] = {
    14: unlabelled("git"),
    19: flat(hard_negatives="negatives/"),
    28: merged_pictures,
    42: text_from_weights,
    45: pickled,
    51: ggml,
}


def test_every_refusal_is_tried() -> None:
    told = {number for number, (here, _) in rows().items() if "Refused" in here}
    assert told == REFUSALS.keys()


@pytest.mark.parametrize("number", REFUSALS)
def test_what_is_refused_says_so_with_a_way_out(number: int, tmp_path: Path) -> None:
    said = _REFUSED.search(rows()[number][0])
    assert said, "the message is not quoted"
    with pytest.raises(UserError) as caught:
        REFUSALS[number](tmp_path)
    message = str(caught.value)
    for part in said[1].split(" … "):
        assert part in message
    assert all(problem.fix for problem in caught.value.problems)


# Rows of no single part


def test_the_usual_start_is_what_a_recipe_starts_with(tmp_path: Path) -> None:
    """Rank 8, batches of 4, 2e-4, 10 passes; what the anime example changes is taken as written."""
    path = tmp_path / "style.yaml"
    path.write_text("task: image\nbase: tiny\ndata: {train: pictures}\n")
    start = recipe.load(path)
    assert isinstance(start, ImageRecipe)
    train = start.train
    assert (start.lora.rank, train.batch_size, train.epochs) == (8, 4, 10)
    assert (train.learning_rate, start.lora.alpha) == (2e-4, 16)
    assert start.warnings() == ()
    anime = flat(lora_rank=12, alpha=24, epochs=12, dropout=0.1)(tmp_path)
    assert isinstance(anime, ImageRecipe)
    assert (anime.lora.rank, anime.lora.alpha, anime.lora.dropout) == (12, 24, 0.1)
    assert anime.train.epochs == 12 and anime.warnings() == ()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("learning_rate", 2e-3, "1e-4 to 3e-4 is usual"), ("epochs", 30, "overfitting is common")],
)
def test_what_is_seldom_meant_is_told(tmp_path: Path, key: str, value: float, told: str) -> None:
    large = {"base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5", key: value}
    assert any(told in str(one) for one in flat(**large)(tmp_path).warnings())  # type: ignore[attr-defined]


def on_paper(family: str, **lora: Any) -> tuple[Loaded, picture_lora.Layers]:
    """A published UNet without its numbers, and an adapter in it."""
    from diffusers import UNet2DConditionModel

    config = json.loads((CONFIGS / family / "unet" / "config.json").read_text())
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config)
    base: Any = None
    parts = SimpleNamespace(unet=unet)
    loaded = Loaded(parts, base, torch.device("meta"), torch.float32, "", {})
    return loaded, picture_lora.fresh(loaded, ImageLora(**lora), 0)


def test_an_adapter_of_stable_diffusion_is_as_small_as_they_say() -> None:
    """Under 1% of the base, a few to some tens of megabytes."""
    loaded, layers = on_paper("sd1")
    learned, frozen = picture_lora.counts(loaded, layers)
    assert frozen == 859_520_964  # The published UNet's.
    assert 0.001 < learned / frozen < 0.01
    assert 5e6 < 4 * learned < 50e6
    # A matrix of 640 x 1,024 at rank 8 takes (640 + 1,024) x 8 numbers.
    _, layers = on_paper("sdxl", targets=["attn1.to_q"])
    sizes = {tensor.numel() for tensor in layers.tensors().values()}
    assert sizes == {8 * 640, 8 * 1280}


def test_a_fresh_adapter_changes_nothing_and_can_learn() -> None:
    """With both halves at zero its gradient would be zero for ever."""
    pipe: Any = picture_models.pipe()
    base: Any = None
    loaded = Loaded(pipe, base, torch.device("cpu"), torch.float32, "", {})
    pipe.unet.requires_grad_(False)
    torch.manual_seed(0)
    # Large enough that the middle of the UNet has more than one place: one alone attends to itself
    # whatever its query, so no query would learn.
    given = {
        "sample": torch.randn(1, 4, 32, 32),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 32),
    }
    before = pipe.unet(**given).sample
    layers = picture_lora.fresh(loaded, ImageLora(), 0)
    after = pipe.unet(**given).sample
    assert torch.allclose(after, before, atol=1e-4)
    after.square().mean().backward()
    for name, module in layers.modules.items():
        down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
        assert down.any() and not up.any(), name
        assert up.grad is not None and up.grad.abs().max() > 0, name


def test_stacks_are_read_as_people_write_them() -> None:
    text, picks = lora_prompt.parse(
        "<lora:character_v1:0.6>, <lora:background_cyber:0.8>, studio lighting, film grain"
    )
    assert text == "studio lighting, film grain"
    assert [(pick.name, pick.unet) for pick in picks] == [
        ("character_v1", 0.6),
        ("background_cyber", 0.8),
    ]
