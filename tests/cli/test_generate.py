"""`llm-lora generate` and `llm-lora export --webui`, on a real run of a few seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support import image_runs
from support.adapter_folders import write_adapter

from llm_lora import files
from llm_lora import recipe as recipes
from llm_lora import run as runs
from llm_lora.adapter import sources as picture_sources
from llm_lora.adapter.webui import files as lora_files
from llm_lora.cli import painting
from llm_lora.cli.commands import app
from llm_lora.engines.image import painting as engine_painting
from llm_lora.engines.image.painting import Settings
from llm_lora.errors import UserError
from llm_lora.run import Run
from llm_lora.tasks.image import task as image_task
from llm_lora.weights import arrays

pytestmark = pytest.mark.slow

STEPS = ("train.max_steps=3", "train.save_every=1")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as training leaves it."""
    folder = tmp_path_factory.mktemp("generate")
    recipe = recipes.load(image_runs.make(folder), overrides=STEPS)
    prepared = image_task.prepare(recipe)
    here = runs.create(folder / "runs", recipe.name, recipe.to_yaml)
    prepared.dataset.write(here.dataset)
    fit = image_runs.train(folder / "small.yaml", here.folder, *STEPS)
    files.write_json(here.fit, asdict(fit))
    image_task.seal(prepared, here)
    return here


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path)).astype(int)


def test_pictures_are_painted_and_tell_how(here: Run, tmp_path: Path) -> None:
    told = json.loads(
        invoke("generate", here.folder, "a red circle", "--seed", 3, "--count", 2, "--out",
               tmp_path, "--negative", "blue", "--json")
    )  # fmt: skip
    assert told["pictures"] == [str(tmp_path / "3.png"), str(tmp_path / "4.png")]
    assert (told["steps"], told["negative_prompt"]) == (2, "blue")
    first, second = map(pixels, told["pictures"])
    assert first.shape == (32, 32, 3) and (first != second).any()
    notes = json.loads(Image.open(tmp_path / "3.png").text["llm-lora"])  # type: ignore[attr-defined]
    assert (notes["prompt"], notes["seed"]) == ("a red circle", 3)
    invoke("generate", here.adapter, "a red circle", "--seed", 3, "--out", tmp_path / "b",
           "--negative", "blue")  # fmt: skip
    # Alone or in a batch: matrix products of different shapes round differently.
    assert np.abs(pixels(tmp_path / "b" / "3.png") - first).max() <= 1


def test_what_was_painted_before_stays(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in ("a red circle", "a blue star", "a star"):
        output = invoke("generate", here.folder, prompt, "--out", tmp_path)
    assert str(tmp_path / "0-3.png") in output.replace("\n", "")
    assert (pixels(tmp_path / "0.png") != pixels(tmp_path / "0-2.png")).any()
    notes = [Image.open(tmp_path / f"{name}.png").text["llm-lora"] for name in ("0", "0-3")]  # type: ignore[attr-defined]
    assert [json.loads(one)["prompt"] for one in notes] == ["a red circle", "a star"]

    # Each batch is written as soon as it is painted.
    real, batches = engine_painting.render, iter(range(2))

    def render(*arguments: Any) -> Any:
        if next(batches):
            raise UserError("out of memory")
        return real(*arguments)

    monkeypatch.setattr(engine_painting, "render", render)
    with pytest.raises(UserError, match="out of memory"):
        invoke("generate", here.folder, "a star", "--count", 6, "--out", tmp_path / "six")
    assert sorted(path.name for path in (tmp_path / "six").iterdir()) == [
        *("0.png", "1.png", "2.png", "3.png")
    ]


def test_an_exported_file_paints_the_same_and_is_named_in_prompts(
    here: Run, tmp_path: Path
) -> None:
    output = invoke("export", here.folder, "--webui", tmp_path / "Lora")
    file = tmp_path / "Lora" / "small.safetensors"
    assert str(file) in output and "<lora:small:0.8>" in output
    assert arrays.metadata(file)["ss_base_model_version"] == "sd_v1"
    assert json.loads(file.with_suffix(".json").read_text())["sd version"] == "SD1"
    assert (pixels(file.with_suffix(".png")) == pixels(here.samples / "step-3" / "00.png")).all()
    trained, written = lora_files.read(here.adapter, "sd1"), lora_files.read(file, "sd1")
    assert trained.keys() == written.keys()
    assert {update.alpha for update in written.values()} == {6.0}

    prompt = "a star, <lora:{}:0.7>"
    invoke("generate", here.folder, prompt.format("small"), "--out", tmp_path / "a")
    invoke("generate", here.folder, prompt.format("mine"), "--out", tmp_path / "b",
           "--adapter", f"mine={file}")  # fmt: skip
    base = here.folder.parent.parent.parent / "sd1"
    invoke("generate", file, prompt.format("small"), "--out", tmp_path / "c", "--base", base,
           "--steps", 2)  # fmt: skip
    pictures = [pixels(tmp_path / name / "0.png") for name in "abc"]
    assert (pictures[0] == pictures[1]).all()
    assert np.abs(pictures[0] - pictures[2]).max() <= 1
    settings = Settings(steps=2, guidance=7.5)
    theirs = image_runs.through_diffusers(base, [file], [0.7], "a star", 0, settings)
    assert np.abs(pictures[0] - theirs).max() <= 1
    invoke("generate", here.folder, "a star", "--out", tmp_path / "d")
    assert (pixels(tmp_path / "d" / "0.png") != pictures[0]).any()

    with pytest.raises(UserError, match="this path exists already"):
        invoke("export", here.folder, "--webui", tmp_path / "Lora")


def test_a_copied_run_is_exported_under_any_name(here: Run, tmp_path: Path) -> None:
    copied = Run(here.folder.with_name("my_best_run"))
    shutil.copytree(here.folder, copied.folder)
    invoke("export", copied.folder, "--webui", tmp_path)
    told = arrays.metadata(tmp_path / "small.safetensors")["ss_training_started_at"]
    assert 0 <= float(told) - here.started.timestamp() < 60
    assert float(told) == copied.started.timestamp()


def test_a_grid_shows_every_strength(here: Run, tmp_path: Path) -> None:
    invoke("generate", here.folder, "a star", "--grid", "strength=0..1:0.5", "--count", 2,
           "--out", tmp_path, "--seed", 5)  # fmt: skip
    sheet = pixels(tmp_path / "strengths-5.png")
    assert sheet.shape == (14 + 2 * 36, 4 + 3 * 36, 3)
    invoke("generate", here.folder, "a star", "--out", tmp_path, "--seed", 5)
    assert np.abs(sheet[14:46, 76:108] - pixels(tmp_path / "5.png")).max() <= 1
    assert (sheet[14:46, 4:36] != sheet[14:46, 76:108]).any()


def test_strengths_of_a_grid() -> None:
    assert painting._strengths("strength=0..1:0.2") == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert painting._strengths("strength=-0.5..0.5:0.3") == [-0.5, -0.2, 0.1, 0.4]
    assert painting._strengths("strength=0..2.1:0.7")[-1] == 2.1
    assert painting._strengths("strength=1..1:1") == [1.0]
    for text in (
        "0..1:0.2",
        "strength=1..0:0.2",
        "strength=0..1:0",
        "strength=0..1",
        f"strength=0..1:{'9' * 400}",
        "x",
    ):
        with pytest.raises(UserError, match="is not a grid"):
            painting._strengths(text)
    assert len(painting._strengths("strength=0..0.63:0.01")) == 64
    tiny, endless = f"0.{'0' * 310}1", "9" * 400
    for text in (
        *("0..0.64:0.01", "0..1:0.01", f"0..1:{tiny}", f"0..{endless}:0.1"),
        *(f"-{endless}..0:0.1", f"{endless}..{endless}:0.1"),
    ):
        with pytest.raises(UserError, match="a grid has at most 64 strengths; use a larger"):
            painting._strengths(f"strength={text}")
    assert painting._strengths(f"strength=1..1:{tiny}") == [1.0]


def test_an_earlier_step_is_gone_back_to(here: Run, tmp_path: Path) -> None:
    """The adapters of all three steps were kept."""
    early, late = here.steps / "step-1", here.steps / "step-3"
    invoke("generate", here.folder, "a star", "--step", 1, "--out", tmp_path / "a")
    invoke("generate", early, "a star", "--out", tmp_path / "b")
    invoke("generate", late, "a star", "--out", tmp_path / "c")
    invoke("generate", here.folder, "a star", "--out", tmp_path / "d")
    one, same, three, whole = (pixels(tmp_path / name / "0.png") for name in "abcd")
    assert (one == same).all() and (three == whole).all() and (one != whole).any()

    invoke("export", here.folder, "--webui", tmp_path / "Lora", "--step", 1)
    file = tmp_path / "Lora" / "small-step00000001.safetensors"
    notes = arrays.metadata(file)
    assert (notes["ss_steps"], notes["ss_output_name"]) == ("1", "small-step00000001")
    assert (pixels(file.with_suffix(".png")) == pixels(here.samples / "step-0" / "00.png")).all()
    ours, theirs = lora_files.read(early, "sd1"), lora_files.read(file, "sd1")
    assert all(np.array_equal(theirs[name].up, update.up) for name, update in ours.items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("{run}", "a star", "--step", "7"), "step 7 was not kept; kept steps: 1, 2, 3"),
        (("{run}/adapter", "a star", "--step", "1"), "--step needs a run"),
        (("a star",), "no base to generate with"),
        (("no-such-run", "a star"), "no run here"),
        (("{run}", "a star <lora:small"), "<lora: without >"),
        (("{run}", "a star", "--size", "30x64"), "'30x64' is not a valid size"),
        (("{run}", "a star", "--adapter", "x"), "'x' is not NAME=PATH"),
        (("{run}", "a star", "--base", "tiny"), "small was trained on"),
        (("{run}", "a star <lora:rain:1>"), "no adapter is named rain"),
    ],
)
def test_mistakes(here: Run, arguments: tuple[str, ...], told: str) -> None:
    if "tiny" in arguments and not image_runs.picture_base.TINY.is_dir():
        pytest.skip("the embedded base is not there")
    with pytest.raises(UserError, match=told):
        invoke("generate", *(one.format(run=here.folder) for one in arguments))


@pytest.mark.parametrize("form", ["--peft", "--gguf", "--ollama", "--vllm"])
def test_forms_for_text_are_none_for_pictures(here: Run, tmp_path: Path, form: str) -> None:
    with pytest.raises(UserError, match="this command is for text; of pictures write --webui DIR"):
        invoke("export", here.folder, form, tmp_path / "x")
    assert not [*tmp_path.iterdir()]


def test_an_adapter_for_text_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    with pytest.raises(UserError, match="for text"):
        picture_sources.find(folder)


def test_a_folder_may_be_called_like_markup(here: Run, tmp_path: Path) -> None:
    out = tmp_path / "o[/]p"
    assert str(out / "0.png").replace("\n", "") in invoke(
        "generate", here.folder, "a star", "--out", out
    ).replace("\n", "")


def test_adapters_of_one_name_are_told_before_anything_is_loaded(here: Run) -> None:
    with pytest.raises(UserError) as caught:
        invoke("generate", here.folder, here.folder, "a star")
    (problem,) = caught.value.problems
    assert problem.what == "two adapters are named small"
    assert "--adapter NAME=" in str(problem.fix)
