"""Image recipes: read like text recipes, a true round trip, the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_recipe import BROKEN, blocks, file_names, mistakes, printable, tricky, write

from llm_lora.recipe import yaml as yaml_source
from llm_lora.recipe.image.recipe import ImageRecipe
from llm_lora.recipe.loading import json_schema, load
from llm_lora.recipe.scalars import PROFILES
from llm_lora.recipe.text.recipe import Recipe

MINIMAL = "task: image\nbase: tiny\ndata: {train: pictures}\n"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image(path: Path, **options: Any) -> ImageRecipe:
    recipe = load(path, **options)
    assert isinstance(recipe, ImageRecipe)
    return recipe


def test_the_task_decides_what_a_recipe_is() -> None:
    assert isinstance(load(write("x.yaml", MINIMAL)), ImageRecipe)
    text = "task: text\nbase: tiny\ndata: {train: train.jsonl}\n"
    assert isinstance(load(write("y.yaml", text)), Recipe)


def test_a_parent_of_another_task_is_told() -> None:
    write("parent.yaml", "task: text\nbase: tiny\ndata: {train: train.jsonl, schema: s.json}\n")
    path = write("child.yaml", f"extends: parent.yaml\n{MINIMAL}")
    assert mistakes(path) == [
        "parent.yaml:1: task is text, but child.yaml is an image recipe; use one task throughout"
    ]
    write("parent.yaml", MINIMAL)
    path = write("child.yaml", "extends: parent.yaml\nlora: {rank: 4}\n")
    assert image(path).lora.rank == 4


def test_paths_are_relative_to_the_file_that_names_them() -> None:
    path = write(
        "recipes/x.yaml",
        "task: image\nbase: ./models/dream.safetensors\n"
        "data: {train: a, captions: c.csv, held_out: h, regularisation: r}\n"
        "train: {start_from: ../runs/x/adapter}\njudge: {embedder: ../clip}\n",
    )
    recipe = image(path)
    assert recipe.base == "./recipes/models/dream.safetensors"
    assert recipe.judge.embedder == "./clip"
    data = recipe.data
    assert (data.train, data.captions) == (Path("recipes/a"), Path("recipes/c.csv"))
    assert (data.held_out, data.regularisation) == (Path("recipes/h"), Path("recipes/r"))
    assert recipe.train.start_from == Path("runs/x/adapter")
    overridden = image(path, overrides=["judge.embedder=openai/clip", "data.held_out=0.2"])
    assert (overridden.judge.embedder, overridden.data.held_out) == ("openai/clip", 0.2)


def test_digest_is_of_the_settings_not_of_places() -> None:
    one = image(write("a/x.yaml", MINIMAL))
    other = image(write("b/deep/x.yaml", f"{MINIMAL}lora: {{rank: 8}}\n"))
    assert one != other
    assert one.digest() == other.digest()
    changed = image(Path("a/x.yaml"), overrides=["data.trigger=ink"])
    assert changed.digest() != one.digest()


def test_resolved_yaml_can_lie_elsewhere(tmp_path: Path) -> None:
    profiled = "task: image\ndata: {train: p}\nprofiles: {cpu: {base: tiny}}\n"
    recipe = image(write("recipes/x.yaml", profiled), profile="cpu")
    moved = write("runs/x/1/recipe.yaml", recipe.to_yaml(Path("runs/x/1")))
    assert str(tmp_path) not in moved.read_text()
    assert image(moved) == recipe
    assert recipe.profile == "cpu"


def test_recipe_is_frozen_and_closed() -> None:
    recipe = image(write("x.yaml", MINIMAL))
    with pytest.raises(ValidationError):
        recipe.train.seed = 3
    assert mistakes(Path("x.yaml"), overrides=["extra.a=1"])


def test_warnings_tell_what_is_seldom_meant() -> None:
    path = write("x.yaml", MINIMAL)
    assert image(path).warnings() == ()
    odd = ["lora.alpha=512", "train.learning_rate=2e-3", "base=a/b", "train.epochs=30"]
    odd += ["data.keep_tags=2", "train.prior_weight=2", "data.trigger=ink"]
    odd += ["generate.negative_prompt=blurry", "generate.guidance=1", "train.samples=[a red cat]"]
    said = image(path, overrides=odd).warnings()
    assert [sentence.split()[0] for sentence in said] == [
        "lora.alpha",
        "train.learning_rate",
        "30",
        "data.keep_tags",
        "train.prior_weight",
        "generate.negative_prompt",
        "no",
        "base",
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("judge: {prompts: ['a fox, <lora:detail:0.6>']}", "no adapter is named detail"),
        ("judge: {prompts: ['a fox, lora:x:0.6']}", "lora:x:0.6 without < and >"),
        ("judge: {prompts: ['a fox, <lora:x:strong>']}", "'strong' is not a valid strength for x"),
        ("train: {samples: ['a fox, <lora:x:0.6>']}", "train.samples name an adapter"),
        ("train: {samples: ['a fox, lora:x:1']}", "train.samples name an adapter"),
    ],
)
def test_adapters_that_prompts_cannot_name(settings: str, told: str) -> None:
    (problem,) = mistakes(write("x.yaml", f"{MINIMAL}{settings}\n"))
    assert problem.startswith("x.yaml:4: ") and told in problem


def test_prompts_to_judge_by_may_name_the_adapter_that_is_judged() -> None:
    path = write("x.yaml", f"{MINIMAL}judge: {{prompts: ['a fox, <lora:x:0.6>']}}\n")
    assert image(path).judge.prompts == ("a fox, <lora:x:0.6>",)


sizes = st.integers(4, 512).map(lambda number: number * 8)
maybe = st.none()


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    side = draw(maybe | sizes)
    strengths = draw(st.lists(st.floats(0, 2), min_size=1, max_size=6, unique=True).map(sorted))
    return {
        "task": "image",
        "name": draw(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)),
        "base": draw(st.sampled_from(["tiny", "a/b", "./x.safetensors", "/models/y", "no"])),
        "data": {
            "train": f"t{draw(file_names)}",
            "captions": draw(maybe | file_names),
            "held_out": draw(st.floats(0.01, 0.5) | file_names.map(lambda name: f"h{name}")),
            "trigger": draw(maybe | printable.filter(bool) | tricky),
            "resolution": draw(maybe | sizes),
            "caption_dropout": draw(st.floats(0, 1)),
            "flip": draw(st.booleans()),
        },
        "lora": {
            "rank": draw(st.integers(1, 512)),
            "targets": draw(
                st.sampled_from(["attention", "attention+ff"])
                | st.lists(printable.filter(bool) | tricky, min_size=1)
            ),
        },
        "train": {
            "learning_rate": draw(st.floats(1e-9, 10)),
            "min_snr": draw(maybe | st.floats(0.1, 100)),
            "samples": draw(st.lists(printable.filter(bool) | tricky, max_size=3)),
        },
        "generate": {"negative_prompt": draw(printable | tricky), "width": side, "height": side},
        "judge": {"strengths": strengths},
        "check": {"fidelity": draw(maybe | st.floats(0, 1))},
        "profile": draw(maybe | st.sampled_from(PROFILES)),
    }


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_to_yaml_reloads_to_the_same_recipe(data: dict[str, Any]) -> None:
    first = load(write("in.yaml", json.dumps(data, ensure_ascii=False)))
    again = load(write("out/recipe.yaml", first.to_yaml()))
    assert again == first
    assert again.digest() == first.digest()
    assert load(write("out/recipe.yaml", first.to_yaml(Path("out")))) == first


# The schema for editors.


def refusals(data: object) -> list[Any]:
    return list(jsonschema.Draft202012Validator(json_schema()).iter_errors(data))


def test_editor_schema_knows_each_task() -> None:
    assert refusals(load(write("x.yaml", MINIMAL)).settings()) == []
    assert refusals({"task": "image", "data": {"resolution": 500}})
    assert refusals({"task": "image", "lora": {"bits": 4}})
    assert refusals({"task": "text", "lora": {"text_encoder": True}})
    assert refusals({"extends": "a.yaml", "lora": {"text_encoder": True}}) == []
    assert refusals({"extends": "a.yaml", "lora": {"bits": 4}}) == []
    assert refusals({"lora": {"bits": 4}, "judge": {"seeds": 4}})
    assert refusals({"task": "image", "profiles": {"cpu": {"lora": {"rank": None}}}}) == []


@pytest.mark.parametrize("name", ["image_kinds.yaml", "image_unknown.yaml"])
def test_editor_schema_refuses_what_load_refuses(name: str) -> None:
    assert refusals(yaml_source.parse((BROKEN / name).read_text(), name).data)


def test_every_setting_is_described() -> None:
    schema = ImageRecipe.model_json_schema()
    described = dict(blocks(schema))
    assert len(described) > 60
    assert [
        name
        for name, value in described.items()
        if "description" not in value
        and "description" not in schema["$defs"].get(str(value.get("$ref")).rpartition("/")[2], {})
    ] == []
