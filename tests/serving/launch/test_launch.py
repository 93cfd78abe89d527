"""Plans, refusals and the command line before vLLM starts; no vLLM needed."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.made_runs import make_adapter, make_run

from llm_lora import files
from llm_lora.cli import serving
from llm_lora.errors import UserError
from llm_lora.machine import GIB, Hardware, is_loopback
from llm_lora.serving import sources
from llm_lora.serving.launch import launching as launch
from llm_lora.serving.launch import text as preflight
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.launch.text import Wanted
from llm_lora.serving.launch.vllm import Plan
from llm_lora.serving.layer.config import Limits, ServingConfig
from llm_lora.store.store import Store

CPU = Hardware(cores=2, memory_bytes=16 * GIB)
CARD = Hardware(4, 32 * GIB, "RTX", 24 * GIB, (8, 9), bf16=True)
OLD_CARD = replace(CARD, gpu="T4", gpu_capability=(7, 5), bf16=False)
KEY = "0123456789abcdefghij"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLM_LORA_API_KEYS", "LLM_LORA_ADMIN_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "small_run" / "one")


def examine(port: int, hardware: Hardware = CPU, **wanted: Any) -> Plan:
    return preflight.examine(Wanted(port=port, **wanted), hardware)


def refused(port: int, **wanted: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        examine(port, **wanted)
    return [str(problem) for problem in caught.value.problems]


def pairs(command: list[str]) -> dict[str, str]:
    """The value that follows each flag."""
    return dict(zip(command, [*command[1:], ""], strict=True))


# Plans.


def test_a_run_is_served_under_its_recipes_name_from_a_store_of_its_own(
    run: Path, port: int
) -> None:
    plan = examine(port, sources=(run,))
    assert [(one.name, one.example) for one in plan.served] == [("small-run", "It's a cough.")]
    assert (plan.store, plan.base_name) == (run / "serving" / "store", "tiny")
    assert plan.state == run / "serving" / f"{socket.gethostname()}-{port}"
    assert (plan.context, plan.ranks, plan.warnings) == (2048, (8,), ())
    assert not plan.store.exists(), "looking writes nothing"
    sources.publish(plan.served, plan.store)
    store = Store(plan.store)
    assert store.alias("small-run").live == 1
    sources.publish(plan.served, plan.store)
    assert store.numbers("small-run") == [1], "the same run again is the same version"


def test_a_run_that_failed_its_gates_is_served_with_a_warning_and_the_history_tells(
    tmp_path: Path, port: int
) -> None:
    plan = examine(port, sources=(make_run(tmp_path / "weak" / "one", passed=False),))
    assert plan.warnings == (
        f"{tmp_path / 'weak' / 'one'} did not pass its gates: schema_valid 0.5 of 0.95",
    )
    sources.publish(plan.served, plan.store)
    event = Store(plan.store).history("weak")[-1]
    assert (event.kind, event.why) == ("promote", "llm-lora serve")
    assert "gates" in json.dumps(event.to_json()) or event.facts.get("forced")


def test_a_run_that_a_server_refused_is_not_served_again_unless_a_person_forces_it(
    run: Path, tmp_path: Path, port: int
) -> None:
    weak = make_run(tmp_path / "weak" / "one", seed=1, passed=False)
    plan = examine(port, sources=(run, weak))
    sources.publish(plan.served, plan.store)
    store = Store(plan.store)
    assert store.names() == ["small-run", "weak"]
    for name in store.names():
        store.refuse(name, 1, "it answers exactly like the base")
    before = {name: store.alias(name) for name in store.names()}
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            sources.publish(plan.served, plan.store)
        assert [problem.where for problem in caught.value.problems] == [str(run), str(weak)]
        for problem in caught.value.problems:
            assert "has refused it: it answers exactly like the base" in problem.what
            assert problem.fix is not None and f"--store {plan.store} --force" in problem.fix
    assert {name: store.alias(name) for name in store.names()} == before
    for name in store.names():
        store.promote(name, 1, by="ann", force=True)
    sources.publish(plan.served, plan.store)
    assert [event.by for event in store.history("weak")][-1] == "ann", "nothing was done again"


def test_two_servers_of_a_run_have_files_of_their_own(run: Path, port: int) -> None:
    one, other = examine(port, sources=(run,)), examine(port + 1, sources=(run,))
    assert one.store == other.store and one.state != other.state


def test_several_runs_share_a_store_that_others_do_not_see(tmp_path: Path, port: int) -> None:
    first = make_run(tmp_path / "first" / "x", seed=1)
    second = make_run(tmp_path / "second" / "y", seed=2)
    plan = examine(port, sources=(first, second))
    assert plan.store == first / "serving" / "first-second" / "store"
    sources.publish(plan.served, plan.store)
    assert Store(plan.store).names() == ["first", "second"]
    assert examine(port, sources=(first,)).store != plan.store


def test_an_adapter_folder_is_taken_for_its_run_or_on_its_own(
    run: Path, tmp_path: Path, port: int
) -> None:
    assert examine(port, sources=(run / "adapter",)).store == run / "serving" / "store"
    alone = make_adapter(tmp_path / "alone")
    plan = examine(port, sources=(alone,))
    assert [one.name for one in plan.served] == ["small-run"]
    assert plan.store == alone / "serving" / "store"
    assert plan.warnings == (f"{alone} has no report: the quality of its answers is unknown",)


def publish(store: Store, run: Path, name: str, *, live: bool = True) -> None:
    version = store.publish(run / "adapter", name, report=None, by="test")
    if live:
        store.promote(name, version.number, by="test", force=True)


def test_a_store_is_served_with_what_is_live_in_it(tmp_path: Path, port: int) -> None:
    store = Store(tmp_path / "store")
    publish(store, make_run(tmp_path / "a" / "1", seed=1), "one")
    publish(store, make_run(tmp_path / "a" / "2", seed=2, rank=40), "one", live=False)
    publish(store, make_run(tmp_path / "a" / "3", seed=3), "asleep", live=False)
    plan = examine(port, store=tmp_path / "store")
    assert [one.label for one in plan.served] == ["one@1"]
    assert sorted(plan.ranks) == [8, 8, 40], "what may be promoted later must fit too"
    assert any(warning.startswith("asleep has no live version") for warning in plan.warnings)
    assert plan.state.is_relative_to(tmp_path / "store" / ".serving")


def test_an_empty_store_is_served_once_a_base_is_named(tmp_path: Path, port: int) -> None:
    (tmp_path / "store").mkdir()
    assert refused(port, store=tmp_path / "store") == [
        "no adapter names a base to serve; name it: --base NAME or FOLDER"
    ]
    plan = examine(port, store=tmp_path / "store", base="tiny")
    assert plan.served == () and "the store is empty" in plan.warnings[0]


# Refusals: all at once.


def test_every_obstacle_is_told_in_one_message(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = refused(
            taken.getsockname()[1],
            sources=(
                make_run(tmp_path / "dora" / "1", use_dora=True),
                make_run(tmp_path / "saved" / "1", seed=1, modules_to_save=["lm_head"]),
                make_run(tmp_path / "wide" / "1", seed=2, rank=600),
                make_run(tmp_path / "keys" / "1", seed=3, modules=("model.layers.9.mlp.up_proj",)),
                make_run(tmp_path / "base" / "1", seed=4, base={"digest": "f" * 64}),
                tmp_path / "nothing",
            ),
            base="tiny",
            context=100_000,
            extra=("--api-key secret",),
        )
    wanted = (
        "--api-key is set by llm-lora itself",
        "Address already in use",
        "use_dora",
        "modules_to_save",
        "rank 600 is above 512",
        "model.layers.9.mlp.up_proj",
        "ffffffffffff",
        "no run here",
        "--context 100000 exceeds the 2048 tokens of tiny",
    )
    for part in wanted:
        assert sum(part in one for one in told) == 1, (part, told)
    assert len(told) == len(wanted)


def test_damaged_weights_and_another_template_are_refused(
    run: Path, tmp_path: Path, port: int
) -> None:
    other = make_run(tmp_path / "other" / "1", template="{{ messages }}")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    told = refused(port, sources=(run, other))
    assert len(told) == 2
    assert "adapter_model.safetensors" in told[0]
    assert "a chat template other than that of the base" in told[1]


def test_adapters_of_two_bases_need_one_named(tmp_path: Path, port: int) -> None:
    store = Store(tmp_path / "store")
    publish(store, make_run(tmp_path / "a" / "1"), "mine")
    elsewhere = {"name": "else/where", "digest": "e" * 64}
    publish(store, make_run(tmp_path / "a" / "2", seed=1, base=elsewhere), "other")
    (told,) = refused(port, store=store.root)
    assert "mine@1 (tiny), other@1 (else/where)" in told
    plan = examine(port, store=store.root, base="tiny")
    assert [one.name for one in plan.served] == ["mine"]
    assert any("other@1 is not served" in warning for warning in plan.warnings)


def test_a_base_that_changed_under_its_name_is_refused(tmp_path: Path, port: int) -> None:
    store = Store(tmp_path / "store")
    publish(store, make_run(tmp_path / "a" / "1"), "mine")
    publish(store, make_run(tmp_path / "a" / "2", seed=1, base={"digest": "e" * 64}), "old")
    (told,) = refused(port, store=store.root, base="tiny")
    assert "trained on tiny (eeeeeeeeeeee), not on tiny" in told


def test_runs_and_a_store_are_one_of_the_two(run: Path, tmp_path: Path, port: int) -> None:
    for wanted in ({}, {"sources": (run,), "store": tmp_path}):
        (told,) = refused(port, **wanted)
        assert "give either runs or a store" in told


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_are_let_in_only_with_keys_or_when_asked_by_name(
    run: Path, tmp_path: Path, port: int, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told,) = refused(port, sources=(run,), host=host)
    assert "there are no API keys" in told
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    (told,) = refused(port, sources=(run,), host=host, admin_keys=keys)
    assert "there are no API keys" in told, "admin keys do not close the other routes"
    assert examine(port, sources=(run,), host=host, api_keys=keys).keys.use
    assert not examine(port, sources=(run,), host=host, open=True).keys.use
    monkeypatch.setenv("LLM_LORA_API_KEYS", KEY)
    assert examine(port, sources=(run,), host=host).keys.use
    keys.write_text("short\n")
    (told,) = refused(port, sources=(run,), host=host, api_keys=keys)
    assert "key 1 is not" in told


@pytest.mark.parametrize(
    ("hosts", "only_here"),
    [
        (("127.0.0.1", "127.9.9.9", "::1", "localhost"), True),
        (("0.0.0.0", "::", "10.0.0.1", "example.org"), False),
    ],
)
def test_loopback_is_known(hosts: tuple[str, ...], only_here: bool) -> None:
    assert {is_loopback(host) for host in hosts} == {only_here}


# vLLM's command line.


def test_the_command_for_a_cpu_keeps_the_cache_modest(run: Path, port: int) -> None:
    plan = examine(port, sources=(run,), max_adapters=3, extra=("--dtype float32",))
    command = flags.command(plan)
    told = pairs(command)
    assert told["--max-loras"] == "4"
    assert told["--max-lora-rank"] == "16"
    assert told["--max-model-len"] == "2048"
    assert told["--middleware"] == "llm_lora.serving.layer.layer.Layer"
    assert json.loads(told["--structured-outputs-config"]) == {
        "backend": "guidance",
        "disable_any_whitespace": True,
    }
    assert told["--kv-cache-memory-bytes"] == str(GIB // 2)
    assert "--enforce-eager" in command
    assert told["--worker-extension-cls"] == "llm_lora.engines.text.vllm_cpu.Mended"
    assert command[-2:] == ["--dtype", "float32"]


def test_the_command_for_a_card_leaves_memory_to_vllm(run: Path, port: int) -> None:
    told = pairs(flags.command(examine(port, CARD, sources=(run,), max_adapters=3)))
    assert told["--max-loras"] == "4"
    assert not {
        "--enforce-eager",
        "--kv-cache-memory-bytes",
        "--worker-extension-cls",
        "--dtype",
    } & set(told)
    told = pairs(flags.command(examine(port, OLD_CARD, sources=(run,))))
    assert told["--dtype"] == "half"


def test_a_bases_penalty_on_repetitions_is_kept(run: Path, port: int, tmp_path: Path) -> None:
    plan = examine(port, sources=(run,))
    assert "--override-generation-config" not in flags.command(plan)
    folder = tmp_path / "base"
    folder.mkdir()
    for path in plan.base.path.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.05, "top_k": 20}')
    told = pairs(flags.command(replace(plan, base=replace(plan.base, path=folder))))
    assert told["--generation-config"] == "vllm"
    assert json.loads(told["--override-generation-config"]) == {"repetition_penalty": 1.05}


def test_the_layer_is_told_what_was_checked(run: Path, port: int) -> None:
    plan = examine(port, sources=(run,), max_adapters=7, on_invalid="retry")
    path = launch.prepare(plan)
    assert path.stat().st_mode & 0o077 == 0
    config = ServingConfig.from_json(files.read_text(path))
    assert (config.store, config.base_path) == (plan.store, plan.base.path)
    assert (config.max_resident, config.on_invalid) == (7, "retry")
    assert config.base_digest == plan.base.digest
    assert str(config.max_rank) == pairs(flags.command(plan))["--max-lora-rank"]
    assert (config.limits, config.log_contents) == (Limits(), False)


def test_limits_and_contents_of_the_log_are_passed_on(
    run: Path, port: int, tmp_path: Path, cli: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(launch, "serve", lambda plan, watch: plans.append(plan))
    words = [str(run), "--port", str(port), "--access-log", str(tmp_path / "log")]
    words += ["--log-contents", "--max-concurrent", "3", "--max-body", "5", "--timeout", "7"]
    for given in ([str(run), "--port", str(port)], words):
        done = cli.invoke(serving.serve, given)
        assert done.exit_code == 0, done.output
    usual, made = (ServingConfig.from_json(files.read_text(launch.prepare(one))) for one in plans)
    assert (usual.limits, usual.log_contents) == (Limits(), False), "the command's own defaults"
    assert made.limits == Limits(max_body_bytes=5 * 2**20, max_concurrent=3, request_seconds=7.0)
    assert made.log_contents
    assert refused(port, sources=(run,), log_contents=True) == [
        "--log-contents needs an access log; add --access-log FILE"
    ]


# The command.


@pytest.fixture
def cli() -> Iterator[CliRunner]:
    yield CliRunner()


def test_a_dry_run_tells_what_would_be_served_and_writes_nothing(
    run: Path, port: int, cli: CliRunner
) -> None:
    done = cli.invoke(serving.serve, [str(run), "--port", str(port), "--dry-run"])
    assert done.exit_code == 0, done.output
    *lines, command = done.output.strip().splitlines()
    assert any("small-run" in line and "schema enforced" in line for line in lines)
    assert pairs(shlex.split(command))["--port"] == str(port)
    assert not (run / "serving").exists()


def test_the_line_to_try_it_with_can_be_pasted(run: Path, port: int, tmp_path: Path) -> None:
    words = shlex.split(serving.curl(examine(port, sources=(run,))))
    body = json.loads(words[words.index("-d") + 1])
    assert body == {
        "model": "small-run",
        "messages": [{"role": "user", "content": "It's a cough."}],
    }
    assert words[1] == f"http://127.0.0.1:{port}/v1/chat/completions"
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    assert "$LLM_LORA_API_KEY" in serving.curl(examine(port, sources=(run,), api_keys=keys))
