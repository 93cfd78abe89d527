"""The store under kill -9, full disks and several writers: complete versions or none."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapter_folders import NAME, put, report_of, write_adapter

from llm_lora.errors import UserError
from llm_lora.store import aliases, published
from llm_lora.store.aliases import Event
from llm_lora.store.store import Store


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters that differ only in their weights."""
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / str(seed), seed=seed) for seed in range(12)]


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory, folders: list[Path]) -> Path:
    """A store with three versions, the second live, to be copied."""
    store = Store(tmp_path_factory.mktemp("pattern") / "store")
    for folder in folders[:3]:
        put(store, folder)
    store.promote(NAME, 1, by="ann")
    store.promote(NAME, 2, by="ann")
    return store.root


def start(action: Callable[[], object], *, die_at: int = 0) -> int:
    """Run in a separate process, killed at C call `die_at` if given; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "c_call"
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        if die_at:
            sys.setprofile(count)
        action()
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)
    os._exit(0)


def was_killed(pid: int) -> bool:
    """Wait for a process, which must be killed or succeed."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def check(root: Path, folder: Path) -> Store:
    """Every version and the history are complete, the alias exists; the next writer cleans up."""
    store = Store(root)
    for number in store.numbers(NAME):
        store.verify(store.version(NAME, number))
    alias, before = store.alias(NAME), store.numbers(NAME)
    assert {alias.live, alias.previous} - {None} <= set(before)
    assert store.history(NAME).count(alias.changed) == 1
    new = put(store, folder)
    assert new > max(before)
    assert store.alias(NAME) == alias
    assert not [path for path in root.rglob(".*") if path.name != ".lock"]
    written = (root / NAME / "history.jsonl").read_text().splitlines()
    assert len(written) == len(store.history(NAME)) == len(set(written))
    published_numbers = [e.number for e in store.history(NAME) if e.kind == "publish"]
    assert sorted(published_numbers) == list(range(1, new + 1))
    return store


ACTIONS: dict[str, Callable[[Store, list[Path]], object]] = {
    "publish": lambda store, folders: put(store, folders[3]),
    "promote": lambda store, _: store.promote(NAME, 3, by="bob"),
    "rollback": lambda store, _: store.rollback(NAME, by="bob"),
    "canary": lambda store, _: store.canary(NAME, 3, 0.1, by="bob"),
    "remove": lambda store, _: store.remove(NAME, 1, by="bob"),
    "refuse": lambda store, _: store.refuse(NAME, 2, "no effect"),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_kill_at_any_moment_leaves_old_or_new(
    name: str, pattern: Path, folders: list[Path], tmp_path: Path
) -> None:
    act = ACTIONS[name]
    outcomes = set()
    chance, die_at, kills = random.Random(7), 1, 0
    while True:
        root = tmp_path / str(die_at)
        shutil.copytree(pattern, root)
        pid = start(lambda root=root: act(Store(root), folders), die_at=die_at)
        killed = was_killed(pid)
        kills += killed
        alias = Store(root).alias(NAME)
        canary = alias.canary and alias.canary.number
        numbers = tuple(Store(root).numbers(NAME))
        outcomes.add((alias.live, alias.previous, canary, numbers))
        check(root, folders[4])
        shutil.rmtree(root)
        if not killed:
            break
        die_at += chance.randint(1, 30)
    old = (2, 1, None, (1, 2, 3))
    new = {
        "publish": (2, 1, None, (1, 2, 3, 4)),
        "promote": (3, 2, None, (1, 2, 3)),
        "rollback": (1, 2, None, (1, 2, 3)),
        "canary": (2, 1, 3, (1, 2, 3)),
        "remove": (2, None, None, (2, 3)),
        "refuse": (1, None, None, (1, 2, 3)),
    }[name]
    # A removal first takes the version out of reach of a rollback.
    between = {(2, None, None, (1, 2, 3))} if name == "remove" else set()
    assert {old, new} <= outcomes <= {old, new} | between
    assert kills > 10


def test_a_kill_while_much_is_copied(tmp_path: Path, folders: list[Path]) -> None:
    """Killed by the clock, so in the middle of large files as well."""
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": np.ones((4, 1_000_000), np.float32),
        f"{module}.lora_B.weight": np.ones((256, 4), np.float32),
    }
    large = write_adapter(tmp_path / "large", tensors=tensors)
    store, chance, kills = Store(tmp_path / "store"), random.Random(7), 0

    def publish(name: str) -> int:
        return store.publish(large, name, report=report_of(large), by="ann").number

    for turn in range(15):
        name = f"large-{turn}"
        pid = start(lambda name=name: publish(name))
        time.sleep(chance.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        kills += was_killed(pid)
        for number in store.numbers(name):
            store.verify(store.version(name, number))
        assert publish(name) == 1
    assert kills > 5
    assert not [path for path in store.root.rglob(".*") if path.name != ".lock"]


def test_a_killed_writer_lets_go_of_the_lock(pattern: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(pattern, root)
    held = tmp_path / "held"

    def hold() -> None:
        with Store(root)._writing(NAME):
            held.touch()
            time.sleep(60)

    pid = start(hold)
    while not held.exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert was_killed(pid)
    assert Store(root).rollback(NAME, by="ann").live == 1


def test_writers_take_turns_and_readers_never_see_half(tmp_path: Path, folders: list[Path]) -> None:
    root = tmp_path / "store"

    def write(mine: list[Path], who: str) -> None:
        store = Store(root)
        for folder in mine:
            number = store.publish(folder, NAME, report=report_of(folder), by=who).number
            store.promote(NAME, number, by=who)

    pids = [start(lambda i=i: write(folders[i::3], f"writer {i}")) for i in range(3)]
    reader, seen = Store(root), 0
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            assert status == 0
            pids.remove(pid)
        for name in reader.names():
            for number in reader.numbers(name):
                published.verify(reader.version(name, number))
            live = reader.alias(name).live
            if live is not None:
                published.verify(reader.version(name, live))
                seen += 1
    assert seen > 0
    assert reader.numbers(NAME) == list(range(1, 13))
    assert len({version.digest for version in reader.versions(NAME)}) == 12
    events = reader.history(NAME)
    assert sorted(e.number for e in events if e.kind == "publish") == list(range(1, 13))
    promoted = [event for event in events if event.kind == "promote"]
    # In turn: each found live the version that the one before made live.
    assert [e.facts["before"] for e in promoted] == [None, *(e.number for e in promoted[:-1])]
    assert reader.alias(NAME).changed == promoted[-1]


def test_the_same_content_from_two_writers_is_one_version(
    tmp_path: Path, folders: list[Path]
) -> None:
    pids = [start(lambda: put(Store(tmp_path / "store"), folders[0])) for _ in range(4)]
    ends = [was_killed(pid) for pid in pids]
    assert not any(ends)
    assert Store(tmp_path / "store").numbers(NAME) == [1]


@pytest.mark.parametrize("name", ACTIONS)
def test_a_full_disk_leaves_old_or_new(
    name: str,
    pattern: Path,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk is full at the first sync, at the second, and so on to the last."""
    sync, failures = os.fsync, 0
    for last in range(100):
        root = tmp_path / str(last)
        shutil.copytree(pattern, root)
        store, done = Store(root), 0

        def full(handle: int, last: int = last) -> None:
            nonlocal done
            done += 1
            if done > last:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(handle)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            try:
                ACTIONS[name](store, folders)
            except UserError as error:
                assert "the disk is full; free some space" in str(error)
                failures += 1
                assert not [path for path in root.rglob(".*") if path.name != ".lock"]
        check(root, folders[4])
        if done <= last:
            break
    assert failures >= 2


def test_a_disk_that_is_really_full(tmp_path: Path, folders: list[Path]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"may not mount a small disk: {mounted.stderr.strip()}")
    try:
        fill_up(disk, folders)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill_up(disk: Path, folders: list[Path]) -> None:
    store = Store(disk / "store")
    put(store, folders[0])
    put(store, folders[1])
    store.promote(NAME, 1, by="ann")
    with pytest.raises(UserError, match="the disk is full; free some space"):
        for folder in folders[2:]:
            put(store, folder)
    numbers = store.numbers(NAME)
    assert numbers == list(range(1, max(numbers) + 1))
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while write(file, bytes(512)):
            pass
    with pytest.raises(UserError, match="the disk is full"):
        store.promote(NAME, 2, by="ann")
    assert store.alias(NAME).live == 1
    # Existing content needs no space.
    assert put(store, folders[1]) == 2
    filler.unlink()
    store.remove(NAME, numbers[-1], by="ann")
    store.promote(NAME, 2, by="ann")
    check(store.root, folders[11])


def write(file: Any, data: bytes) -> int:
    try:
        return int(file.write(data))
    except OSError:
        return 0


def test_a_line_that_was_cut_off_harms_no_other(pattern: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(pattern, root)
    path = root / NAME / "history.jsonl"
    # A power failure cuts the last line; no later line is lost.
    path.write_bytes(path.read_bytes()[:-30])
    store = Store(root)
    kinds = ["publish"] * 3 + ["promote"] * 2
    assert [event.kind for event in store.history(NAME)] == kinds
    store.promote(NAME, 3, by="ann")
    assert [event.kind for event in store.history(NAME)] == [*kinds, "promote"]
    assert b"\n\n" not in path.read_bytes()


def test_a_line_that_does_not_fit_on_the_disk_leaves_none_of_it(tmp_path: Path) -> None:
    """With a limit on file size the system writes a part, as on a nearly full disk."""
    path = tmp_path / "history.jsonl"
    aliases.append(path, [Event("publish", "now", "ann", "")])
    before = path.read_bytes()

    def append() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="No space left"):
            aliases.append(path, [Event("promote", "now", "ann", "")])

    assert not was_killed(start(append))
    assert path.read_bytes() == before
