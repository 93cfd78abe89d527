"""Unit tests of image training: noise, weights, order, optimizers, encoding."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lora.base import image as picture_base
from llm_lora.base.image import PictureBase
from llm_lora.data.image import buckets, captions
from llm_lora.data.image.buckets import Bucket
from llm_lora.data.image.dataset import Picture, PictureDataset
from llm_lora.engines.image import cache as picture_cache
from llm_lora.engines.image import fused as picture_fused
from llm_lora.engines.image import latents as picture_latents
from llm_lora.engines.image import loading as picture_loading
from llm_lora.engines.image import noise as picture_noise
from llm_lora.engines.image.latents import Cut
from llm_lora.engines.image.noise import Moments, Noise
from llm_lora.engines.image.train import checkpoints as picture_checkpoints
from llm_lora.engines.image.train import order as picture_order
from llm_lora.engines.image.train.checkpoints import Checkpoint, Rungs, State
from llm_lora.engines.image.train.optimizer import Optimizer, share
from llm_lora.engines.image.train.record import Record
from llm_lora.errors import UserError
from llm_lora.recipe.image.blocks import ImageData, ImageTrain
from llm_lora.recipe.image.recipe import ImageRecipe


def scheduler(prediction: str = "epsilon") -> Any:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if prediction == "v" else "epsilon",
    )


def noise(prediction: str = "epsilon", **options: Any) -> Noise:
    given = {"scaling": 0.5, "min_snr": None, "offset": 0.0, "seed": 1, **options}
    return Noise(scheduler(prediction), prediction=prediction, **given)


def moments(seed: int, shape: tuple[int, ...] = (4, 6, 8)) -> Moments:
    draw = torch.Generator().manual_seed(seed)
    return Moments(torch.randn(shape, generator=draw), torch.rand(shape, generator=draw))


def test_min_snr_weighs_as_the_paper_says() -> None:
    alphas = scheduler().alphas_cumprod
    ratio = (alphas / (1 - alphas)).double()
    five = torch.full_like(ratio, 5.0)
    noise_weights = picture_noise.weights(alphas, "epsilon", 5.0).double()
    v_weights = picture_noise.weights(alphas, "v", 5.0).double()
    assert torch.allclose(noise_weights, torch.minimum(ratio, five) / ratio, rtol=1e-4)
    assert torch.allclose(v_weights, torch.minimum(ratio, five) / (ratio + 1), rtol=1e-4)
    assert noise_weights[-1] == 1 and noise_weights[0] < 0.01
    assert torch.equal(picture_noise.weights(alphas, "v", None), torch.ones(1000))
    # At the step with no signal left.
    none = torch.zeros(1)
    assert picture_noise.weights(none, "epsilon", 5.0) == 1
    assert picture_noise.weights(none, "v", 5.0) == 0


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++"])
def test_what_is_known_of_a_base_goes_before_what_its_scheduler_keeps_silent_on(name: str) -> None:
    tiny = picture_base.resolve("tiny")
    told = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    silent = PNDMScheduler.from_config(told).config
    assert "prediction_type" not in told and silent["prediction_type"] == "epsilon"

    def made(base: PictureBase, config: Any = silent) -> list[Any]:
        loaded: Any = SimpleNamespace(noise=picture_loading._noise(base, config))
        return [picture_loading.sampler(loaded, name), picture_loading.noise_scheduler(loaded)]

    for one in made(replace(tiny, prediction="v")):
        assert one.config.prediction_type == "v_prediction"
    for one in made(replace(tiny, prediction="epsilon"), {**silent, "prediction_type": "sample"}):
        assert one.config.prediction_type == "epsilon"
    paints, learns = made(replace(tiny, prediction="v", zero_snr=True))
    assert learns.alphas_cumprod[-1] == 0 and paints.alphas_cumprod[-1] < 1e-6
    paints.set_timesteps(10)
    assert paints.timesteps[0] == 999
    # Without a setting, each scheduler uses its own default.
    plain = type(paints).from_config({**told, **picture_loading._SAMPLERS[name][1]})
    spacing = made(replace(tiny, prediction="v"))[0].config.timestep_spacing
    assert spacing == plain.config.timestep_spacing


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_latents_noise_and_target_belong_together(prediction: str) -> None:
    some = [moments(1), moments(2)]
    noised = noise(prediction).learn(some, [(0, 0), (1, 0)])
    left = scheduler().alphas_cumprod[noised.timesteps][:, None, None, None]
    if prediction == "epsilon":
        put_on = noised.target
        clean = (noised.latents - (1 - left).sqrt() * put_on) / left.sqrt()
    else:
        clean = left.sqrt() * noised.latents - (1 - left).sqrt() * noised.target
        put_on = (1 - left).sqrt() * noised.latents + left.sqrt() * noised.target
    drawn = (clean / 0.5 - torch.stack([one.mean for one in some])) / torch.stack(
        [one.spread for one in some]
    )
    for values in (drawn, put_on):
        assert abs(values.mean()) < 0.3 and 0.8 < values.std() < 1.2


def test_noise_depends_on_the_picture_and_its_turn_alone() -> None:
    some = noise(offset=0.3)
    both = some.learn([moments(1), moments(2)], [(4, 0), (7, 2)])
    alone = some.learn([moments(2)], [(7, 2)])
    assert torch.equal(both.latents[1:], alone.latents)
    assert torch.equal(both.timesteps[1:], alone.timesteps)
    assert not torch.equal(some.learn([moments(2)], [(7, 3)]).target, alone.target)
    assert not torch.equal(noise(offset=0.3, seed=2).learn([moments(2)], [(7, 2)]).target,
                           alone.target)  # fmt: skip


def test_offset_noise_is_the_same_all_over_a_channel() -> None:
    with_offset = noise(offset=0.5).learn([moments(1)], [(3, 0)]).target
    without = noise().learn([moments(1)], [(3, 0)]).target
    added = (with_offset - without)[0]
    assert torch.allclose(added, added[:, :1, :1].expand_as(added), atol=1e-6)
    assert added[:, 0, 0].unique().numel() == 4


def test_levels_are_spread_evenly_and_stay_the_same_when_measured() -> None:
    some = noise(min_snr=5.0)
    first = some.watch([moments(1)] * 4, [(0, level) for level in range(4)], 4)
    assert first.timesteps.tolist() == [125, 375, 625, 875]
    assert torch.equal(first.weights, torch.ones(4))
    some.learn([moments(5)], [(1, 1)])
    again = some.watch([moments(1)] * 4, [(0, level) for level in range(4)], 4)
    assert torch.equal(first.latents, again.latents)


def test_the_loss_counts_pictures_as_told() -> None:
    noised = noise(min_snr=1.0).learn([moments(1), moments(2)], [(0, 0), (1, 0)])
    guess = torch.zeros_like(noised.target)
    by_hand = sum(
        float(noised.weights[i]) * counts * float(noised.target[i].square().mean())
        for i, counts in enumerate((1.0, 0.25))
    )
    found = picture_noise.loss(guess, noised, torch.tensor([1.0, 0.25]))
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


# LoRA layers


@pytest.mark.parametrize("kind", ["linear", "without bias", "pixels", "half"])
def test_base_and_adapter_together_are_what_peft_computes(kind: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(1)
    base: Any = torch.nn.Linear(24, 12, bias=kind != "without bias")
    shape: tuple[int, ...] = (3, 7, 24)
    if kind == "pixels":
        base, shape = torch.nn.Conv2d(24, 12, 1), (3, 24, 5, 4)
    model = torch.nn.Sequential(base.requires_grad_(False))
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=["0"]), model)
    layer = model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    if kind == "half":
        base.to(torch.bfloat16)
    given = torch.randn(shape)
    wanted = torch.randn((3, 12, 5, 4) if kind == "pixels" else (3, 7, 12))

    def results() -> list[torch.Tensor]:
        layer.zero_grad()
        x = given.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "half"):
            out = layer(x)
        (out.float() * wanted).sum().backward()
        halves = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        assert all(half.grad.dtype == torch.float32 for half in halves)
        return [out.detach().float(), x.grad, *(half.grad.clone() for half in halves)]

    before = results()
    picture_fused.fuse(layer)
    assert "forward" in vars(layer)
    for one, other in zip(before, results(), strict=True):
        close = 0.03 * other.abs().max().item() if kind == "half" else 1e-5
        assert torch.allclose(one, other, atol=close, rtol=1e-4)


def test_layers_that_drop_out_or_look_around_stay_pefts() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["0"])
    inject_adapter_in_model(config, model)
    picture_fused.fuse(model[0])
    assert "forward" not in vars(model[0])
    around = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), around)
    picture_fused.fuse(around[0])
    assert "forward" not in vars(around[0])


# Learning rates and optimizers


@settings(deadline=None)
@given(st.integers(1, 500), st.floats(0, 0.9), st.sampled_from(["cosine", "linear", "constant"]))
def test_learning_rates_rise_then_fall(steps: int, warmup: float, schedule: str) -> None:
    found = [share(step, steps, warmup, schedule) for step in range(steps)]
    rising = round(warmup * steps)
    assert all(0 <= one <= 1 for one in found)
    assert found[:rising] == sorted(found[:rising])
    assert found[rising:] == sorted(found[rising:], reverse=True)
    assert found[0] > 0


def layers(parameters: list[torch.nn.Parameter], texts: list[torch.nn.Parameter]) -> Any:
    return SimpleNamespace(
        parameters=lambda component: parameters if component == "unet." else texts
    )


def made(name: str, seed: int = 3) -> tuple[Optimizer, list[torch.nn.Parameter]]:
    torch.manual_seed(seed)
    # Two are large enough for 8-bit state in bitsandbytes: at least 4096 elements.
    each = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((80, 64), (64, 70), (5, 3))]
    train = ImageTrain(optimizer=name, learning_rate=1.0 if name == "prodigy" else 0.01)
    return Optimizer(layers(each[:1], each[1:]), train, 20), each


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit", "prodigy"])
def test_an_optimizer_goes_on_exactly_from_a_checkpoint(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def steps(optimizer: Optimizer, both: list[torch.nn.Parameter], first: int, last: int) -> None:
        for step in range(first, last):
            for parameter in both:
                draw = torch.Generator().manual_seed(step)
                parameter.grad = parameter.detach() + torch.randn(parameter.shape, generator=draw)
            optimizer.step(step, scaler)

    whole, expected = made(name)
    steps(whole, expected, 0, 12)
    first, weights = made(name)
    before = [one.detach().clone() for one in weights]
    steps(first, weights, 0, 7)
    tensors, rest = first.state()
    second, again = made(name, seed=4)
    for one, other in zip(again, weights, strict=True):
        one.data.copy_(other.data)
    state = State(7, Rungs(checkpointing=False, cache=True))
    Checkpoint(state, {}, {}, {}, tensors, rest).write(tmp_path)
    kept = picture_checkpoints.newest(tmp_path)
    assert kept is not None and kept.state == state
    second.load(kept.optimizer, kept.rest)
    steps(second, again, 7, 12)
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(again, before, strict=True))
    assert capsys.readouterr().out == ""


# The order


def recipe_of(**changes: Any) -> ImageRecipe:
    """A recipe with changed settings, each given by its name without the block."""
    data = ImageData(train=Path("/p"), held_out=0.1, bucket_step=8, caption_dropout=0.1)
    blocks: dict[str, Any] = {"data": data, "train": ImageTrain(batch_size=4)}
    for name, block in blocks.items():
        own = {key: value for key, value in changes.items() if key in type(block).model_fields}
        blocks[name] = block.model_copy(update=own)
    return ImageRecipe(task="image", name="small", base="tiny", **blocks)


def pictures(count: int, start: int = 0) -> tuple[Picture, ...]:
    sizes = [(64, 64), (96, 48), (40, 90)]
    return tuple(
        Picture(Path(f"/p/{i}.png"), f"sks, tag {i}, other", f"{i:064x}", *sizes[i % 3])
        for i in range(start, start + count)
    )


def dataset(train: int, regularisation: int = 0) -> PictureDataset:
    return PictureDataset(pictures(train), pictures(3, 500), pictures(regularisation, 900), (), (),
                          "", {})  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(
    train=st.integers(1, 12),
    regularisation=st.integers(0, 5),
    repeats=st.integers(1, 3),
    batch=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    epochs=st.integers(1, 3),
)
def test_every_epoch_shows_every_picture(
    train: int,
    regularisation: int,
    repeats: int,
    batch: int,
    accumulate: int,
    epochs: int,
) -> None:
    recipe = recipe_of(
        repeats=repeats,
        batch_size=batch,
        accumulate=accumulate,
        epochs=float(epochs),
        prior_weight=0.5,
    )
    some = dataset(train, regularisation)
    order = picture_order.plan(recipe, some, 64)
    every = [one for step in order.steps for part in step for one in part]
    shown = Counter(one.cut.picture for one in every if one.counts == 1)
    kept = Counter(one.cut.picture for one in every if one.counts == 0.5)
    assert shown == dict.fromkeys(some.train, repeats * epochs)
    if regularisation:
        # One for each picture, in turn.
        assert sum(kept.values()) == train * repeats * epochs
        assert max(kept.values()) - min(kept[one] for one in some.regularisation) <= 1
        assert all(one.caption == one.cut.picture.caption for one in every if one.counts != 1)
    else:
        assert not kept
    for step in order.steps:
        assert len(step) <= accumulate
        for part in step:
            assert len(part) <= batch and len({one.cut.bucket for one in part}) == 1
    assert order.shown[-1] == len(every) and len(order.shown) == len(order.steps) + 1
    assert len({one.key for one in every}) == len(every)
    assert picture_order.plan(recipe, some, 64) == order


def test_the_order_is_another_one_in_every_epoch_and_for_every_seed() -> None:
    recipe = recipe_of(epochs=2.0, shuffle_tags=True)
    some = dataset(12)

    def names(order: picture_order.Order) -> list[str]:
        return [one.cut.picture.path.stem for step in order.steps for part in step for one in part]

    first = names(picture_order.plan(recipe, some, 64))
    assert first[:12] != first[12:] and sorted(first[:12]) == sorted(first[12:])
    other = recipe_of(epochs=2.0, shuffle_tags=True, seed=1)
    assert names(picture_order.plan(other, some, 64)) != first


def test_max_steps_ends_the_order() -> None:
    recipe = recipe_of(max_steps=2, accumulate=2, batch_size=1)
    order = picture_order.plan(recipe, dataset(9), 64)
    assert [len(step) for step in order.steps] == [2, 2] and order.shown == (0, 2, 4)


def test_captions_vary_as_the_recipe_says() -> None:
    recipe = recipe_of(caption_dropout=0.5, shuffle_tags=True, keep_tags=1, epochs=20.0)
    order = picture_order.plan(recipe, dataset(4), 64)
    told = Counter(one.caption for step in order.steps for part in step for one in part)
    assert 20 <= told[""] <= 60
    assert all(text.startswith("sks, ") for text in told if text)
    assert "sks, tag 1, other" in told and "sks, other, tag 1" in told
    assert captions.vary("a, b", random.Random(0)) == "a, b"


# Pictures


def test_a_cut_shows_its_part_mirrored_or_not(tmp_path: Path) -> None:
    from PIL import Image

    array = np.zeros((40, 80, 3), np.uint8)
    array[:, :40, 0] = 255
    array[:20, :, 2] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    picture = Picture(tmp_path / "a.png", "", "0" * 64, 80, 40)
    bucket = Bucket(16, 16)
    middle = buckets.crop((80, 40), bucket)
    plain = picture_latents.pixels(Cut(picture, bucket, middle, flip=False))
    assert plain.shape == (3, 16, 16)
    assert plain[0, :, :7].min() > 0.98 and plain[0, :, 9:].max() < -0.98
    assert plain[2, :7].min() > 0.98 and plain[2, 9:].max() < -0.98
    mirrored = picture_latents.pixels(Cut(picture, bucket, middle, flip=True))
    assert torch.equal(mirrored, plain.flip(2))
    left = Cut(picture, bucket, buckets.crop((80, 40), bucket, (0.0, 0.5)), flip=False)
    assert picture_latents.pixels(left)[0, :, :14].min() > 0.98
    right = Cut(picture, bucket, buckets.crop((80, 40), bucket, (1.0, 0.5)), flip=False)
    assert right.time_ids == (40, 80, 0, 16, 16, 16)
    # Mirrored, the left edge of the crop is where the picture's right edge was.
    assert replace(right, flip=True).time_ids == (40, 80, 0, 0, 16, 16)
    assert replace(left, flip=True).time_ids == (40, 80, 0, 16, 16, 16)
    assert len({cut.key for cut in (left, right, Cut(picture, bucket, middle, flip=True))}) == 3


def test_the_cache_keeps_what_was_put_and_forgets_what_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LORA_CACHE", str(tmp_path))
    cache = picture_cache.Cache("latents", "digest")
    assert cache.get("a") is None
    cache.put("a", {"x": torch.arange(6.0).reshape(2, 3)})
    found = cache.get("a")
    assert found is not None and torch.equal(found["x"], torch.arange(6.0).reshape(2, 3))
    assert picture_cache.Cache("latents", "other").get("a") is None
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.get("a") is None


def test_fp16_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="fp16, which needs a GPU"):
        picture_loading.compute_dtype("fp16")
    assert picture_loading.compute_dtype("auto")[0] == torch.float32


def test_a_gradient_that_overflowed_has_no_length(tmp_path: Path) -> None:
    record = Record(
        tmp_path / "metrics.jsonl",
        tmp_path / "tensorboard",
        tmp_path / "samples",
        lambda progress: None,
        shown=(0, 4, 8),
        steps_per_epoch=2.0,
        step=0,
        peak_memory=lambda: 0,
    )
    record.losses(1, [0.5, 1.5], 0.1, float("inf"))
    record.losses(2, [1.0], 0.1, 2.0)
    record.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] == 1.0 and "gradient_norm" not in first
    assert second["gradient_norm"] == 2.0 and second["epoch"] == 1.0
