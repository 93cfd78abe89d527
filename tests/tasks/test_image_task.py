"""The image task in the pipeline: preparing, sealing, reopening, and one real run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.commands import Command
from support.places import ROOT

from llm_lora import files, pipeline
from llm_lora import run as runs
from llm_lora.adapter import folder as adapters
from llm_lora.cli.show import live as show
from llm_lora.data.image.dataset import PictureDataset
from llm_lora.errors import UserError
from llm_lora.recipe import loading as recipe
from llm_lora.recipe.image.recipe import ImageRecipe
from llm_lora.report.document import RecipeIdentity
from llm_lora.report.image.document import AdapterIdentity, BaseIdentity, ImageReport
from llm_lora.run import Run
from llm_lora.scores.image.gates import DIMENSIONS
from llm_lora.tasks.image import task as image_task
from llm_lora.tasks.image.prepared import Prepared
from llm_lora.tasks.text import task as text_task

STYLE = ROOT / "recipes" / "style_lora.yaml"
TEMPLATE = ROOT / "data_templates" / "style_lora"
SHIPPED = TEMPLATE / "style.schema.json"
MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CPU = ("--profile", "cpu")
QUICK = (
    *("--set", "train.max_steps=2", "--set", "train.save_every=1", "--set", "train.samples=[]"),
    *("--set", "judge.strengths=[0, 1]", "--set", "judge.seeds=2", "--set", "generate.steps=2"),
    *("--set", "data.schema=null"),
)

BOUNDS = '{"required": ["strength"], "properties": {"strengths": {"minItems": 2}}}'


def load(**changes: Any) -> ImageRecipe:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    loaded = recipe.load(STYLE, profile="cpu", overrides=overrides)
    assert isinstance(loaded, ImageRecipe)
    return loaded


def write_weights(folder: Path) -> None:
    """An adapter of ones at one module, as the engine writes it."""
    folder.mkdir()
    shapes = {f"{MODULE}.lora_A.weight": (4, 8), f"{MODULE}.lora_B.weight": (8, 4)}
    ones = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    save_file(ones, folder / adapters.WEIGHTS)
    files.write_json(folder / adapters.CONFIG, {"r": 4, "lora_alpha": 8})


@pytest.fixture
def made(tmp_path: Path) -> tuple[Run, Prepared]:
    """A run as training leaves it."""
    loaded = load()
    prepared = image_task.prepare(loaded)
    here = runs.create(tmp_path / "runs", "style", loaded.to_yaml)
    prepared.dataset.write(here.dataset)
    files.write_json(here.fit, {})
    write_weights(here.adapter)
    image_task.seal(prepared, here, scores={"strength": 1.0})
    return here, prepared


def test_everything_that_a_recipe_names_is_read(made: tuple[Run, Prepared]) -> None:
    _, prepared = made
    assert (prepared.base.name, prepared.resolution) == ("tiny", 64)
    assert (len(prepared.dataset.train), len(prepared.dataset.held_out)) == (60, 16)
    assert all(one.caption.startswith("ink sketch style") for one in prepared.dataset.train)
    inputs = prepared.inputs()
    assert inputs.keys() == {"dataset", "order of pictures", "base", "schema", "start_from"}
    assert inputs["start_from"] is None


def test_the_adapter_carries_what_painting_needs(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    adapter = adapters.read(here.adapter)
    adapters.require_base(adapter, prepared.base)
    assert (adapter.rank, adapter.alpha, adapter.modules) == (4, 8, (MODULE,))
    manifest = adapter.manifest
    assert (manifest.task, manifest.trigger) == ("image", "ink sketch style")
    assert manifest.base.architecture == "sd1"
    assert manifest.sampling == {
        "steps": 20,
        "guidance": 3.0,
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "scheduler": "ddim",
    }
    assert prepared.schema is not None and adapter.schema_path is not None
    assert adapter.schema_path.read_text() == prepared.schema.text
    assert manifest.dataset_fingerprint == prepared.dataset.fingerprint
    assert manifest.recipe_digest == prepared.recipe.digest()
    assert manifest.scores == {"strength": 1.0}


def test_keys_of_text_are_no_keys_of_pictures(made: tuple[Run, Prepared]) -> None:
    here, _ = made
    manifest = json.loads((here.adapter / adapters.MANIFEST).read_text())
    files.write_json(here.adapter / adapters.MANIFEST, {**manifest, "task": "text"})
    with pytest.raises(UserError, match="unexpected tensor unet"):
        adapters.read(here.adapter)


def test_a_run_is_reopened_by_its_own_task(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    assert here.task == "image"
    again = pipeline.reopen(here)
    assert isinstance(again, Prepared)
    assert replace(again, schema=None) == replace(prepared, schema=None)
    assert again.inputs() == prepared.inputs()
    with pytest.raises(UserError, match="this run has task image, but this command is for text"):
        text_task.reopen(here)


def test_pictures_that_changed_are_told(made: tuple[Run, Prepared], tmp_path: Path) -> None:
    here, _ = made
    shutil.copytree(TEMPLATE, tmp_path / "data")
    changed = load(
        data__train=tmp_path / "data" / "train", data__held_out=tmp_path / "data" / "held_out"
    )
    files.write_text(here.recipe, changed.to_yaml(here.folder))
    image_task.prepare(changed).dataset.write(here.dataset)
    assert pipeline.reopen(here).recipe == changed
    (tmp_path / "data" / "train" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"000\.png"):
        pipeline.reopen(here)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError) as caught:
        pipeline.reopen(here)
    assert len(caught.value.problems) == 21
    assert "56 other pictures" in str(caught.value.problems[-1])
    # The written files are enough for an export.
    again = image_task.reopen(here, unchanged=False)
    assert len(again.dataset.train) == 60 and again.recipe == changed


def test_names_that_change_the_order_end_a_run_and_others_do_not(
    made: tuple[Run, Prepared], tmp_path: Path
) -> None:
    here, _ = made

    def prepared(home: Path) -> Prepared:
        return image_task.prepare(
            load(data__train=home / "train", data__held_out=home / "held_out")
        )

    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(TEMPLATE, first)
    pipeline._begin(prepared(first), here)
    first.rename(second)
    pipeline._begin(prepared(second), here)
    assert all(one.path.is_relative_to(second) for one in PictureDataset.read(here.dataset).train)
    listed = second / "train" / "metadata.csv"
    listed.write_text(listed.read_text().replace("000.png", "zzz.png"))
    (second / "train" / "000.png").rename(second / "train" / "zzz.png")
    with pytest.raises(UserError, match="changed since this run was interrupted: order of pic"):
        pipeline._begin(prepared(second), here)


def test_what_the_adapter_of_another_run_has_learned_is_not_judged_by(
    made: tuple[Run, Prepared], tmp_path: Path
) -> None:
    here, before = made
    more = tmp_path / "more"
    shutil.copytree(TEMPLATE / "held_out", more)
    shutil.copy(TEMPLATE / "train" / "000.png", more / "seen.png")
    with (more / "metadata.csv").open("a") as file:
        file.write("seen.png,a caption\n")
    seen = {one.sha256 for one in before.dataset.train}
    start = here.steps / "step-10"
    shutil.copytree(here.adapter, start)
    for folder in (here.adapter, start):
        after = image_task.prepare(load(train__start_from=folder, data__held_out=more))
        assert [Path(row.where).name for row in after.dataset.quarantine] == ["seen.png"]
        assert seen.isdisjoint(one.sha256 for one in after.dataset.held_out)


def test_what_is_judged_by_is_looked_at_before_training(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"properties": {"fidelty": {"minimum": 0.5}}}')
    with pytest.raises(UserError, match="did you mean fidelity"):
        image_task.prepare(load(data__schema=tmp_path / "s.json"))
    with pytest.raises(UserError, match=r"judge\.embedder: \./nowhere"):
        image_task.prepare(load(judge__embedder="./nowhere"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("empty", "no adapter_model.safetensors here"),
        ("nothing", "no such folder or file"),
        ("old.ckpt", "pickled weights (.ckpt)"),
    ],
)
def test_what_cannot_be_started_from(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.ckpt").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        image_task.prepare(load(train__start_from=tmp_path / name))
    assert why in str(caught.value)


def test_another_start_is_another_input(tmp_path: Path) -> None:
    write_weights(tmp_path / "adapter")
    prepared = image_task.prepare(load(train__start_from=tmp_path / "adapter"))
    first = prepared.inputs()["start_from"]
    assert first == files.file_sha256(tmp_path / "adapter" / adapters.WEIGHTS)


def test_runs_of_both_tasks_are_listed(
    made: tuple[Run, Prepared], capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = made
    report = ImageReport(
        recipe=RecipeIdentity("small", "d1", None),
        base_identity=BaseIdentity("tiny", "d2", "sd1"),
        adapter_identity=AdapterIdentity("d3", 8, alpha=8.0, modules=2, bytes=100, trigger=None),
        held_out={"all": 2},
        gates=(),
        passed=True,
        seconds=1.0,
        peak_memory_bytes=1,
        dimensions=(),
        strengths=(),
        embedder=None,
        prompts=(),
        scores={**dict.fromkeys(DIMENSIONS), "strength": 0.8, "fidelity": 0.75},
        reasons={},
    )
    files.write_json(here.report, report.to_json())
    row = show.summary(here)
    assert {"task": "image", "passed": True, "fidelity": 0.75, "strength": 0.8}.items() <= (
        row.to_json().items()
    )
    text = show.Summary("a", "a", "text", "unfinished", figures={})
    show.run_table([row, text], here.folder)
    out = capsys.readouterr().out
    assert "fidelity" in out and "0.750" in out and "field F1" in out


# A real run


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither use nor fill the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_LORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the shipped recipe, evaluated with two painting steps and suitable bounds."""
    folder = tmp_path_factory.mktemp("runs")
    bounds = folder / "bounds.json"
    bounds.write_text(BOUNDS)
    schema = ("--set", f"data.schema={bounds}")
    command = Command("train", STYLE, *CPU, "--runs", folder, *QUICK, *schema)
    code, output = command.finish()
    assert code == 0, output
    assert "Traceback" not in output
    (folder / "output.txt").write_text(output)
    return (folder / "style_lora" / "latest").resolve()


@pytest.mark.slow
def test_a_run_leaves_everything_that_was_promised(quick_run: Path) -> None:
    for name in (
        "recipe.yaml",
        "dataset/train.jsonl",
        "dataset/held_out.jsonl",
        "dataset/check.json",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/llm_lora.json",
        "metrics.jsonl",
        "measurements.json",
        "report.json",
        "report.html",
        "manifest.json",
    ):
        assert (quick_run / name).is_file(), name
    assert list((quick_run / "pictures").rglob("*.png"))
    assert not (quick_run / "checkpoints").exists()
    manifest = json.loads((quick_run / "manifest.json").read_text())
    assert (manifest["seed"], manifest["profile"]) == (17, "cpu")
    assert manifest["versions"].keys() >= {"torch", "diffusers", "peft"}
    assert len(manifest["dataset_fingerprint"]) == len(manifest["base"]["digest"]) == 64
    report = json.loads((quick_run / "report.json").read_text())
    assert (
        report["scores"].items()
        <= json.loads((quick_run / "measurements.json").read_text()).items()
    )
    assert tuple(report["scores"]) == DIMENSIONS
    assert report["passed"] and report["peak_memory_bytes"] > 0
    # A sheet for each dimension, and a few training pictures.
    page = (quick_run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= len(DIMENSIONS) + 12
    assert adapters.read(quick_run / "adapter").manifest.scores == report["scores"]


@pytest.mark.slow
def test_commands_on_a_run_of_pictures(quick_run: Path) -> None:
    output = (quick_run.parent.parent / "output.txt").read_text()
    for part in ("60 train · 16 held out", "adapter of rank 8", "Evaluation", "report.html"):
        assert part in output, part
    code, output = Command("evaluate", quick_run, "--json").finish()
    document = json.loads(output)
    assert code == 0 and document["scores"]["strength"] is not None
    assert document["gates"] == [
        {"name": "schema_valid", "threshold": 1.0, "value": 1.0, "passed": True}
    ]
    # Nothing is trained again, and the pictures painted again are the same.
    assert document["scores"] == adapters.read(quick_run / "adapter").manifest.scores
    measured = quick_run / "measurements.json"
    for schema, expected in ((quick_run / "adapter" / adapters.SCHEMA, 0), (SHIPPED, 1)):
        code, output = Command("validate", measured, "--schema", schema).finish()
        assert code == expected, output
    code, output = Command("report", quick_run).finish()
    assert code == 0 and "strength" in output
    code, output = Command("chat", quick_run, "hello").finish()
    assert code == 2 and "this run has task image" in output and "Traceback" not in output


@pytest.mark.slow
def test_a_flat_recipe_trains_unchanged(tmp_path: Path) -> None:
    flat = tmp_path / "my_style.yaml"
    flat.write_text(
        f'train_data_dir: "{TEMPLATE / "train"}"\n'
        f'metadata_path: "{TEMPLATE / "train" / "metadata.csv"}"\n'
        'base_model: tiny\ntask_type: "image-to-text"\nlora_rank: 4\nbatch_size: "4"\n'
        f'epochs: 10\nlearning_rate: "2e-4"\noutput_dir: "{tmp_path / "output"}"\nsave_steps: 100\n'
    )
    code, output = Command("train", flat, *QUICK).finish()
    assert code == 0, output
    assert "lora_rank → lora.rank: 4" in output
    (run,) = (tmp_path / "output" / "my_style").glob("2*")
    assert (run / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    steps = ("--set", "train.max_steps=12", "--set", "train.save_every=3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, output = Command("train", STYLE, *CPU, "--runs", whole, *QUICK, *steps).finish()
    assert code == 0, output
    command = Command("train", STYLE, *CPU, "--runs", broken, *QUICK, *steps)
    command.wait_until(lambda: any(broken.glob("style_lora/*/checkpoints/*/complete")))
    command.kill()
    (run,) = (broken / "style_lora").glob("2*")
    assert not (run / "manifest.json").exists()
    again = Command("train", STYLE, *CPU, "--runs", broken, *QUICK, *steps, "--resume")
    code, output = again.finish()
    assert code == 0, output
    for name in (adapters.WEIGHTS, adapters.CONFIG):
        unbroken = whole / "style_lora" / "latest" / "adapter" / name
        assert (run / "adapter" / name).read_bytes() == unbroken.read_bytes()
