"""Real gradients of a training step: settings that must change them, and ones that must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from support import image_runs
from support.image_runs import train

from llm_lora.engines.image import lora as picture_lora
from llm_lora.engines.image import noise as picture_noise
from llm_lora.engines.image.latents import Cut
from llm_lora.engines.image.noise import Noised
from llm_lora.engines.image.train.loop import Training
from llm_lora.engines.shared import loading
from llm_lora.recipe.image.blocks import ImageLora

pytestmark = pytest.mark.slow

Gradients = dict[str, torch.Tensor]


class Enough(Exception):
    """Stops training once the first step's gradients are known."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training pictures, four of the class, and an adapter that already has an effect."""
    folder = tmp_path_factory.mktemp("gradients")
    path = image_runs.make(folder)
    image_runs.drawn.folder(folder / "four", 4, (48, 40), start=20)
    image_runs.drawn.folder(folder / "class", 4, (48, 40), start=60)
    image_runs.drawn.folder(folder / "held_out", 1, (48, 40), start=80)
    loaded = image_runs.loaded(folder / "sd1")
    layers = picture_lora.fresh(loaded, ImageLora(rank=4, alpha=6, text_encoder=True), seed=1)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.normal_(0, 0.05)
    picture_lora.save(layers.tensors(), layers, folder / "start", loaded.base, 0.0)
    return path


def gradients(recipe: Path, out: Path, *overrides: str) -> Gradients:
    """The gradients of the first step over the four pictures, by the names of the adapter's file.

    The first is of all pictures at once, so every way to cut it into batches sees the same.
    """
    kept: Gradients = {}
    real = Training._gradients

    def once(self: Training, batches: Any) -> float:
        real(self, batches)
        for name, module in self._means.layers.modules.items():
            for side in "AB":
                half = getattr(module, f"lora_{side}")["default"].weight
                if half.requires_grad:
                    kept[f"{name}.{side}"] = half.grad.clone()
        raise Enough

    folder = recipe.parent
    four = (f"data.train={folder}/four", f"data.held_out={folder}/held_out", "train.samples=[]")
    start = f"train.start_from={folder}/start"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_gradients", once)
        with pytest.raises(Enough):
            train(recipe, out, *four, start, "data.caption_dropout=0", *overrides)
    assert {one.dtype for one in kept.values()} == {torch.float32}
    # Attention over a single latent, in the deepest blocks, gives queries and keys no gradient.
    assert sum(bool(one.any()) for one in kept.values()) > 0.8 * len(kept)
    return kept


@pytest.fixture(scope="module")
def plain(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Gradients:
    return gradients(recipe, tmp_path_factory.mktemp("plain"))


def apart(one: Gradients, other: Gradients) -> float:
    """The norm of the difference, relative to the norm."""
    assert one.keys() == other.keys()
    difference = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return (difference / sum(float(value.square().sum()) for value in one.values())) ** 0.5


@pytest.mark.parametrize(("size", "accumulate"), [(2, 2), (1, 4), (3, 2)])
def test_accumulated_batches_give_the_gradients_of_one(
    recipe: Path, plain: Gradients, tmp_path: Path, size: int, accumulate: int
) -> None:
    """Also with a smaller last batch: every picture has the same weight."""
    cut = (f"train.batch_size={size}", f"train.accumulate={accumulate}")
    assert apart(plain, gradients(recipe, tmp_path, *cut)) < 1e-4


def test_checkpointing_gives_the_same_gradients(
    recipe: Path, plain: Gradients, tmp_path: Path
) -> None:
    """In the UNet and the text encoder, and with dropout, which must be drawn identically again."""
    assert apart(plain, gradients(recipe, tmp_path, "train.checkpointing=true")) < 1e-5
    texts = ("lora.text_encoder=true", "lora.dropout=0.3")
    one = gradients(recipe, tmp_path, *texts)
    other = gradients(recipe, tmp_path, *texts, "train.checkpointing=true")
    assert any(name.startswith("text_encoder.") for name in one)
    assert apart(one, other) < 1e-5


def test_bf16_is_near(
    recipe: Path, plain: Gradients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the processor has no bf16 instructions torch emulates them: slowly, to the same effect.
    monkeypatch.setattr(loading, "_cpu_has", lambda *flags: True)
    half = gradients(recipe, tmp_path, "train.precision=bf16")
    assert 1e-4 < apart(plain, half) < 0.1


def test_dropout_is_in_steps_alone(recipe: Path, plain: Gradients, tmp_path: Path) -> None:
    def measured(folder: Path) -> float:
        (row,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return float(row["validation_loss"])

    dropped = gradients(recipe, tmp_path / "a", "lora.dropout=0.4")
    assert apart(plain, dropped) > 0.1
    assert apart(dropped, gradients(recipe, tmp_path / "b", "lora.dropout=0.4")) == 0
    gradients(recipe, tmp_path / "c")
    assert measured(tmp_path / "a") == pytest.approx(measured(tmp_path / "c"), rel=1e-5)


def test_pictures_of_the_class_count_as_told(
    recipe: Path, plain: Gradients, tmp_path: Path
) -> None:
    kept = (f"data.regularisation={recipe.parent}/class", "train.batch_size=8")
    none, half, full = (
        gradients(recipe, tmp_path / str(weight), *kept, f"train.prior_weight={weight}")
        for weight in (0, 0.5, 1)
    )
    # The mean is over twice as many pictures, half of which have weight 0.
    assert apart(plain, {name: 2 * one for name, one in none.items()}) < 1e-4
    assert apart(half, {name: (none[name] + full[name]) / 2 for name in none}) < 1e-4
    assert apart(none, full) > 0.1


def test_min_snr_weighs_a_step_by_its_level(recipe: Path, tmp_path: Path) -> None:
    one = gradients(recipe, tmp_path, "train.batch_size=1")
    weighed = gradients(recipe, tmp_path, "train.batch_size=1", "train.min_snr=0.01")
    name = max(one, key=lambda key: float(one[key].abs().max()))
    ratio = float((weighed[name] * one[name]).sum() / one[name].square().sum())
    assert apart(weighed, {key: ratio * value for key, value in one.items()}) < 1e-4
    alphas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    table = picture_noise.weights(alphas.alphas_cumprod, "epsilon", 0.01)
    assert ratio < 0.9 and float(((table - ratio).abs() / ratio).min()) < 1e-3


def test_offset_noise_teaches_otherwise(recipe: Path, plain: Gradients, tmp_path: Path) -> None:
    assert apart(plain, gradients(recipe, tmp_path, "train.noise_offset=0.3")) > 0.05


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_step_is_what_the_documented_recipe_computes(family: str, tmp_path: Path) -> None:
    """Loss and gradients against diffusers' components, combined by hand as in its scripts."""
    path = image_runs.make(tmp_path, family)
    kept: dict[str, Any] = {}
    real = Training._gradients

    def once(self: Training, batches: Any) -> float:
        means, layers = self._means, self._means.layers.modules
        kept["loss"] = real(self, batches)
        ours = {name: one.lora_B["default"].weight.grad.clone() for name, one in layers.items()}
        means.optimizer.clear()
        (batch,) = batches
        noised = means.noise.learn(
            [self._latents[one.cut] for one in batch], [one.key for one in batch]
        )
        clean, noise = _taken_apart(self, noised)
        moments = [self._latents[one.cut] for one in batch]
        drawn = clean / means.loaded.pipe.vae.config.scaling_factor
        drawn = (drawn - torch.stack([one.mean for one in moments])) / torch.stack(
            [one.spread for one in moments]
        )
        for values in (drawn, noise):
            assert values.abs().max() < 6 and 0.7 < values.std() < 1.3
        reference = _documented(means.loaded, batch, clean, noise, noised.timesteps)
        reference.backward()
        kept["reference"] = reference.item()
        for name, module in layers.items():
            theirs = module.lora_B["default"].weight.grad
            assert torch.allclose(ours[name], theirs, rtol=1e-3, atol=1e-6), name
        raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_gradients", once)
        with pytest.raises(Enough):
            train(path, tmp_path / "run", "train.samples=[]", "data.caption_dropout=0")
    assert kept["loss"] == pytest.approx(kept["reference"], rel=1e-5)


def _taken_apart(training: Training, noised: Noised) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and noise, recovered from the result."""
    loaded = training._means.loaded
    left = DDPMScheduler.from_config(loaded.noise).alphas_cumprod[noised.timesteps]
    a, s = left.sqrt()[:, None, None, None], (1 - left).sqrt()[:, None, None, None]
    if loaded.base.prediction == "v":
        return a * noised.latents - s * noised.target, s * noised.latents + a * noised.target
    return (noised.latents - s * noised.target) / a, noised.target


def _documented(
    loaded: Any, batch: Any, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """As in diffusers' train_text_to_image_lora.py and train_text_to_image_lora_sdxl.py."""
    pipe = loaded.pipe
    scheduler = DDPMScheduler.from_config(loaded.noise)

    def ids(tokenizer: Any) -> torch.Tensor:
        captions = [one.caption for one in batch]
        told = tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        return told.input_ids  # type: ignore[no-any-return]

    more: dict[str, Any] = {}
    with torch.no_grad():
        if loaded.base.family == "sdxl":
            one = pipe.text_encoder(ids(pipe.tokenizer), output_hidden_states=True)
            two = pipe.text_encoder_2(ids(pipe.tokenizer_2), output_hidden_states=True)
            hidden = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
            told = [_told(one.cut) for one in batch]
            more = {"text_embeds": two.text_embeds, "time_ids": torch.tensor(told).float()}
        else:
            hidden = pipe.text_encoder(ids(pipe.tokenizer))[0]
    noisy = scheduler.add_noise(clean, noise, timesteps)
    v = loaded.base.prediction == "v"
    target = scheduler.get_velocity(clean, noise, timesteps) if v else noise
    guess = pipe.unet(noisy, timesteps, hidden, added_cond_kwargs=more or None).sample
    return F.mse_loss(guess, target)


def _told(cut: Cut) -> list[int]:
    """SDXL's size conditioning of a picture that was scaled and cropped in its centre."""
    factor = cut.bucket.height / (cut.crop.bottom - cut.crop.top)
    corner = [round(cut.crop.top * factor), round(cut.crop.left * factor)]
    size = [cut.picture.height, cut.picture.width]
    return [*size, *corner, cut.bucket.height, cut.bucket.width]
