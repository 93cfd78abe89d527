"""The Python interface: its names and signatures, its weight, and every example of its page."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.made_runs import SCHEMA, make_run
from support.places import ROOT

import llm_lora as ll
from llm_lora import files
from llm_lora.api import server as servers
from llm_lora.serving.launch import launching

PAGE = ROOT / "docs" / "python.md"

SIGNATURES = {
    "Answer": "(text, verdict, complete)",
    "Chat": "(run, *, free=False)",
    "check_data": "(recipe, *, overrides=(), profile='auto')",
    "judge": "(text, schema)",
    "load_recipe": "(path, *, overrides=(), profile='auto')",
    "load_run": "(path)",
    "promote": "(name, version, *, store='store', why='', force=False)",
    "publish": "(run, name=None, *, store='store', why='')",
    "rollback": "(name, *, store='store', why='')",
    "Run": "(folder)",
    "serve": "(source, *, host='127.0.0.1', port=None, base=None, context=None, max_adapters=4, "
    "api_keys=None, admin_keys=None)",
    "train": "(recipe, *, overrides=(), profile='auto', runs='runs', store='store', resume=False, "
    "watch=None)",
}
TYPES = {
    "Interrupted", "Progress", "Reason", "Schema", "Server", "UserError", "Verdict", "Version",
    "Watcher",
}  # fmt: skip
"""Names whose constructors users do not call."""


def signature(name: str) -> str:
    """The parameters of a public name with their defaults, without types."""
    found = inspect.signature(getattr(ll, name))
    plain = [one.replace(annotation=one.empty) for one in found.parameters.values()]
    return str(inspect.Signature(plain))


def test_the_public_names() -> None:
    assert sorted(ll.__all__) == sorted([*SIGNATURES, *TYPES, "__version__"])
    assert all(hasattr(ll, name) for name in ll.__all__)
    assert {name: signature(name) for name in SIGNATURES} == SIGNATURES


@pytest.mark.parametrize(
    "code",
    [
        "",
        "ll.judge('{}', {'type': 'object'})",
        "ll.Schema.load, ll.UserError, ll.__version__",
    ],
)
def test_importing_and_judging_load_nothing_heavy(code: str) -> None:
    heavy = {"torch", "pydantic", "transformers", "httpx", "click", "rich"}
    told = f"print(sorted({heavy!r} & set(sys.modules)))"
    script = f"import sys; import llm_lora as ll; {code}; {told}".replace("; ;", ";")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_no_name_loads_torch() -> None:
    script = (
        "import sys; import llm_lora as ll\n"
        "for name in ll.__all__: getattr(ll, name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_schema_is_a_file_a_dictionary_or_loaded(tmp_path: Path) -> None:
    path = tmp_path / "answer.schema.json"
    path.write_text(json.dumps(SCHEMA))
    for schema in (SCHEMA, path, str(path), ll.Schema.load(path), ll.Schema.load(str(path))):
        assert ll.judge('{"a": 1}', schema).value == {"a": 1}
        assert [one.path for one in ll.judge('{"a": "1"}', schema).reasons] == ["a"]
        assert ll.judge("no", schema).kind == "not_json"


def test_runs_are_found_as_by_the_commands(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "medical" / "2026")
    (folder.parent / "latest").symlink_to("2026")
    for path in (folder, folder.parent, folder.parent / "latest", str(folder)):
        run = ll.load_run(path)
        assert (run.folder, run.name) == (folder, "medical")
        assert ll.load_run(run) == run
    with pytest.raises(ll.UserError, match="no run here"):
        ll.load_run(tmp_path / "elsewhere")


def test_mistakes_in_a_recipe_come_together(small_recipe: Path) -> None:
    with pytest.raises(ll.UserError) as raised:
        ll.train(small_recipe, overrides=["lora.rnak=1", "lora.rank=many"])
    assert len(raised.value.problems) == 2
    recipe = ll.load_recipe(small_recipe, overrides=["lora.rank=2"])
    assert recipe.lora.rank == 2
    with pytest.raises(TypeError, match="apply to a file"):
        ll.check_data(recipe, profile="cpu")


def test_data_are_checked_without_training(small_recipe: Path) -> None:
    data = ll.check_data(small_recipe)
    assert len(data.held_out) == 12
    assert ll.check_data(ll.load_recipe(small_recipe)).fingerprint == data.fingerprint


def finished_run(folder: Path, **made: Any) -> Path:
    run = make_run(folder, **made)
    files.write_json(run / "manifest.json", {})
    return run


def test_versions_go_live_and_back(tmp_path: Path) -> None:
    store = tmp_path / "store"
    runs = [finished_run(tmp_path / "runs" / "a_name" / str(seed), seed=seed) for seed in (1, 2)]
    first = ll.publish(ll.load_run(runs[0]), store=store)
    second = ll.publish(runs[1], "a-name", store=store, why="more data")
    assert (first.label, second.label) == ("a-name@1", "a-name@2")
    assert ll.promote("a-name", first, store=store) == first
    assert ll.promote("a-name", 2, store=store) == second
    assert ll.rollback("a-name", store=store) == first
    failed = ll.publish(finished_run(tmp_path / "f" / "f" / "f", seed=3, passed=False), store=store)
    with pytest.raises(ll.UserError, match="gate schema_valid failed"):
        ll.promote("f", failed, store=store)
    assert ll.promote("f", failed, store=store, force=True).passed is False


class Life:
    """Stands in for `launching.run`: the events of one server, which dies if it has an `error`."""

    def __init__(self, *, ready: bool = True, error: str = "") -> None:
        self.ready, self.error = ready, error
        self.stops = 0
        self.die = threading.Event()

    def __call__(self, _: object, watch: Any, stop: Any) -> None:
        watch.starting(Path("log"))
        if self.ready:
            watch.ready(1.0, {})
        if self.error:
            assert not self.ready or self.die.wait(30)
            raise ll.UserError(self.error)
        while not stop.wait(0.05):
            pass
        self.stops = stop.asked


def server(monkeypatch: pytest.MonkeyPatch, life: Life) -> ll.Server:
    monkeypatch.setattr(launching, "run", life)
    plan = SimpleNamespace(url="http://127.0.0.1:1", served=(SimpleNamespace(name="a"),))
    return ll.Server(cast(Any, plan))


def test_a_server_lives_as_long_as_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life()
    with server(monkeypatch, life) as running:
        assert (running.url, running.adapters) == ("http://127.0.0.1:1", ("a",))
        assert running.log == Path("log")
        assert not life.stops
    # A second request to stop would kill it before running requests are answered.
    assert life.stops == 1


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ll.UserError, match="no room"),
        server(monkeypatch, Life(ready=False, error="no room")),
    ):
        pytest.fail("it did not start")


@pytest.mark.parametrize("other", [None, KeyError()])
def test_a_server_that_died_is_told_unless_the_program_fails_anyway(
    monkeypatch: pytest.MonkeyPatch, other: Exception | None
) -> None:
    life = Life(error="gone")
    expected = ll.UserError if other is None else KeyError
    with pytest.raises(expected), server(monkeypatch, life):
        life.die.set()
        if other is not None:
            raise other


def test_what_is_served_is_a_run_or_a_store(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "runs" / "medical" / "2026")
    (run.parent / "latest").symlink_to("2026")
    for path in (run, run.parent, run / "adapter"):
        assert servers.sources.is_run_or_adapter(path)
    version = ll.publish(run, store=tmp_path / "store")
    assert not servers.sources.is_run_or_adapter(tmp_path / "store")
    assert servers.sources.is_run_or_adapter(version.folder)
    with pytest.raises(ll.UserError, match="not a store"):
        ll.serve(tmp_path / "nothing")


def blocks() -> list[str]:
    """The Python examples of the page."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_example_is_python_and_every_name_on_the_page_is_public() -> None:
    for block in blocks():
        compile(block, str(PAGE), "exec")
    named = set(re.findall(r"\bll\.(\w+)", PAGE.read_text()))
    assert named <= set(ll.__all__)
    assert {"train", "load_run", "Chat", "judge", "publish", "promote", "serve"} <= named


@pytest.mark.slow
def test_every_example_runs(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "data").symlink_to(small_recipe.parent)
    recipe = small_recipe.read_text().replace("name: small", "name: medical_qa")
    recipe = re.sub(r"(train|held_out|schema): (\w\S+\.jsonl?)", r"\1: ../data/\2", recipe)
    (tmp_path / "recipes" / "medical_qa.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    script = "\n".join(blocks())
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].endswith("12 held out")
    assert any(re.fullmatch(r"medical-qa@1 (True|False)", line) for line in said)
    # So short a training need not end its answers within the token limit.
    assert said[-1].split()[-1] in ("valid", "truncated")
