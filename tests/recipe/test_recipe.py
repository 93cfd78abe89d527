"""Recipes: all mistakes at once with their lines, the precedence of layers, a true round trip."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.places import GOLDEN, ROOT, TESTS

from llm_lora.errors import UserError
from llm_lora.recipe import mistakes as mistakes_module
from llm_lora.recipe import yaml as yaml_source
from llm_lora.recipe.loading import json_schema, load
from llm_lora.recipe.scalars import PROFILES
from llm_lora.recipe.text.recipe import Recipe

BROKEN = TESTS / "broken_recipes"
GROUPS = ("syntax", "settings", "sense", "profiles", "extends", "image")

MINIMAL = "task: text\nbase: tiny\ndata: {train: train.jsonl}\n"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, **options)
    return str(caught.value).splitlines()


# Broken files.


@pytest.mark.parametrize("group", GROUPS)
def test_broken_recipes_say_what_the_golden_file_says(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UPDATE_GOLDEN=1 rewrites the golden files; read the diff before committing it."""
    monkeypatch.chdir(BROKEN)
    said = [
        f"== {path}\n" + "\n".join(mistakes(path, profile=lambda names: names[0])) + "\n"
        for path in sorted(Path().glob(f"{group}*.yaml"))
    ]
    golden = GOLDEN / f"recipe_{group}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text("\n".join(said), encoding="utf-8")
    assert "\n".join(said) == golden.read_text(encoding="utf-8")


def test_every_broken_recipe_belongs_to_a_group() -> None:
    names = [path.name for path in BROKEN.iterdir()]
    assert len(names) >= 30
    assert [name for name in names if not name.startswith(GROUPS)] == []


def test_missing_file_suggests_the_nearest_name() -> None:
    write("recipes/medical_qa.yaml", MINIMAL)
    assert mistakes(Path("recipes/medicalqa.yaml")) == [
        "recipes/medicalqa.yaml: no such file; did you mean recipes/medical_qa.yaml?"
    ]
    assert mistakes(Path("recipes/zzz.yaml")) == [
        "recipes/zzz.yaml: no such file; recipes holds medical_qa.yaml"
    ]
    assert mistakes(Path("nowhere/x.yaml")) == [
        "nowhere/x.yaml: no such file; there is no folder nowhere"
    ]
    assert mistakes(Path("recipes"))[0].startswith("recipes: this is a folder")


def test_places_name_the_file_as_the_user_did() -> None:
    write("shared/parent.yaml", f"{MINIMAL}lora: {{ranks: 1}}\n")
    path = write("recipes/x.yaml", "extends: ../shared/parent.yaml\ntrain: {seed: x}\n")
    assert [line.split(" ")[0] for line in mistakes(path)] == [
        "recipes/x.yaml:2:",
        "shared/parent.yaml:4:",
    ]


# YAML 1.2.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("+1.", 1.0),
        ("16", 16),
        ("-3", -3),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-11-21", "2026-11-21"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'2e-4'", "2e-4"),
        ('"true"', "true"),
        ("-.inf", float("-inf")),
        ("1e", "1e"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_plain_text_means_what_the_core_schema_of_yaml_1_2_says(text: str, value: object) -> None:
    found = yaml_source.parse(f"key: {text}\n", "x").data["key"]
    assert (type(found), found) == (type(value), value)


def test_examples_in_docstrings_hold() -> None:
    for module in (yaml_source, mistakes_module):
        outcome = doctest.testmod(module)
        assert outcome.attempted and not outcome.failed


def test_yaml_directive_does_not_bring_back_1_1() -> None:
    assert yaml_source.parse("%YAML 1.1\n---\na: no\n", "x").data == {"a": "no"}


def test_keys_are_text_and_aliases_repeat() -> None:
    source = yaml_source.parse("no: &a {x: [1, 2]}\n1: *a\n", "x")
    assert source.data == {"no": {"x": [1, 2]}, "1": {"x": [1, 2]}}
    assert source.lines[("1",)] == 2
    assert source.lines[("1", "x", 1)] == 1


def test_aliases_that_multiply_and_deep_nesting_are_refused() -> None:
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(UserError, match="more than 10000 values"):
        yaml_source.parse("\n".join(levels), "x")
    with pytest.raises(UserError, match="nested more than 32 deep"):
        yaml_source.parse("[" * 5000, "x")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:#-?[]{}&*!|>'\"%@`,. \t\n\\0", max_size=40))
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    try:
        yaml_source.parse(text, "x")
    except UserError as error:
        assert all((problem.where or "").startswith("x") for problem in error.problems)


# Layers.


def test_precedence_is_defaults_extends_file_profile_set() -> None:
    write(
        "parent.yaml", f"{MINIMAL}lora: {{rank: 1, alpha: 1, dropout: 0.1}}\ntrain: {{seed: 1}}\n"
    )
    path = write(
        "child.yaml",
        "extends: parent.yaml\nlora: {rank: 2, alpha: 2}\n"
        "profiles: {cpu: {lora: {rank: 3}, train: {seed: 3}}}\n",
    )
    recipe = load(path, profile="cpu", overrides=["train.seed=4"])
    assert (recipe.lora.dropout, recipe.lora.alpha, recipe.lora.rank) == (0.1, 2, 3)
    assert (recipe.train.seed, recipe.train.patience) == (4, 3)
    assert (recipe.profile, recipe.name) == ("cpu", "child")
    assert load(path).lora.rank == 2


def test_lists_are_replaced_and_null_takes_back() -> None:
    write(
        "parent.yaml",
        "task: text\nbase: tiny\ndata: {train: [a.jsonl, b.jsonl], system: Hello}\n"
        "lora: {rank: 64, targets: [q_proj]}\ntrain: {seed: 1}\nextra: {a: 1, b: null}\n"
        "profiles: {cpu: {lora: {alpha: 1}}}\n",
    )
    path = write(
        "child.yaml",
        "extends: parent.yaml\ndata: {train: [c.jsonl], system: null}\nlora: {rank: }\ntrain:\n"
        "extra: {c: null}\nprofiles: {cpu: null}\n",
    )
    recipe = load(path, profile="cpu")
    assert recipe.data.train == (Path("c.jsonl"),)
    assert recipe.data.system is None
    assert (recipe.lora.rank, recipe.lora.targets, recipe.lora.alpha) == (16, ("q_proj",), 32)
    assert recipe.train.seed == 17
    assert recipe.extra == {"a": 1, "b": None, "c": None}


def test_null_for_a_setting_that_must_be_there_is_missing() -> None:
    path = write("x.yaml", MINIMAL)
    assert mistakes(path, overrides=["base="]) == [
        "x.yaml:2: base is missing; add base: the base model"
    ]


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    write("shared/parent.yaml", "task: text\nbase: ../models/small\ndata: {train: a.jsonl}\n")
    child = "extends: ../shared/parent.yaml\ndata: {held_out: [h.jsonl], schema: /s.json}\n"
    path = write("recipes/child.yaml", child)
    recipe = load(path)
    assert recipe.data.train == (Path("shared/a.jsonl"),)
    assert recipe.data.held_out == (Path("recipes/h.jsonl"),)
    assert recipe.data.answer_schema == Path("/s.json")
    assert recipe.base == "./models/small"
    assert load(tmp_path / path) == recipe
    overridden = load(path, overrides=["data.train=b.jsonl", "base=Qwen/Qwen3-4B"])
    assert (overridden.data.train, overridden.base) == ((Path("b.jsonl"),), "Qwen/Qwen3-4B")


def test_set_takes_yaml_values_and_tells_its_own_mistakes() -> None:
    path = write("x.yaml", MINIMAL)
    recipe = load(
        path,
        overrides=["lora.targets=[q_proj, v_proj]", "train={epochs: 1}", "extra.packing=false"],
    )
    assert recipe.lora.targets == ("q_proj", "v_proj")
    assert (recipe.train.epochs, recipe.extra) == (1.0, {"packing": False})
    wrong = ["lora.rank=abc", "lora.ranks=3", "rank", "=3", "lora..rank=1", "train.seed=["]
    assert mistakes(path, overrides=[*wrong, "profiles.cpu.base=x"]) == [
        '--set lora.rank=abc: lora.rank must be a whole number from 1 to 512, not "abc"',
        "--set lora.ranks=3: lora.ranks is not a setting; did you mean lora.rank?",
        "--set rank: this is not key=value; write it like --set lora.rank=32",
        "--set =3: this is not key=value; write it like --set lora.rank=32",
        "--set lora..rank=1: this is not key=value; write it like --set lora.rank=32",
        "--set train.seed=[: a value is missing or malformed; quote it",
        "--set profiles.cpu.base=x: profiles cannot be set here; set the setting itself",
    ]


def test_weighing_closed_values_needs_a_schema() -> None:
    path = write("x.yaml", f"{MINIMAL}train: {{closed_weight: 4}}\n")
    assert mistakes(path)[0].startswith(
        "x.yaml:4: train.closed_weight needs data.schema, which defines the closed values"
    )


def test_set_contradicting_the_file_is_told_at_the_place_to_blame() -> None:
    path = write("x.yaml", f"{MINIMAL}train: {{evaluate_every: 50}}\n")
    assert load(path).train.evaluate_every == 50
    assert mistakes(path, overrides=["train.max_steps=20"])[0].startswith(
        "x.yaml:4: train.evaluate_every is 50 steps, but train.max_steps stops training after 20"
    )
    assert mistakes(path, overrides=["train.max_steps=20", "train.evaluate_every=30"])[
        0
    ].startswith("--set train.evaluate_every=30: train.evaluate_every is 30 steps")


# Profiles.

PROFILED = (
    "task: text\ndata: {train: a.jsonl}\n"
    "profiles:\n  gpu-24gb: {base: b/b}\n  cpu: {base: tiny}\n  gpu-8gb: {base: s/s}\n"
)


def test_a_function_picks_among_the_names_from_small_to_large() -> None:
    seen: list[tuple[str, ...]] = []

    def largest(names: tuple[str, ...]) -> str:
        seen.append(names)
        return names[-1]

    assert load(write("x.yaml", PROFILED), profile=largest).base == "b/b"
    assert load(write("y.yaml", MINIMAL), profile=largest).profile is None
    assert seen == [("cpu", "gpu-8gb", "gpu-24gb")]


def test_a_profile_that_is_not_there_names_those_that_are() -> None:
    path = write("x.yaml", PROFILED)
    assert mistakes(path, profile="gpu-12gb") == [
        "x.yaml: no profile gpu-12gb in this recipe; it has cpu, gpu-8gb, gpu-24gb"
    ]
    assert mistakes(write("y.yaml", MINIMAL), profile="cpu") == [
        "y.yaml: no profile cpu in this recipe; it has no profiles at all"
    ]


def test_without_a_profile_what_only_profiles_say_is_missing() -> None:
    assert mistakes(write("x.yaml", PROFILED)) == [
        "x.yaml:1: base is missing; add it, or choose a profile: cpu, gpu-8gb, gpu-24gb"
    ]


def test_a_mistake_in_a_profile_is_told_though_another_is_picked() -> None:
    path = write("x.yaml", f"{PROFILED}  gpu-80gb: {{lora: {{rank: 0}}, base: x}}\n")
    assert mistakes(path, profile="cpu") == [
        "x.yaml:7: profiles.gpu-80gb.lora.rank must be a whole number from 1 to 512, not 0"
    ]


def test_the_child_changes_a_profile_of_the_parent() -> None:
    write("parent.yaml", PROFILED)
    path = write("x.yaml", "extends: parent.yaml\nprofiles: {cpu: {lora: {rank: 4}}}\n")
    recipe = load(path, profile="cpu")
    assert (recipe.base, recipe.lora.rank) == ("tiny", 4)


# The resolved recipe.


def test_recipe_is_frozen_and_closed() -> None:
    recipe = load(write("x.yaml", MINIMAL))
    with pytest.raises(ValidationError):
        recipe.base = "other"
    with pytest.raises(ValidationError):
        recipe.lora.rank = 3
    assert isinstance(recipe.data.train, tuple)


def test_name_comes_from_the_file_where_not_given() -> None:
    assert load(write("My Recipe (2).yaml", MINIMAL)).name == "my-recipe-2"
    assert load(write("x.yaml", f"{MINIMAL}name: own\n")).name == "own"


def test_digest_is_of_the_settings_not_of_places(tmp_path: Path) -> None:
    one = load(write("a/x.yaml", MINIMAL))
    other = load(write("b/deep/x.yaml", f"# comment\n{MINIMAL}lora: {{rank: 16}}\n"))
    assert one != other
    assert one.digest() == other.digest()
    assert load(Path("a/x.yaml"), overrides=["lora.rank=8"]).digest() != one.digest()
    assert load(Path("a/x.yaml"), overrides=["data.train=c.jsonl"]).digest() != one.digest()


def test_resolved_yaml_can_lie_elsewhere_and_keeps_the_profile(tmp_path: Path) -> None:
    recipe = load(write("recipes/x.yaml", PROFILED), profile="gpu-8gb")
    whole = write("elsewhere/recipe.yaml", recipe.to_yaml())
    folder = Path("runs/x/1")
    moved = write("runs/x/1/recipe.yaml", recipe.to_yaml(folder))
    assert str(tmp_path) in whole.read_text()
    assert str(tmp_path) not in moved.read_text()
    for path in (whole, moved):
        assert load(path) == load(path, profile=lambda names: "cpu") == recipe
        assert load(path, profile="gpu-8gb") == recipe
        assert mistakes(path, profile="cpu")


# YAML has no control characters, and surrogates are not text.
printable = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.just("\n"), max_size=30)
file_names = st.from_regex(r"[a-z 0-9:#é'-]{1,80}\.jsonl", fullmatch=True)
tricky = st.sampled_from(
    [
        *("no", "2e-4", "0o17", "017", "null", "~", "1_000", "2026-11-21", "=", "<<", "é😀"),
        *("- a", "a: b", "#", "*x", "&x", "%", "@x", "'", '"', "\\", "two  spaces " * 9),
        *("trailing ", " leading", "a\nb", "a\n\nb\n", " a\n b", "\ta", "---"),
    ]
)
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | printable
    | tricky,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    held_out = st.floats(0.01, 0.4) | st.lists(file_names.map(lambda name: f"h{name}"), min_size=1)
    names = draw(st.lists(file_names, min_size=1, max_size=3, unique=True))
    return {
        "task": "text",
        "name": draw(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)),
        "base": draw(st.sampled_from(["tiny", "Qwen/Qwen3-4B", "./models/x", "/models/y", "no"])),
        "data": {
            "train": [f"t{name}" for name in names],
            "held_out": draw(
                held_out.filter(lambda x: isinstance(x, float) or len(set(x)) == len(x))
            ),
            "system": draw(st.none() | printable | tricky),
        },
        "lora": {
            "rank": draw(st.integers(1, 512)),
            "targets": draw(
                st.just("all-linear") | st.lists(printable.filter(bool) | tricky, min_size=1)
            ),
        },
        "train": {
            "learning_rate": draw(st.floats(1e-12, 0.1)),
            "evaluate_every": draw(st.floats(1e-6, 1) | st.integers(1, 10**6)),
            "checkpointing": draw(st.booleans()),
        },
        "extra": draw(st.dictionaries(printable | tricky, plain_values, max_size=3)),
        "profile": draw(st.none() | st.sampled_from(PROFILES)),
    }


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_to_yaml_reloads_to_the_same_recipe(data: dict[str, Any]) -> None:
    # JSON is YAML, so a recipe read from one must be the same when read from the other.
    first = load(write("in.yaml", json.dumps(data, ensure_ascii=False)))
    again = load(write("out/recipe.yaml", first.to_yaml()))
    assert again == first
    assert again.digest() == first.digest()
    assert load(write("out/recipe.yaml", first.to_yaml(Path("out")))) == first


def test_long_values_keep_their_spaces() -> None:
    prompt = "Answer  with  JSON  and  nothing  else,  " * 8 + "please."
    name = f"{'a  b ' * 20}.jsonl"
    data = {"task": "text", "base": "tiny", "data": {"train": name, "system": prompt}}
    first = load(write("in.yaml", json.dumps(data)))
    assert first.data.system == prompt
    assert load(write("out.yaml", first.to_yaml())) == first


settings_names = st.sampled_from(
    [
        *("task", "name", "base", "data", "train", "held_out", "schema", "system", "lora", "rank"),
        *("targets", "bits", "evaluate_every", "check", "extra", "generate", "seed", "odd"),
        *("profile", "profiles", "cpu", "gpu-8gb", "extends"),
    ]
)
odd_settings = st.recursive(
    plain_values,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(settings_names, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(settings_names, odd_settings, max_size=5), st.booleans())
def test_any_settings_load_or_are_refused_with_their_line(
    odd: dict[str, Any], minimal: bool
) -> None:
    data = {**({"task": "text", "base": "tiny", "data": {"train": "a"}} if minimal else {}), **odd}
    path = write("odd.yaml", json.dumps(data, ensure_ascii=False, indent=1))
    try:
        assert isinstance(load(path, profile=lambda names: names[0]), Recipe)
    except UserError as error:
        assert all((one.where or "").startswith("odd.yaml:") for one in error.problems)
        assert len(set(error.problems)) == len(error.problems)


def test_warnings_tell_what_is_seldom_meant() -> None:
    path = write("x.yaml", MINIMAL)
    assert load(path).warnings() == ()
    odd = ["lora.alpha=512", "train.evaluate_every=1", "generate.top_p=0.9"]
    odd += ["train.batching=packed", "train.batch_size=1", "train.max_tokens=128", "base=a/b"]
    odd += ["generate.max_new_tokens=200"]
    said = load(path, overrides=[*odd, "train.learning_rate=2e-3"]).warnings()
    assert [sentence.split()[0] for sentence in said] == [
        "lora.alpha",
        "train.learning_rate",
        "train.evaluate_every",
        "train.batching",
        "generate.top_p",
        "generate.max_new_tokens",
        "base",
    ]


# Shipped files and the editor schema.


def shipped() -> list[Path]:
    return sorted((ROOT / "recipes").rglob("*.yaml"))


def profiles_of(path: Path) -> list[str | None]:
    names: list[str | None] = []
    load(path, profile=lambda found: names.extend(found) or found[0])  # type: ignore[func-returns-value]
    return names or [None]


def test_every_shipped_recipe_loads_under_each_of_its_profiles() -> None:
    found = [(path.name, profile) for path in shipped() for profile in profiles_of(path)]
    assert found == [
        ("medical_qa.yaml", "cpu"),
        ("medical_qa.yaml", "gpu-8gb"),
        ("medical_qa.yaml", "gpu-12gb"),
        ("medical_qa.yaml", "gpu-24gb"),
        ("style_lora.yaml", "cpu"),
        ("style_lora.yaml", "gpu-8gb"),
        ("style_lora.yaml", "gpu-12gb"),
        ("style_lora.yaml", "gpu-24gb"),
    ]
    for path in shipped():
        for profile in profiles_of(path):
            recipe = load(path, profile=profile)
            named = [value for _, value in recipe.data if isinstance(value, Path | tuple)]
            paths = [path for one in named for path in (one if isinstance(one, tuple) else (one,))]
            assert len(paths) >= 2 and all(path.exists() for path in paths)
            assert recipe.warnings() == ()


def test_shipped_recipes_point_editors_to_the_schema_and_tell_the_command() -> None:
    for path in shipped():
        lines = path.read_text().splitlines()
        target = os.path.relpath(ROOT / "recipes" / "recipe.schema.json", path.parent)
        assert lines[0] == f"# yaml-language-server: $schema={target}"
        assert f"#   llm-lora train {path.relative_to(ROOT)}" in "\n".join(lines[:12])


def test_committed_editor_schema_is_true() -> None:
    committed = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert committed == json_schema(), "run python -m llm_lora.recipe"


def test_editor_schema_accepts_what_load_accepts() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    for path in shipped():
        assert list(validator.iter_errors(yaml_source.parse(path.read_text(), "x").data)) == []
    full = load(write("x.yaml", MINIMAL)).settings()
    assert list(validator.iter_errors(full)) == []
    partial = {"extends": "a.yaml", "lora": {"rank": None}, "profiles": {"cpu": None}}
    assert list(validator.iter_errors(partial)) == []


@pytest.mark.parametrize(
    "name", [path.name for path in sorted(BROKEN.glob("settings_*.yaml"))] + ["profiles.yaml"]
)
def test_editor_schema_refuses_what_load_refuses(name: str) -> None:
    if name in ("settings_missing.yaml", "settings_twice.yaml"):
        pytest.skip("a layer may be partial, and JSON has no lines to show a key given twice")
    data = yaml_source.parse((BROKEN / name).read_text(), name).data
    assert list(jsonschema.Draft202012Validator(json_schema()).iter_errors(data))


def blocks(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in schema.get("properties", {}).items():
        yield f"{path}{key}", value
    for name, block in schema.get("$defs", {}).items():
        yield from blocks(block, f"{name}.")


def test_every_setting_is_described() -> None:
    schema = Recipe.model_json_schema()
    described = dict(blocks(schema))
    assert len(described) > 40
    blockless = [
        name
        for name, value in described.items()
        if "description" not in value
        and "description" not in schema["$defs"].get(str(value.get("$ref")).rpartition("/")[2], {})
    ]
    assert blockless == []


def test_import_brings_in_neither_yaml_nor_anything_heavy() -> None:
    code = (
        "import sys, llm_lora.recipe.loading, llm_lora.machine\n"
        "heavy = {'ruamel.yaml', 'torch', 'transformers', 'numpy', 'psutil', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
