"""Picture adapters in the store, and the checks before a server for them starts."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support import picture_adapters, picture_bases
from support.adapter_folders import report_of, write_adapter
from support.made_runs import make_run
from support.picture_adapters import RANK

from llm_lora import files
from llm_lora.adapter import base as any_base
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.mapping import text as mapping
from llm_lora.base import image as picture_base
from llm_lora.cli import publishing, serving
from llm_lora.errors import UserError
from llm_lora.machine import GIB, Hardware, free_port
from llm_lora.serving import sources
from llm_lora.serving.launch import examining
from llm_lora.serving.launch import launching as launch
from llm_lora.serving.launch.plans import AnyPlan, Wanted
from llm_lora.serving.layer.config import ServingConfig
from llm_lora.serving.layer.loader import Loader
from llm_lora.store.store import Store

TINY = picture_base.resolve("tiny")
CPU = Hardware(cores=2, memory_bytes=16 * GIB)


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLM_LORA_API_KEYS", "LLM_LORA_ADMIN_KEYS"):
        monkeypatch.delenv(name, raising=False)


def picture_run(folder: Path, name: str = "style_lora", *, passed: bool = True) -> Path:
    """The parts of a finished picture run that publishing and serving read."""
    made = picture_adapters.write_adapter(folder / "adapter", name)
    files.write_text(folder / "recipe.yaml", f"task: image\nname: {name}\n")
    files.write_json(folder / "report.json", picture_adapters.report_of(made, passed=passed))
    files.write_text(folder / "dataset" / "held_out.jsonl", '{"caption": "a blue star"}\n')
    files.write_json(folder / "manifest.json", {"format": 1})
    return folder


def problems(folder: Path, base: Any = TINY) -> str:
    return "\n".join(map(str, mapping.problems(adapters.read(folder), base)))


def command(*arguments: object) -> tuple[int, str]:
    group = {
        "publish": publishing.publish,
        "promote": publishing.promote,
        "rollback": publishing.rollback,
        "canary": publishing.canary,
        "retire": publishing.retire,
        "adapters": publishing.adapters,
        "history": publishing.history,
        "remove": publishing.remove,
        "serve": serving.serve,
    }[str(arguments[0])]
    done = CliRunner().invoke(group, [str(one) for one in arguments[1:]])
    if isinstance(done.exception, UserError):
        return 2, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


# The store.


def test_all_commands_of_the_store_work_for_pictures(tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    for seed in (1, 2, 3):
        folder = tmp_path / f"run-{seed}"
        picture_run(folder)
        picture_adapters.write_adapter(folder / "adapter", seed=seed)
        report = picture_adapters.report_of(folder / "adapter", passed=seed != 3)
        files.write_json(folder / "report.json", report)
        code, told = command("publish", folder, *store, "--json")
        row = json.loads(told)
        assert (code, row["id"], row["task"]) == (0, f"style-lora@{seed}", "image")
        assert row["scores"] == {"strength": 1.0}
    assert command("promote", "style-lora", 1, *store)[0] == 0
    assert command("promote", "style-lora", 2, *store)[0] == 0
    code, told = command("promote", "style-lora", 3, *store)
    assert code == 2 and "gate strength failed: 0.2, wanted 0.6" in told
    assert command("rollback", "style-lora", *store)[0] == 0
    assert command("canary", "style-lora", 2, "--share", "10%", *store)[0] == 0
    code, told = command("adapters", *store)
    assert code == 0 and "strength" in told and "schema valid" not in told
    assert command("canary", "style-lora", 2, "--share", "0", *store)[0] == 0
    assert command("retire", "style-lora", *store)[0] == 0
    assert command("remove", "style-lora", 3, *store)[0] == 0
    code, told = command("history", "style-lora", *store, "--json")
    assert [one["event"] for one in json.loads(told)] == [
        *["publish"] * 3,
        *["promote"] * 2,
        "rollback",
        *["canary"] * 2,
        "retire",
        "remove",
    ]


def test_a_name_answers_with_text_or_with_pictures(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    text = write_adapter(tmp_path / "text")
    store.publish(text, "triage", report=report_of(text), by="ann")
    made = picture_adapters.write_adapter(tmp_path / "picture")
    with pytest.raises(UserError, match="for pictures, but the name has adapters for text"):
        store.publish(made, "triage", report=None, by="ann")
    assert store.publish(made, "style", report=None, by="ann").task == "image"
    assert [store.version(name, 1).task for name in store.names()] == ["image", "text"]
    code, told = command("adapters", "--store", store.root)
    assert code == 0 and "pictures" in told


def test_the_base_of_an_adapter_is_found_by_what_it_is_for(tmp_path: Path) -> None:
    made = picture_adapters.write_adapter(tmp_path / "picture")
    manifest = adapters.read(made).manifest
    assert any_base.at_hand(manifest) == TINY
    text = any_base.at_hand(adapters.read(write_adapter(tmp_path / "text")).manifest)
    assert text is not None and text.digest != TINY.digest
    for change in ({"digest": "0" * 64}, {"name": str(tmp_path / "gone")}):
        other = replace(manifest, base=replace(manifest.base, **change))
        assert any_base.at_hand(other) is None


def test_an_adapter_of_an_unknown_task_is_refused(tmp_path: Path) -> None:
    made = picture_adapters.write_adapter(tmp_path / "made", task="sound")
    with pytest.raises(UserError, match="has the unknown task 'sound'"):
        adapters.read(made)


# The effect of an adapter on its base.


def test_an_adapter_that_fits_has_no_problem(tmp_path: Path) -> None:
    assert problems(picture_adapters.write_adapter(tmp_path / "made")) == ""


@pytest.mark.parametrize("config", [{"lora_alpha": 0.5}, {"use_rslora": True}])
def test_scales_of_any_kind_are_served(config: dict[str, Any], tmp_path: Path) -> None:
    assert problems(picture_adapters.write_adapter(tmp_path / "made", config=config)) == ""


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"scale": 0.0}, "no effect"),
        ({"config": {"lora_alpha": 0}}, "lora_alpha is 0"),
        ({"config": {"use_dora": True}}, "use_dora=True"),
        ({"config": {"fan_in_fan_out": True}}, "fan_in_fan_out=True"),
        ({"config": {"modules_to_save": ["conv_in"]}}, "modules_to_save"),
    ],
)
def test_what_would_paint_otherwise_than_trained_is_told(
    change: dict[str, Any], what: str, tmp_path: Path
) -> None:
    assert what in problems(picture_adapters.write_adapter(tmp_path / "made", **change), None)


def test_modules_that_do_not_fit_the_base_are_told(tmp_path: Path) -> None:
    tensors = picture_adapters.lora(1)
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors[f"{module}.lora_B.weight"] = np.ones((7, RANK), np.float32)
    other = "unet.down_blocks.9.attentions.0.proj_in"
    tensors |= {f"{other}.lora_{side}.weight": np.ones((RANK, RANK), np.float32) for side in "AB"}
    made = picture_adapters.write_adapter(tmp_path / "made", tensors=tensors)
    told = problems(made)
    assert f"adapted modules are not in tiny, the first: {other}" in told
    assert f"have another shape in tiny, the first: {module}" in told
    tensors[f"{other}.lora_A.weight"][0, 0] = np.nan
    assert "NaN" in problems(picture_adapters.write_adapter(tmp_path / "nan", tensors=tensors))


def test_another_base_is_told_and_a_single_file_knows_the_names_of_its_family(
    tmp_path: Path,
) -> None:
    made = picture_adapters.write_adapter(tmp_path / "made")
    file = tmp_path / "v1.safetensors"
    picture_bases.write_header(file, picture_bases.original_shapes())
    told = problems(made, picture_base.resolve(str(file)))
    assert "trained on tiny" in told and "not in" not in told
    strange = {
        f"text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_{side}.weight": np.ones(
            (RANK, RANK), np.float32
        )
        for side in "AB"
    }
    other = picture_adapters.write_adapter(tmp_path / "other", tensors=strange)
    assert "1 of 1 adapted modules are not in" in problems(other, picture_base.resolve(str(file)))


def test_a_base_that_tells_no_prediction_is_served_as_its_adapters_were_trained(
    tmp_path: Path,
) -> None:
    file = tmp_path / "v2.safetensors"
    picture_bases.write_header(file, picture_bases.original_shapes("sd2"))
    found = picture_base.resolve(str(file), prediction="v")
    told = {"name": str(file), "digest": found.digest, "revision": None}
    told |= {"architecture": "sd2", "prediction": "v"}
    store = Store(tmp_path / "store")
    made = picture_adapters.write_adapter(tmp_path / "made", base=told)
    version = store.publish(
        made, "style", report=picture_adapters.report_of(made), by="test", base=found
    )
    store.promote("style", version.number, by="test", base=found)
    plan = examine(store=store.root, base=str(file))
    config = ServingConfig.from_json(files.read_text(launch.prepare(plan)))
    assert config.prediction == "v"

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("checking asks nothing of the server")

    loader = Loader(
        nothing, store, base_name="v2", base_path=file, probed=False, max_rank=8,
        task="image", prediction=config.prediction,
    )  # fmt: skip
    assert asyncio.run(loader.check(version)).sampling["steps"] == 3


# Before a server starts.


def examine(**wanted: Any) -> AnyPlan:
    return examining.examine(Wanted(port=free_port(), **wanted), CPU)


def refused(**wanted: Any) -> str:
    with pytest.raises(UserError) as caught:
        examine(**wanted)
    return "\n".join(str(problem) for problem in caught.value.problems)


def test_a_run_for_pictures_gets_a_server_that_paints(tmp_path: Path) -> None:
    run = picture_run(tmp_path / "run")
    plan = examine(sources=(run,))
    assert [(one.name, one.example) for one in plan.served] == [("style-lora", "a blue star")]
    assert plan.command()[1:3] == ["-m", "llm_lora.serving.painter"]
    assert plan.warnings == ()
    sources.publish(plan.served, plan.store)
    assert Store(plan.store).version("style-lora").number == 1
    config = ServingConfig.from_json(files.read_text(launch.prepare(plan)))
    assert (config.task, config.resolution, config.probe) == ("image", 64, False)
    assert config.limits.max_concurrent == 1 and config.limits.max_waiting == 64
    words = shlex.split(serving.curl(plan))
    assert words[1] == f"{plan.url}/v1/images/generations"
    body = json.loads(words[words.index("-d") + 1])
    assert (body["model"], body["prompt"]) == ("style-lora", "a blue star")


def test_a_run_that_failed_its_gates_is_served_with_a_warning(tmp_path: Path) -> None:
    plan = examine(sources=(picture_run(tmp_path / "run", passed=False),))
    assert "did not pass its gates: strength 0.2 of 0.6" in plan.warnings[0]


def test_a_store_with_both_needs_to_be_told_which(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    picture_adapters.publish(store, tmp_path, "style")
    assert [one.name for one in examine(store=store.root).served] == ["style"]
    text = make_run(tmp_path / "triage" / "one")
    sources.publish(examine(sources=(text,)).served, store.root)
    assert "--task text or --task image" in refused(store=store.root)
    for task, name, other in (("image", "style", "triage"), ("text", "triage", "style")):
        plan = examine(store=store.root, task=task)
        assert [one.name for one in plan.served] == [name]
        assert any(
            one.startswith(f"{other} is not served: it is not for ") for one in plan.warnings
        )
    both = refused(sources=(picture_run(tmp_path / "run"), text), task="image")
    assert "this adapter is for text, not for pictures" in both


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        ({"context": 128}, "--context only applies to text"),
        ({"on_invalid": "retry"}, "--on-invalid only applies to text"),
        ({"extra": ("--seed 1",)}, "--extra-vllm only applies to text"),
        ({"max_concurrent": 2}, "--max-concurrent only applies to text"),
        ({"merged": Path("m")}, "--merged only applies to text"),
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 accepts other machines, but there are no API keys"),
        ({"log_contents": True}, "--log-contents needs an access log"),
        ({"base": "no/such/folder"}, "no such folder or file"),
    ],
)
def test_obstacles_are_told_before_anything_starts(
    wanted: dict[str, Any], what: str, tmp_path: Path
) -> None:
    assert what in refused(sources=(picture_run(tmp_path / "run"),), **wanted)


def test_every_obstacle_is_told_at_once(tmp_path: Path) -> None:
    run = picture_run(tmp_path / "run")
    picture_adapters.write_adapter(run / "adapter", tensors=picture_adapters.lora(1, 0.0))
    told = refused(sources=(run,), host="0.0.0.0", context=5)
    assert all(what in told for what in ("no effect", "--host", "--context"))


def test_another_base_than_that_of_training_is_refused(tmp_path: Path) -> None:
    run = picture_run(tmp_path / "run")
    shutil.copytree(TINY.path, tmp_path / "base")
    picture_bases.change(tmp_path / "base" / "scheduler" / "scheduler_config.json", steps_offset=0)
    told = refused(sources=(run,), base=str(tmp_path / "base"))
    assert "this adapter was trained on tiny" in told


def test_a_dry_run_prints_the_command_and_writes_nothing(tmp_path: Path) -> None:
    run = picture_run(tmp_path / "run")
    code, told = command("serve", run, "--dry-run", "--port", free_port())
    assert code == 0 and "64x64 in 3 steps · trigger ink sketch style" in told
    assert "llm_lora.serving.painter --host 127.0.0.1" in told
    assert not (run / "serving").exists()


def test_neither_server_imports_what_the_other_needs() -> None:
    code = (
        "import sys\n"
        "import llm_lora.serving.layer.layer, llm_lora.serving.painter\n"
        "import llm_lora.serving.launch.examining, llm_lora.cli.serving\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'peft', 'vllm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
