"""Recipes of lora-scripts: every key is converted, refused with a way out, or told as unknown."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support.made_runs import FINISHED
from support.places import TESTS
from test_recipe import GOLDEN, plain_values, write

from llm_lora import pipeline, run
from llm_lora.cli.recipes import recipe
from llm_lora.errors import UserError
from llm_lora.recipe import yaml as yaml_source
from llm_lora.recipe.image.recipe import ImageRecipe
from llm_lora.recipe.loading import convert, load, read
from llm_lora.recipe.lora_scripts import reading as flat_recipe
from llm_lora.recipe.text.recipe import Recipe
from llm_lora.tasks import steps

FLAT = TESTS / "flat_recipes"


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as lora-scripts is run in, with data and an older adapter."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "more.txt", "test.jsonl", "notes.md"):
        write(f"data/llm_train/{name}", "{}\n")
    write("old/checkpoint-500/pytorch_lora_weights.safetensors", "x")
    for path in FLAT.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def told(name: str) -> str:
    """What a file is converted to, or why not."""
    try:
        return convert(Path(name), Path())
    except UserError as error:
        return f"{error}\n"


def test_recipes_become_what_the_golden_file_says() -> None:
    """UPDATE_GOLDEN=1 rewrites the golden file; read the difference before committing it."""
    said = "\n".join(f"== {path.name}\n{told(path.name)}" for path in sorted(FLAT.iterdir()))
    golden = GOLDEN / "flat_recipes.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(said, encoding="utf-8")
    assert said == golden.read_text(encoding="utf-8")


def test_flat_and_nested_recipes_are_the_same() -> None:
    flat, nested = load(Path("style.yaml")), load(Path("style_nested.yaml"))
    changed = {"base", "name", "train"}
    assert flat.model_dump(exclude=changed) == nested.model_dump(exclude=changed)
    assert isinstance(flat, ImageRecipe)
    assert (flat.train.learning_rate, flat.train.save_every) == (2e-4, 100)
    assert (flat.lora.rank, flat.lora.alpha, flat.lora.dropout) == (8, 16, 0.1)


def test_text_takes_the_files_of_its_folder() -> None:
    recipe = load(Path("text.yaml"))
    assert isinstance(recipe, Recipe)
    assert recipe.data.train == (
        Path("data/llm_train/more.txt"),
        Path("data/llm_train/train.jsonl"),
    )
    assert recipe.data.held_out == (Path("data/llm_train/test.jsonl"),)
    assert (recipe.lora.alpha, recipe.train.evaluate_every) == (32, 100)


def test_paths_are_relative_to_the_working_directory() -> None:
    moved = write("configs/my.yaml", Path("style.yaml").read_text())
    recipe = load(moved)
    assert recipe.data.train == Path("data/style_train")
    assert recipe.base == "./models/Stable-diffusion/v1-5-pruned.safetensors"
    assert read(moved).runs == Path("output/my_style_lora")


def test_a_converted_recipe_is_of_our_own_form_and_holds_where_it_is_written() -> None:
    flat = load(Path("style.yaml"))
    moved = load(write("recipes/style.yaml", convert(Path("style.yaml"), Path("recipes"))))
    assert moved == flat
    with pytest.raises(UserError, match="in llm-lora's format already"):
        convert(Path("recipes/style.yaml"), Path())


def test_a_child_changes_its_flat_parent() -> None:
    child, parent = load(Path("derived.yaml")), load(Path("style.yaml"))
    assert (child.lora.rank, child.lora.alpha) == (16, parent.lora.alpha)
    assert read(Path("derived.yaml")).runs == Path("output/other")
    text = load(write("llm.yaml", "extends: text.yaml\nsave_steps: 50\nmax_length: 512\n"))
    assert isinstance(text, Recipe)
    assert (text.train.evaluate_every, text.train.max_tokens, text.lora.rank) == (50, 512, 16)


def test_mistakes_name_the_line_of_the_flat_file() -> None:
    path = write("x.yaml", "train_data_dir: a\nbase_model: tiny\nlora_rank: 5000\n")
    with pytest.raises(UserError) as caught:
        load(path)
    assert [problem.where for problem in caught.value.problems] == ["x.yaml:3"]
    assert "lora.rank must be a whole number from 1 to 512" in str(caught.value)


def test_a_checkpoint_of_a_run_means_resume(tmp_path: Path) -> None:
    write("runs/style/1/recipe.yaml", "task: image\n")
    write("runs/style/1/inputs.json", "{}")
    write("runs/style/1/checkpoints/checkpoint-500/state", "")
    text = "train_data_dir: a\nbase_model: tiny\n"
    checkpoint = "./runs/style/1/checkpoints/checkpoint-500"
    path = write("x.yaml", f"{text}resume_from_checkpoint: {checkpoint}\n")
    found = read(path)
    assert found.resume == tmp_path / "runs" / "style" / "1"
    assert isinstance(found.recipe, ImageRecipe) and found.recipe.train.start_from is None
    for place in ("checkpoints", "."):
        path = write("x.yaml", f"{text}resume_from_checkpoint: ./runs/style/1/{place}\n")
        assert read(path).resume == tmp_path / "runs" / "style" / "1"


@pytest.mark.parametrize("place", ["adapter", "steps/step-100"])
def test_adapters_that_a_run_keeps_are_weights_alone(place: str) -> None:
    write("runs/style/1/recipe.yaml", "task: image\n")
    write("runs/style/1/inputs.json", "{}")
    write(f"runs/style/1/{place}/adapter_model.safetensors", "x")
    write("runs/style/1/samples/0.png", "x")
    text = "train_data_dir: a\nbase_model: tiny\nresume_from_checkpoint: runs/style/1"
    found = read(write("x.yaml", f"{text}/{place}\n"))
    assert isinstance(found.recipe, ImageRecipe) and found.resume is None
    # The folder, not the file: alpha stands in its adapter_config.json.
    assert found.recipe.train.start_from == Path(f"runs/style/1/{place}")
    with pytest.raises(UserError, match="is not an llm-lora checkpoint and has no LoRA weights"):
        read(write("x.yaml", f"{text}/samples\n"))


def test_a_finished_run_is_not_resumed_and_the_key_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = run.create(Path("runs"), "x", lambda _: "task: image\n")
    write(str(here.inputs), "{}")
    here.finish(FINISHED)
    text = "train_data_dir: a\nbase_model: tiny\nresume_from_checkpoint:"
    found = read(write("x.yaml", f"{text} {here.folder}\n"))
    monkeypatch.setattr(steps, "of", MagicMock())
    with pytest.raises(UserError, match="run of x; leave out resume_from_checkpoint"):
        pipeline.train(found.recipe, MagicMock(), resume=True, only=found.resume)


def test_weights_alone_mean_a_start_from_them() -> None:
    recipe = load(Path("resumed.yaml"))
    assert isinstance(recipe, ImageRecipe)
    weights = Path("old/checkpoint-500/pytorch_lora_weights.safetensors")
    assert recipe.train.start_from == weights
    text = f"train_data_dir: data/llm_train\nbase_model: tiny\nresume_from_checkpoint: {weights}\n"
    with pytest.raises(UserError, match="text training cannot start from them"):
        load(write("x.yaml", f"task_type: llm\n{text}"))


@pytest.mark.parametrize(
    ("text", "flat"),
    [
        ("lora_rank: 8", True),
        ("model: {base_model: x}", True),
        ("task: image\nlora_rank: 8", False),
        ("lora: {rank: 8}", False),
        ("learning_rate: 1", False),
        ("model: base", False),
        ("[]", False),
    ],
)
def test_what_counts_as_flat(text: str, flat: bool) -> None:
    assert flat_recipe.is_flat(yaml_source.parse(text, "x").data) is flat


keys = st.sampled_from(
    [
        *("train_data_dir", "metadata_path", "base_model", "lora_rank", "alpha", "dropout", "lr"),
        *("batch_size", "epochs", "learning_rate", "output_dir", "save_steps", "task_type"),
        *("resume_from_checkpoint", "resolution", "mixed_precision", "target_modules", "odd"),
        *("data", "model", "training", "output", "extends", "profiles", "optimizer", "log_dir"),
    ]
)
odd_values = st.recursive(
    plain_values | st.sampled_from(["tiny", "text-generation", "image", "2e-4", "data/llm_train"]),
    lambda inner: st.dictionaries(keys, inner, max_size=5),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, odd_values, min_size=1, max_size=8))
def test_any_flat_recipe_loads_or_is_refused_with_its_line(odd: dict[str, Any]) -> None:
    path = write("odd.yaml", json.dumps(odd, ensure_ascii=False, indent=1))
    try:
        load(path, profile=lambda names: names[0])
    except UserError as error:
        assert all((one.where or "").startswith("odd.yaml:") for one in error.problems)
        assert len(set(error.problems)) == len(error.problems)


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    run = CliRunner().invoke
    printed = run(recipe, ["convert", "style_nested.yaml"])
    assert printed.exit_code == 0
    assert printed.output == convert(Path("style_nested.yaml"), Path())
    written = run(recipe, ["convert", "style_nested.yaml", "--out", "new/style.yaml"])
    assert (written.exit_code, written.output) == (0, "wrote new/style.yaml\n")
    assert load(Path("new/style.yaml")).data == load(Path("style_nested.yaml")).data
    again = run(recipe, ["convert", "style_nested.yaml", "--out", "new/style.yaml"])
    assert isinstance(again.exception, UserError)
