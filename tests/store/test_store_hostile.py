"""Names that are not allowed, numbers that do not exist, and files changed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.adapter_folders import NAME, put, three_versions, write_adapter

from llm_lora.adapter import folder as adapters
from llm_lora.errors import UserError
from llm_lora.store import published
from llm_lora.store.aliases import Alias
from llm_lora.store.store import Store, UnknownAdapter, check_name, suggest_name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters that differ only in their weights."""
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / str(seed), seed=seed) for seed in range(4)]


@pytest.fixture
def store(tmp_path: Path, folders: list[Path]) -> Store:
    """Three versions: 1 and 2 passed their gates and 3 did not; none is live."""
    return three_versions(tmp_path / "store", folders)


def live_and_previous(alias: Alias) -> tuple[int | None, int | None]:
    return alias.live, alias.previous


def test_names_are_proposed() -> None:
    assert suggest_name("Medical_QA v2") == NAME + "-v2"
    assert suggest_name("Größe 7") == "groe-7"
    assert suggest_name("../../etc/passwd") == "etc-passwd"
    assert suggest_name("日本") == ""
    assert len(suggest_name("ab " * 100)) <= 63


HOSTILE = [
    *("", ".", "..", "../../x", "a/b", "/etc", "a\0b", "-a", "A", "a_b", "a\n", "con ", "a.b"),
    *("%2e%2e", "\uff41", "\u202e", "\udc80", "a" * 64, "é" * 10_000, "x" * 1_000_000),
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_hostile_names_are_refused_everywhere(store: Store, folders: list[Path], name: str) -> None:
    before = sorted(store.root.parent.rglob("*"))
    calls: list[Callable[[], Any]] = [
        lambda: put(store, folders[0], name=name),
        lambda: store.alias(name),
        lambda: store.version(name, 1),
        lambda: store.resolve(name),
        lambda: store.versions(name),
        lambda: store.history(name),
        lambda: store.promote(name, 1, by="ann"),
        lambda: store.rollback(name, by="ann"),
        lambda: store.canary(name, 1, 0.5, by="ann"),
        lambda: store.remove(name, 1, by="ann"),
        lambda: store.refuse(name, 1, "no"),
        lambda: store.retire(name, by="ann"),
    ]
    for call in calls:
        with pytest.raises(UserError, match="not a valid adapter name") as caught:
            call()
        assert len(str(caught.value)) < 700
        assert str(caught.value).isprintable()
    assert sorted(store.root.parent.rglob("*")) == before


@given(st.text())
def test_whatever_passes_is_a_plain_file_name(text: str) -> None:
    try:
        check_name(text)
    except UserError:
        proposed = suggest_name(text)
        assert proposed == "" or check_name(proposed) == proposed
    else:
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert 1 <= len(text) <= 63
        assert Path("store", text).parent == Path("store")


@pytest.mark.parametrize("number", [0, -1, 4, 10**6, 10**400])
def test_numbers_out_of_range_are_unknown(store: Store, number: int) -> None:
    for call in (store.version, lambda *a: store.promote(*a, by="ann")):
        with pytest.raises(UnknownAdapter, match="no version"):
            call(NAME, number)


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o644)
    data = bytearray(change(path.read_bytes()))
    path.unlink()
    path.write_bytes(data)


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter_model.safetensors", flip, "the file differs from the published one"),
        ("adapter_model.safetensors", lambda data: data[:-9], "bytes, not"),
        ("answer.schema.json", lambda data: data.replace(b"boolean", b"integer"), "file differs"),
        ("llm_lora.json", lambda data: data.replace(b"Answer", b"Refuse"), "file differs"),
        ("report.json", lambda data: data.replace(b"false", b"true "), "file differs"),
        ("report.json", lambda data: b"{" * len(data), "damaged"),
        ("version.json", lambda data: data[:50], "damaged"),
        ("version.json", lambda data: b"[]", "damaged"),
        ("version.json", lambda data: data.replace(b'"rank"', b'"tank"'), "damaged"),
        ("version.json", lambda data: data.replace(b'"number": 3', b'"number": 1'), "medical-qa@1"),
        ("version.json", lambda data: data.replace(b'"sha256": "', b'"sha256": "0'), "its digest"),
    ],
)
def test_a_damaged_version_is_refused_by_name(
    store: Store, folders: list[Path], file: str, change: Callable[[bytes], bytes], message: str
) -> None:
    store.promote(NAME, 1, by="ann")
    edit(store.root / NAME / "versions" / "3" / file, change)
    # A reader from before at least detects that the bytes changed.
    for reader, told in ((Store(store.root), message), (store, f"{message}|file differs from")):
        with pytest.raises(UserError, match=told):
            reader.verify(reader.version(NAME, 3))
        with pytest.raises(UserError, match=told):
            reader.promote(NAME, 3, by="ann", force=True)
    assert live_and_previous(store.alias(NAME)) == (1, None)
    # The others still work, the adapter can be published again, and the damaged one removed.
    store.promote(NAME, 2, by="ann")
    assert put(store, folders[2], passed=False) == 4
    store.remove(NAME, 3, by="ann")
    assert store.numbers(NAME) == [1, 2, 4]


def test_bytes_are_read_once_and_again_when_they_change(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    verify = published.verify
    monkeypatch.setattr(published, "verify", lambda one: (read.append(one.number), verify(one)))
    version = store.version(NAME, 1)
    for _ in range(3):
        store.verify(version)
    assert read == [1]
    edit(version.folder / adapters.WEIGHTS, flip)
    for _ in range(2):
        with pytest.raises(UserError, match="the file differs from the published one"):
            store.verify(version)


def test_a_damaged_alias_says_what_to_do(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    path = store.root / NAME / "alias.json"
    path.write_text('{"live": "one"')
    for call in (lambda: store.alias(NAME), lambda: store.promote(NAME, 2, by="ann")):
        with pytest.raises(UserError, match="damaged, so the live version is unknown; delete it"):
            call()
    assert store.history(NAME)[-1].kind == "promote"
    path.unlink()
    assert live_and_previous(store.promote(NAME, 2, by="ann")) == (2, None)
