"""Real image training on random tiny bases: files written, exactness, kinds of bases."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import image_runs, picture_models
from support.image_runs import stop_after, train, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llm_lora import recipe as recipes
from llm_lora.adapter import folder as adapters
from llm_lora.engines.image import lora as picture_lora
from llm_lora.engines.image import prompts as picture_prompts
from llm_lora.engines.image.latents import Latents
from llm_lora.engines.image.painting import Painter, Settings
from llm_lora.engines.shared.record import newest_checkpoint
from llm_lora.errors import UserError
from llm_lora.progress import Fit, Interrupted
from llm_lora.recipe.image.blocks import ImageLora
from llm_lora.weights import arrays

pytestmark = pytest.mark.slow

FULL = (
    "lora.dropout=0.2",
    "lora.text_encoder=true",
    "train.ema=0.9",
    "train.accumulate=2",
    "train.batch_size=2",
    "train.noise_offset=0.1",
    "train.min_snr=5",
    "data.flip=true",
    "data.shuffle_tags=true",
    "data.crop=random",
    "data.regularisation={folder}/others",
)
"""All settings at once that involve randomness or state."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    path = image_runs.make(folder)
    image_runs.drawn.folder(folder / "others", 3, (40, 48), start=50)
    return path


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fit]:
    """An uninterrupted training run, and its folder."""
    out = tmp_path_factory.mktemp("done")
    return out, train(recipe, out)


def test_a_training_leaves_what_was_promised(done: tuple[Path, Fit]) -> None:
    out, fit = done
    assert (fit.steps, fit.planned_steps, fit.stopped_early) == (6, 6, False)
    found, notes = arrays.read(out / "adapter" / adapters.WEIGHTS)
    assert len(found) == 2 * 192
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert found[name].shape == (4, 32)
    assert all(key.startswith("unet.") for key in found)
    config = json.loads((out / "adapter" / adapters.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 6)
    assert json.loads(notes["lora_adapter_metadata"])["unet.lora_alpha"] == 6
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(fit.curve)
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 3, 6]
    assert [row["step"] for row in rows if "loss" in row] == [5, 6]
    assert rows[-1]["pictures"] == fit.pictures > 6
    assert not [*out.rglob("*.bin"), *out.rglob("*.pt")]


def test_it_learns(done: tuple[Path, Fit]) -> None:
    measured = [row["validation_loss"] for row in done[1].curve if "validation_loss" in row]
    assert measured[-1] < 0.95 * measured[0]
    assert done[1].best_validation_loss == min(measured[1:])


def kept(out: Path) -> dict[str, bytes]:
    """The adapters that a run kept, by step."""
    return {path.name: (path / adapters.WEIGHTS).read_bytes() for path in (out / "steps").iterdir()}


def test_adapters_of_saved_steps_are_kept(
    recipe: Path, done: tuple[Path, Fit], tmp_path: Path
) -> None:
    assert kept(done[0]).keys() == {"step-3", "step-6"}
    assert kept(done[0])["step-6"] == weights(done[0])
    # With almost no learning rate, the first measurement stays the best.
    still = ("train.learning_rate=1.0e-12", "train.weight_decay=0", "train.samples=[]")
    few = ("train.save_every=1", "train.max_steps=4", "train.keep=2")
    fit = train(recipe, tmp_path / "best", *still, *few, "train.take=best")
    assert (fit.best_step, fit.steps, fit.stopped_early) == (1, 4, False)
    found = kept(tmp_path / "best")
    assert found.keys() == {"step-1", "step-3", "step-4"}
    assert weights(tmp_path / "best") == found["step-1"] != found["step-4"]
    fit = train(
        recipe, tmp_path / "last", *still, *few, "train.take=last", "train.patience=2",
        "train.keep=0",
    )  # fmt: skip
    assert (fit.best_step, fit.steps, fit.stopped_early) == (3, 3, True)
    assert weights(tmp_path / "last") == found["step-3"]
    assert not (tmp_path / "last" / "steps").exists()


def test_the_average_is_kept_and_taken(recipe: Path, tmp_path: Path) -> None:
    every = ("train.save_every=1", "train.max_steps=3", "train.samples=[]")
    train(recipe, tmp_path, *every, "train.ema=0.6")

    def read(step: int, name: str) -> dict[str, Any]:
        place = tmp_path / "checkpoints" / f"checkpoint-{step}" / f"{name}.safetensors"
        return arrays.read(place)[0]

    before, now, last = read(2, "average"), read(3, "average"), read(3, "weights")
    # The third step's decay: (1 + 2) / (10 + 2), since that is below 0.6.
    for key, average in now.items():
        expected = 0.25 * before[key] + 0.75 * last[key]
        assert np.allclose(average, expected, rtol=1e-5, atol=1e-8), key
    found, _ = arrays.read(tmp_path / "adapter" / adapters.WEIGHTS)
    assert all(np.array_equal(found[key], now[key]) for key in now)
    assert any(not np.array_equal(now[key], last[key]) for key in now)


def test_the_first_samples_are_the_bases_own(recipe: Path, done: tuple[Path, Fit]) -> None:
    base = image_runs.picture_base.resolve(str(recipe.parent / "sd1"))
    settings = Settings(steps=2, guidance=7.5, batch_size=2)
    (plain,) = Painter(base, precision="fp32").paint(["a red circle"], settings, [0])
    shown = np.asarray(Image.open(done[0] / "samples" / "step-0" / "00.png"))
    assert np.abs(shown.astype(int) - plain).max() <= 1
    (taught,) = Painter(base, [(done[0] / "adapter", 1.0)], "fp32").paint(
        ["a red circle"], settings, [0]
    )
    shown = np.asarray(Image.open(done[0] / "samples" / "step-6" / "00.png"))
    assert np.abs(shown.astype(int) - taught).max() <= 1


def test_samples_are_painted_and_shown(done: tuple[Path, Fit]) -> None:
    out, _ = done
    pictures = {
        path.parent.name: np.asarray(Image.open(path)) for path in out.glob("samples/*/*.png")
    }
    assert pictures.keys() == {"step-0", "step-6"}
    assert pictures["step-0"].shape == (32, 32, 3)
    assert (pictures["step-0"] != pictures["step-6"]).any()
    board = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert {"loss", "validation_loss", "learning_rate"} <= {*board.Tags()["scalars"]}
    assert [event.step for event in board.Images("samples/00")] == [0, 6]
    assert board.Scalars("validation_loss")[-1].value == pytest.approx(
        done[1].curve[-1]["validation_loss"]
    )


@pytest.mark.parametrize(
    "overrides",
    [
        (*FULL, "train.optimizer=prodigy", "train.learning_rate=1.0"),
        ("train.optimizer=adamw-8bit", "train.patience=1", "train.checkpointing=true"),
    ],
    ids=["all", "8bit"],
)
def test_interrupted_and_resumed_gives_the_same_bytes(
    recipe: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    overrides = tuple(one.format(folder=recipe.parent) for one in overrides)
    whole = train(recipe, tmp_path / "whole", *overrides)
    # Neither the step of a checkpoint nor one that is logged.
    with pytest.raises(Interrupted) as stopped:
        train(recipe, tmp_path / "cut", *overrides, listener=stop_after(4))
    assert (stopped.value.step, stopped.value.total) == (4, whole.planned_steps)
    assert not (tmp_path / "cut" / "adapter").exists()
    again = train(recipe, tmp_path / "cut", *overrides, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    told = ("step", "loss", "validation_loss", "learning_rate", "gradient_norm", "pictures")
    assert [{key: row.get(key) for key in told} for row in again.curve] == [
        {key: row.get(key) for key in told} for row in whole.curve
    ]
    sample = "samples/step-6/00.png"
    assert (tmp_path / "cut" / sample).read_bytes() == (tmp_path / "whole" / sample).read_bytes()


def test_killed_at_any_moment_and_resumed_gives_the_same_bytes(
    recipe: Path, tmp_path: Path
) -> None:
    train(recipe, tmp_path / "whole", "train.save_every=1")
    out = tmp_path / "killed"
    kills = 0
    while True:
        # A forked process, which saves the seconds of importing.
        child = os.fork()
        if child == 0:
            train(recipe, out, "train.save_every=1", resume=kills > 0)
            os._exit(0)
        before = newest_checkpoint(out / "checkpoints")
        ended = 0
        while not ended:
            # Right after a checkpoint appears, or while the next one is being written.
            now = newest_checkpoint(out / "checkpoints")
            begun = [*(out / "checkpoints").glob("checkpoint-*/weights.safetensors")]
            if now != before or (kills % 2 and len(begun) > 2):
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                assert os.WIFSIGNALED(status)
                break
            time.sleep(0.002)
            ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            break
        kills += 1
        assert kills < 12
        with (out / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "lo')
    assert kills >= 3
    assert weights(out) == weights(tmp_path / "whole")
    assert kept(out) == kept(tmp_path / "whole")


def test_a_torn_checkpoint_is_not_gone_on_from(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(recipe, tmp_path, listener=stop_after(4))
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-4"
    torn = newest.with_name("checkpoint-5")
    shutil.copytree(newest, torn)
    with (torn / "optimizer.safetensors").open("r+b") as file:
        file.truncate(100)
    assert newest_checkpoint(tmp_path / "checkpoints") == newest


def test_early_stopping_takes_the_best_weights(recipe: Path, tmp_path: Path) -> None:
    """With almost no learning rate, the first measurement stays the best."""
    often = ("train.save_every=1", "train.samples=[]", "train.max_steps=10", "train.patience=2")
    fit = train(recipe, tmp_path, *often, "train.learning_rate=1.0e-12", "train.weight_decay=0")
    assert (fit.stopped_early, fit.best_step, fit.steps) == (True, 1, 3)
    assert [row["step"] for row in fit.curve if "validation_loss" in row] == [0, 1, 2, 3]
    kept = tmp_path / "checkpoints" / "checkpoint-3"
    best, last = (arrays.read(kept / f"{name}.safetensors")[0] for name in ("best", "weights"))
    found, _ = arrays.read(tmp_path / "adapter" / adapters.WEIGHTS)
    assert all(np.array_equal(found[key], best[key]) for key in found)
    assert any(not np.array_equal(found[key], last[key]) for key in found)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_single_file_gives_the_same_adapter_as_its_folder(family: str, tmp_path: Path) -> None:
    recipe = image_runs.make(tmp_path, family)
    file = picture_models.single_file(tmp_path / family, tmp_path / f"{family}.safetensors")
    few = ("train.max_steps=2", "lora.text_encoder=true", "train.samples=[]")
    train(recipe, tmp_path / "folder", *few)
    train(recipe, tmp_path / "file", *few, f"base={file}")
    assert weights(tmp_path / "file") == weights(tmp_path / "folder")


def test_the_cache_changes_nothing_and_is_used(
    recipe: Path, done: tuple[Path, Fit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LORA_CACHE", str(tmp_path / "cache"))
    train(recipe, tmp_path / "first")
    kept = [*(tmp_path / "cache").rglob("*.safetensors")]
    assert {path.parent.parent.name for path in kept} == {"latents", "texts"}
    for path in kept[::3]:
        path.write_bytes(path.read_bytes()[:-7])
    train(recipe, tmp_path / "second")
    assert weights(tmp_path / "first") == weights(tmp_path / "second") == weights(done[0])
    with monkeypatch.context() as patch:
        patch.setattr(Latents, "_encode", None)
        train(recipe, tmp_path / "third")
    train(recipe, tmp_path / "without", "train.cache=false")
    one, _ = arrays.read(tmp_path / "without" / "adapter" / adapters.WEIGHTS)
    other, _ = arrays.read(done[0] / "adapter" / adapters.WEIGHTS)
    for key in one:
        assert np.allclose(one[key], other[key], atol=2e-4), key


def test_a_loss_that_is_no_number_stops(recipe: Path, tmp_path: Path) -> None:
    broken = recipe.parent / "broken"
    shutil.copytree(recipe.parent / "sd1", broken)
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    found, notes = arrays.read(path)
    found["conv_out.bias"] = np.full_like(found["conv_out.bias"], np.nan)
    arrays.write(path, found, notes)
    with pytest.raises(UserError, match="the loss became NaN at step 1") as error:
        train(recipe, tmp_path, f"base={broken}", "train.samples=[]")
    assert "train.learning_rate" in str(error.value)


def test_the_text_encoder_learns_at_its_own_rate(recipe: Path, tmp_path: Path) -> None:
    told: list[str] = []
    train(
        recipe,
        tmp_path,
        "lora.text_encoder=true",
        "train.text_encoder_learning_rate=1.0e-3",
        "train.samples=[]",
        tell=told.append,
    )
    found, notes = arrays.read(tmp_path / "adapter" / adapters.WEIGHTS)
    texts = {key: value for key, value in found.items() if key.startswith("text_encoder.")}
    assert len(texts) == 2 * 2 * 6
    ups = [value for key, value in texts.items() if "lora_B" in key]
    assert all(value.any() for value in ups)
    # Adam moves each weight by about the learning rate, here a tenth of the UNet's.
    largest = max(abs(value).max() for value in ups)
    in_unet = max(abs(value).max() for key, value in found.items() if "unet" in key and "_B" in key)
    assert largest < 0.2 * in_unet
    assert "text_encoder.lora_alpha" in notes["lora_adapter_metadata"]
    assert any("text encoders are trained at learning rate 0.001" in text for text in told)


def test_going_on_from_an_adapter_is_not_resuming(
    recipe: Path, done: tuple[Path, Fit], tmp_path: Path
) -> None:
    """With almost no learning rate, the output is the input, with its rank and alpha."""
    before, _ = arrays.read(done[0] / "adapter" / adapters.WEIGHTS)
    still = ("train.learning_rate=1.0e-12", "train.samples=[]", "train.weight_decay=0")
    other = ("lora.rank=2", "lora.alpha=1")
    told: list[str] = []
    start = f"train.start_from={done[0] / 'adapter'}"
    fit = train(recipe, tmp_path, *still, *other, start, tell=told.append)
    assert fit.steps == 6
    after, _ = arrays.read(tmp_path / "adapter" / adapters.WEIGHTS)
    config = json.loads((tmp_path / "adapter" / adapters.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 6)
    assert after.keys() == before.keys()
    assert all(np.allclose(after[key], before[key], atol=1e-7) for key in before)
    assert "continuing from adapter: rank 4, alpha 6, 192 modules" in told
    losses = [row["validation_loss"] for row in fit.curve if "validation_loss" in row]
    assert losses[0] == pytest.approx(done[1].curve[-1]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("cache", ["true", "false"])
def test_text_encoders_that_do_not_learn_drop_nothing_out(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    loaded = image_runs.loaded(recipe.parent / "sd1")
    layers = picture_lora.fresh(loaded, ImageLora(rank=2, text_encoder=True), seed=1)
    picture_lora.save(layers.tensors(), layers, tmp_path / "before", loaded.base, 0.0)
    learning = []

    def encode(loaded: Any, texts: Any) -> Any:
        learning.append({one.training for one in loaded.pipe.text_encoder.modules()})
        return real(loaded, texts)

    real = picture_prompts.encode
    monkeypatch.setattr(picture_prompts, "encode", encode)
    few = ("train.max_steps=1", "train.samples=[]", "lora.dropout=0.5", f"train.cache={cache}")
    train(recipe, tmp_path, *few, f"train.start_from={tmp_path / 'before'}")
    assert learning and all(one == {False} for one in learning)


def product(update: Any) -> Any:
    """The update of a module's weight, as a matrix."""
    up = update.up.reshape(-1, update.rank) @ update.down.reshape(update.rank, -1)
    return update.alpha / update.rank * up


def test_going_on_from_a_webuis_file(recipe: Path, done: tuple[Path, Fit], tmp_path: Path) -> None:
    from llm_lora.adapter.webui import files as lora_files

    lora = lora_files.read(done[0] / "adapter", "sd1")
    # One module with a different rank and alpha, as in merged adapters.
    name, odd = next(iter(lora.items()))
    lora[name] = lora_files.Module(odd.down[:2], odd.up[:, :2], 1.0)
    path = tmp_path / "style.safetensors"
    arrays.write(path, lora_files.to_arrays(lora, "sd1"), {})
    told: list[str] = []
    still = ("train.learning_rate=1.0e-12", "train.samples=[]", "train.weight_decay=0")
    train(recipe, tmp_path, *still, f"train.start_from={path}", tell=told.append)
    after = lora_files.read(tmp_path / "adapter", "sd1")
    for module, update in lora.items():
        assert after[module].alpha == 6 and after[module].rank == 4
        assert np.allclose(product(after[module]), product(update), atol=1e-6), module
    assert "their ranks or alphas differed" in "".join(told)


def test_an_adapter_of_another_base_is_not_gone_on_from(recipe: Path, tmp_path: Path) -> None:
    key = "lora_unet_input_blocks_4_1_proj_in"
    arrays.write(tmp_path / "xl.safetensors", {f"{key}.alpha": np.array(1.0)}, {})
    with pytest.raises(UserError, match="SDXL by its names"):
        train(recipe, tmp_path, f"train.start_from={tmp_path / 'xl.safetensors'}")


@pytest.mark.parametrize(
    ("targets", "modules"), [("attention", 128), ("[to_q, ff.net.2]", 48), ("[to_nowhere]", 0)]
)
def test_targets(recipe: Path, tmp_path: Path, targets: str, modules: int) -> None:
    chosen = recipes.load(recipe, overrides=[f"lora.targets={targets}"]).lora
    base = image_runs.loaded(recipe.parent / "sd1")
    if modules:
        assert len(picture_lora.fresh(base, chosen, 0).modules) == modules
    else:
        with pytest.raises(UserError, match="no module of the UNet ends with to_nowhere"):
            picture_lora.fresh(base, chosen, 0)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_learn(family: str, tmp_path: Path) -> None:
    path = image_runs.make(tmp_path, family)
    fit = train(path, tmp_path / "run", "lora.text_encoder=true")
    measured = [row["validation_loss"] for row in fit.curve if "validation_loss" in row]
    assert measured[-1] < measured[0]
    found, _ = arrays.read(tmp_path / "run" / "adapter" / adapters.WEIGHTS)
    parts = {key.partition(".")[0] for key in found}
    two = {"text_encoder_2"} if family == "sdxl" else set()
    assert parts == {"unet", "text_encoder"} | two
    assert (tmp_path / "run/samples/step-6/00.png").is_file()
