"""Painting on random tiny bases, with adapters compared to diffusers' own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import image_runs

from llm_lora.adapter.webui import files as lora_files
from llm_lora.adapter.webui import modules as webui
from llm_lora.base import image as picture_base
from llm_lora.engines.image import lora as picture_lora
from llm_lora.engines.image import prompts as picture_prompts
from llm_lora.engines.image.painting import Painter, Settings
from llm_lora.engines.image.stack import Weights
from llm_lora.errors import UserError
from llm_lora.recipe.image.blocks import ImageLora
from llm_lora.weights import arrays

pytestmark = pytest.mark.slow

QUICK = Settings(steps=3, guidance=4.0, batch_size=2)
RANKS = {"ink": (4, 6), "character": (2, 1)}
"""Rank and alpha of the test adapters; they differ in both."""


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder `base`, and two random adapters, each as our folder and as a WebUI file."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    image_runs.picture_models.make(folder / "base", request.param)
    for number, (name, (rank, alpha)) in enumerate(RANKS.items()):
        loaded = image_runs.loaded(folder / "base")
        lora = ImageLora(rank=rank, alpha=alpha, text_encoder=name == "ink")
        layers = picture_lora.fresh(loaded, lora, seed=number)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter.normal_(0, 0.2)
        picture_lora.save(layers.tensors(), layers, folder / name, loaded.base, 0.0)
        family = loaded.base.family
        read = lora_files.read(folder / name, family)
        found = lora_files.to_arrays(read, family)
        arrays.write(folder / f"{name}.safetensors", found, {"ss_v2": "False"})
    return folder


def painter(made: Path, *adapters: tuple[str, float]) -> Painter:
    base = picture_base.resolve(str(made / "base"))
    return Painter(base, [(made / name, weight) for name, weight in adapters], "fp32")


def difference(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def through_diffusers(
    made: Path, files: list[str], weights: list[float], prompt: str, seed: int
) -> np.ndarray[Any, Any]:
    paths = [made / file for file in files]
    return image_runs.through_diffusers(made / "base", paths, weights, prompt, seed, QUICK)


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_an_adapter_paints_as_diffusers_loads_it(made: Path, suffix: str) -> None:
    (ours,) = painter(made, (f"ink{suffix}", 1.0)).paint(["a red circle"], QUICK, [5])
    theirs = through_diffusers(made, [f"ink{suffix}"], [1.0], "a red circle", 5)
    (plain,) = painter(made).paint(["a red circle"], QUICK, [5])
    assert difference(ours, theirs) <= 1
    assert difference(ours, plain) > 8


def test_two_adapters_are_the_sum_at_their_weights(made: Path) -> None:
    both = painter(made, ("ink", 0.6), ("character.safetensors", 0.8))
    (ours,) = both.paint(["a blue star"], QUICK, [2])
    theirs = through_diffusers(made, ["ink", "character"], [0.6, 0.8], "a blue star", 2)
    assert difference(ours, theirs) <= 1
    # Merged by hand in place of one adapter.
    loaded = image_runs.loaded(made / "base")
    modules = picture_lora.modules(loaded)
    for name, weight in (("ink", 0.6), ("character", 0.8)):
        for module, update in lora_files.read(made / name, loaded.base.family).items():
            rank, alpha = RANKS[name]
            down = torch.from_numpy(update.down.copy()).flatten(1)
            up = torch.from_numpy(update.up.copy()).flatten(1)
            own = modules[module].weight
            own.data += (weight * alpha / rank) * (up @ down).reshape(own.shape)
    from llm_lora.engines.image import painting

    with torch.no_grad():
        told = picture_prompts.encode(loaded, ["a blue star"])
        empty = picture_prompts.encode(loaded, [""])
        (merged,) = painting.render(loaded, told, empty, [2], QUICK)
    assert difference(ours, merged) <= 1
    (named,) = both.paint(["a blue star, <lora:ink:0.6> <lora:character:0.8>"], QUICK, [2])
    assert difference(ours, named) == 0


def test_at_strength_0_and_when_dropped_it_is_the_base_bit_by_bit(made: Path) -> None:
    (plain,) = painter(made).paint(["a photo"], QUICK, [1])
    some = painter(made, ("ink", 1.0))
    weak, strong, full = (row[0] for row in some.strengths(["a photo"], [0, 0.5, 1], QUICK, [1]))
    assert difference(plain, weak) == 0
    assert difference(plain, strong) > 0
    (again,) = some.paint(["a photo"], QUICK, [1])
    assert difference(full, again) == 0
    some.drop("ink")
    some.drop("ink")
    assert some.names == ()
    (without,) = some.paint(["a photo"], QUICK, [1])
    assert difference(plain, without) == 0


def test_the_bases_own_weights_are_copied_once_and_off_the_gpu(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = painter(made, ("ink", 1.0))
    some.paint(["a"], QUICK, [1])
    device = next(iter(picture_lora.modules(some._loaded).values())).weight.device
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", None)
        some._stack.wear({"ink": Weights(0.5, 0.5)})
        some._stack.wear({"ink": Weights(0.7, 0.7)})
    assert {one.device.type for one in some._stack._plain.values()} == {"cpu"}
    if device.type == "cuda":
        assert torch.cuda.memory_allocated() == before


def test_the_change_grows_with_the_strength(made: Path) -> None:
    strengths = [0, 0.1, 0.2, 0.4, 0.6]
    rows = painter(made, ("character", 1.0)).strengths(["a", "a"], strengths, QUICK, [1, 2])
    changes = [
        float(
            np.sqrt(
                np.mean([(a.astype(float) - b) ** 2 for a, b in zip(row, rows[0], strict=True)])
            )
        )
        for row in rows
    ]
    assert changes[0] == 0 and changes == sorted(changes) and changes[-1] > 1


def test_equal_seeds_give_equal_pictures_whatever_was_painted_between(made: Path) -> None:
    some = painter(made, ("ink", 1.0))
    first = some.paint(["a star"] * 3, QUICK, [1, 2, 1])
    assert difference(first[0], first[1]) > 8
    torch.rand(7)
    some.paint(["a circle <lora:ink:0.3:0.9>"], QUICK, [9])
    again = some.paint(["a star"] * 3, QUICK, [1, 2, 1])
    assert [difference(a, b) for a, b in zip(first, again, strict=True)] == [0, 0, 0]
    # Alone or in a batch: matrix products of different shapes round differently.
    assert difference(first[0], first[2]) <= 1


def test_text_encoder_and_unet_have_strengths_of_their_own(made: Path) -> None:
    some = painter(made, ("ink", 1.0))
    prompts = [f"a star <lora:ink:{pair}>" for pair in ("0:0", "1:0", "0:1", "1:1")]
    pictures = some.paint(prompts, QUICK, [4] * 4)
    (plain,) = painter(made).paint(["a star"], QUICK, [4])
    assert difference(plain, pictures[0]) <= 1
    assert all(difference(pictures[0], one) > 1 for one in pictures[1:])
    assert difference(pictures[2], pictures[3]) > 0


def test_guidance_and_what_pictures_shall_not_show(made: Path) -> None:
    some = painter(made)

    def one(**changes: Any) -> np.ndarray[Any, Any]:
        settings = Settings(**{"steps": 3, "guidance": 4.0, **changes})
        return some.paint(["a red circle"], settings, [3])[0]

    plain = one()
    assert difference(plain, one(negative_prompt="blue square")) > 1
    assert difference(plain, one(guidance=8.0)) > 1
    assert difference(one(guidance=1.0), one(guidance=1.0, negative_prompt="blue square")) == 0
    others = [one(scheduler=name, steps=6) for name in ("ddim", "euler", "dpm++")]
    # With this many steps ddim and euler nearly agree: both solve the same equation to first order.
    assert difference(others[0], others[1]) <= 8 and difference(others[1], others[2]) > 0
    assert one(width=48, height=32).shape == (32, 48, 3)


def test_empty_texts_are_what_the_pipeline_takes_for_none(made: Path) -> None:
    loaded = image_runs.loaded(made / "base")
    told = picture_prompts.encode(loaded, ["", "a red circle"])
    both = loaded.pipe.encode_prompt(
        prompt="a red circle",
        device=loaded.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
    )
    assert torch.allclose(told.hidden[1], both[0][0], atol=1e-6)
    assert torch.allclose(told.hidden[0], both[1][0], atol=1e-6)
    if told.pooled is not None:
        assert torch.allclose(told.pooled[1], both[2][0], atol=1e-6)
        assert not told.pooled[0].any() and not both[3].any()


def test_names_in_prompts_are_checked(made: Path) -> None:
    some = painter(made, ("ink", 1.0))
    with pytest.raises(UserError, match="no adapter is named rain") as error:
        some.paint(["<lora:rain:1>"], QUICK, [1])
    assert "there are: ink" in str(error.value)
    with pytest.raises(UserError, match="two adapters are named ink"):
        some.put(made / "ink.safetensors")
    assert some.put(made / "ink.safetensors", name="other") == "other"


def test_an_adapter_of_another_family_or_size_is_refused(made: Path, tmp_path: Path) -> None:
    some = painter(made)
    other = "sd1" if some.base.family == "sdxl" else "sdxl"
    module = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    name = webui.stem(module, other)  # type: ignore[arg-type]
    found = {
        f"{name}.lora_down.weight": np.zeros((1, 4), np.float32),
        f"{name}.lora_up.weight": np.zeros((4, 1), np.float32),
    }
    arrays.write(tmp_path / "other.safetensors", found, {})
    with pytest.raises(UserError, match="not of this base's architecture"):
        some.put(tmp_path / "other.safetensors")
    name = webui.stem(module, some.base.family)
    found = {key.replace(key.split(".")[0], name): value for key, value in found.items()}
    arrays.write(tmp_path / "size.safetensors", found, {})
    with pytest.raises(UserError, match=r"is 4 x 4, in the base \d+ x \d+"):
        some.put(tmp_path / "size.safetensors")
    assert some.names == ()


def test_a_manifest_names_the_adapter(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made / "ink", tmp_path / "adapter")
    (tmp_path / "adapter" / "llm_lora.json").write_text(json.dumps({"name": "harbour"}))
    assert painter(made).put(tmp_path / "adapter") == "harbour"
