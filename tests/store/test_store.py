"""Versions that never change, aliases that move in one step, and a history of both."""

from __future__ import annotations

import json
import os
import stat
import timeit
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.adapter_folders import NAME, put, report_of, three_versions, write_adapter

from llm_lora.adapter import folder as adapters
from llm_lora.base import text as bases
from llm_lora.errors import UserError
from llm_lora.store import aliases
from llm_lora.store.store import Alias, Canary, Store, UnknownAdapter


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters that differ only in their weights."""
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / str(seed), seed=seed) for seed in range(4)]


@pytest.fixture
def store(tmp_path: Path, folders: list[Path]) -> Store:
    """Three versions: 1 and 2 passed their gates and 3 did not; none is live."""
    return three_versions(tmp_path / "store", folders)


def state(alias: Alias) -> tuple[int | None, int | None, Canary | None]:
    return alias.live, alias.previous, alias.canary


# Publishing


def test_a_version_holds_everything_that_serving_needs(store: Store, folders: list[Path]) -> None:
    version = store.version(NAME, 1)
    digest = json.loads((folders[0] / adapters.MANIFEST).read_text())["digest"]
    assert version.label == "medical-qa@1"
    assert version.served_name == f"medical-qa@{version.digest[:12]}"
    assert (version.rank, version.modules, version.base_name) == (4, 12, "tiny")
    assert (version.adapter_digest, version.passed) == (digest, True)
    assert version.manifest.system == "Answer with JSON."
    assert version.folder == store.root / NAME / "versions" / "1"
    read = adapters.read(version.folder)
    assert (read.digest, read.schema_path) == (digest, version.folder / "answer.schema.json")
    written = json.loads((version.folder / "version.json").read_text())
    assert written["base"]["digest"] == version.base_digest
    assert written["form"] == "adapter trained over a base in 4 bits"
    assert written["scores"]["unconstrained"]["all"]["field_f1"] == 0.7
    assert written["published"]["by"] == "ann"


def test_a_published_version_is_nobodys_to_write(store: Store) -> None:
    for path in store.version(NAME, 1).folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444, path


def test_the_same_content_is_published_once(store: Store, folders: list[Path]) -> None:
    assert put(store, folders[1]) == 2
    assert store.numbers(NAME) == [1, 2, 3]
    # Another report makes another version, because its evidence differs.
    assert put(store, folders[1], passed=False) == 4
    assert store.version(NAME, 4).adapter_digest == store.version(NAME, 2).adapter_digest
    assert store.version(NAME, 4).served_name != store.version(NAME, 2).served_name


def test_names_have_versions_of_their_own(store: Store, folders: list[Path]) -> None:
    assert put(store, folders[3], name="billing") == 1
    assert store.names() == ["billing", NAME]
    assert [version.number for version in store.versions(NAME)] == [1, 2, 3]
    assert store.versions("nobody") == []
    assert Store(store.root / "not-there").names() == []


def test_a_report_of_other_weights_is_refused(store: Store, folders: list[Path]) -> None:
    with pytest.raises(UserError, match="the report is about other weights"):
        store.publish(folders[3], NAME, report=report_of(folders[0]), by="ann")


@pytest.mark.parametrize(
    "report",
    [{}, {"adapter": 1}, {"adapter": {"digest": "a"}, "gates": [1], "passed": True}, {"gates": []}],
)
def test_what_is_no_report_is_refused(
    store: Store, folders: list[Path], report: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="is not a held-out report; rewrite it"):
        store.publish(folders[3], NAME, report=report, by="ann")


def test_an_adapter_that_names_no_base_is_refused(store: Store, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    path = folder / adapters.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": "tiny"}))
    with pytest.raises(UserError, match="the manifest names no base"):
        store.publish(folder, NAME, report=None, by="ann")


def test_an_adapter_that_does_not_fit_its_base_is_not_published(
    store: Store, tmp_path: Path
) -> None:
    tiny = bases.resolve("tiny")
    empty = write_adapter(tmp_path / "a", zero=True)
    with pytest.raises(UserError, match="no effect"):
        store.publish(empty, NAME, report=None, by="ann", base=tiny)
    assert store.numbers(NAME) == [1, 2, 3]


def test_a_folder_named_relatively_holds_wherever_one_goes(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(Path("store"))
    put(store, folders[0])
    monkeypatch.chdir("/")
    assert store.version(NAME, 1).folder == tmp_path / "store" / NAME / "versions" / "1"
    # The store may be moved as a whole.
    store.promote(NAME, 1, by="ann")
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = Store(tmp_path / "moved")
    moved.verify(moved.version(NAME))


# Aliases


def test_promotion_keeps_the_version_before(store: Store) -> None:
    assert state(store.alias(NAME)) == (None, None, None)
    assert state(store.promote(NAME, 1, by="ann")) == (1, None, None)
    assert state(store.promote(NAME, 2, by="bob", why="better")) == (2, 1, None)
    assert store.version(NAME).number == 2
    assert store.alias(NAME).changed == store.history(NAME)[-1]
    # A repeat changes nothing and is not recorded.
    before = store.history(NAME)
    assert state(store.promote(NAME, 2, by="bob")) == (2, 1, None)
    assert store.history(NAME) == before


def test_rollback_twice_undoes_the_first(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    with pytest.raises(UserError, match="no previous version to roll back to"):
        store.rollback(NAME, by="ann")
    store.promote(NAME, 2, by="ann")
    assert state(store.rollback(NAME, by="ann", why="worse")) == (1, 2, None)
    assert state(store.rollback(NAME, by="ann")) == (2, 1, None)


def test_a_failed_gate_bars_the_way_unless_forced(store: Store) -> None:
    with pytest.raises(UserError, match=r"medical-qa@3: gate field_f1 failed: 0.5, wanted 0.6"):
        store.promote(NAME, 3, by="ann")
    assert store.alias(NAME).live is None
    store.promote(NAME, 3, by="ann", why="demo at noon", force=True)
    assert store.alias(NAME).live == 3
    last = store.history(NAME)[-1]
    assert (last.by, last.why) == ("ann", "demo at noon")
    assert last.facts["forced"] == ["gate field_f1 failed: 0.5, wanted 0.6"]


def test_without_a_report_nothing_is_proven(store: Store, folders: list[Path]) -> None:
    number = store.publish(folders[3], NAME, report=None, by="ann").number
    with pytest.raises(UserError, match="published without a report"):
        store.promote(NAME, number, by="ann")


def test_weights_without_effect_are_never_promoted(store: Store, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", zero=True)
    number = put(store, folder)
    with pytest.raises(UserError, match="so it answers like the base"):
        store.promote(NAME, number, by="ann", force=True)


def test_a_canary_gets_its_share(store: Store) -> None:
    with pytest.raises(UserError, match="no live version to compare this one with"):
        store.canary(NAME, 2, 0.1, by="ann")
    store.promote(NAME, 1, by="ann")
    alias = store.canary(NAME, 2, 0.1, by="ann")
    assert state(alias) == (1, None, Canary(2, 0.1))
    assert [alias.pick(draw) for draw in (0.0, 0.0999, 0.1, 0.9999)] == [2, 2, 1, 1]
    assert [store.resolve(NAME, draw).number for draw in (0.05, 0.5, 1.0)] == [2, 1, 1]
    with pytest.raises(UserError, match="already live"):
        store.canary(NAME, 1, 0.1, by="ann")
    with pytest.raises(UserError, match="gate field_f1 failed"):
        store.canary(NAME, 3, 0.1, by="ann")
    with pytest.raises(UserError, match="not on trial"):
        store.canary(NAME, 3, 0, by="ann")
    for share in (-0.1, 1.0, 10, float("nan")):
        with pytest.raises(UserError, match="a share of"):
            store.canary(NAME, 2, share, by="ann")
    assert state(store.canary(NAME, 2, 0, by="ann")) == (1, None, None)
    # Promotion and rollback end a trial.
    store.canary(NAME, 2, 0.5, by="ann")
    assert state(store.promote(NAME, 2, by="ann")) == (2, 1, None)
    store.canary(NAME, 1, 0.5, by="ann")
    assert state(store.rollback(NAME, by="ann")) == (1, 2, None)


def test_a_version_in_use_stays(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    store.promote(NAME, 2, by="ann")
    with pytest.raises(UserError, match="medical-qa@2: the version is live; promote another"):
        store.remove(NAME, 2, by="ann")
    store.canary(NAME, 3, 0.1, by="ann", force=True)
    with pytest.raises(UserError, match=r"medical-qa@3: the version is on trial"):
        store.remove(NAME, 3, by="ann")
    store.remove(NAME, 1, by="ann", why="old")
    assert store.numbers(NAME) == [2, 3]
    assert state(store.alias(NAME)) == (2, None, Canary(3, 0.1))
    with pytest.raises(UnknownAdapter, match="no version 1; choose one of 2, 3"):
        store.version(NAME, 1)


def test_a_number_is_never_given_again(store: Store, folders: list[Path]) -> None:
    store.remove(NAME, 3, by="ann")
    assert put(store, folders[3]) == 4
    # The same content as the removed one is a new version too.
    assert put(store, folders[2], passed=False) == 5
    assert [path.name for path in (store.root / NAME / "versions" / "3").iterdir()] == [
        "removed.json"
    ]


def test_what_a_server_refuses_goes_out_of_use(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    store.promote(NAME, 2, by="ann")
    alias = store.refuse(NAME, 2, "answers like the base")
    assert state(alias) == (1, None, None)
    assert alias.refused == {2: "answers like the base"}
    with pytest.raises(UserError, match="refused by a server: answers like the base"):
        store.promote(NAME, 2, by="ann")
    assert Store(store.root).alias(NAME) == alias
    before = store.history(NAME)
    assert store.refuse(NAME, 2, "answers like the base") == alias
    assert store.history(NAME) == before
    assert store.promote(NAME, 2, by="ann", force=True).refused == {}
    # The only version that was ever live leaves nothing behind.
    store.rollback(NAME, by="ann")
    store.remove(NAME, 2, by="ann")
    assert store.refuse(NAME, 1, "broken").live is None
    with pytest.raises(UnknownAdapter, match="no version is live"):
        store.version(NAME)


def test_a_retired_name_answers_no_more_until_a_rollback(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    store.promote(NAME, 2, by="ann")
    store.canary(NAME, 1, 0.5, by="ann")
    assert state(store.retire(NAME, by="ann", why="wrong doses")) == (None, 2, None)
    with pytest.raises(UnknownAdapter, match="no version is live"):
        store.resolve(NAME, 0.0)
    assert store.resolve(f"{NAME}@2").number == 2, "by its number it is still to be had"
    event = store.history(NAME)[-1]
    assert (event.kind, event.number, event.why) == ("retire", 2, "wrong doses")
    before = store.history(NAME)
    with pytest.raises(UserError, match="no version is live"):
        store.retire(NAME, by="ann")
    assert store.history(NAME) == before
    assert state(store.rollback(NAME, by="ann")) == (2, None, None)
    store.retire(NAME, by="ann")
    assert state(store.promote(NAME, 1, by="ann")) == (1, 2, None)
    store.retire(NAME, by="ann")
    store.remove(NAME, 1, by="ann")
    assert state(store.alias(NAME)) == (None, None, None)


def test_the_history_tells_who_when_and_why(store: Store) -> None:
    store.promote(NAME, 1, by="ann", why="first")
    store.retire(NAME, by="server")
    store.remove(NAME, 3, by="bob\udce9", why="line\none\u2028two")
    events = store.history(NAME)
    assert [(event.kind, event.by) for event in events] == [
        ("publish", "ann"),
        ("publish", "ann"),
        ("publish", "ann"),
        ("promote", "ann"),
        ("retire", "server"),
        ("remove", "bob?"),
    ]
    assert events[-1].why == "line\none\u2028two"
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert (store.root / NAME / "history.jsonl").read_bytes().count(b"\n") == 6
    with pytest.raises(UserError, match="by: empty; name the person or key that acts"):
        store.promote(NAME, 2, by="")
    with pytest.raises(UserError, match="why: 1,001 characters"):
        store.promote(NAME, 2, by="ann", why="x" * 1001)


# References


def test_a_reference_names_alias_number_or_digest(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    third = store.version(NAME, 3)
    assert store.resolve(NAME).number == 1
    assert store.resolve("medical-qa@3") == third
    assert store.resolve(third.served_name) == third
    assert store.resolve(f"{NAME}@{third.digest}") == third


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nobody", "nobody: unknown adapter; choose one of medical-qa"),
        ("nobody@1", "unknown adapter"),
        ("medical-qa@9", "medical-qa: no version 9; choose one of 1, 2, 3"),
        ("medical-qa@0123456789ab", "no version '0123456789ab'"),
        ("medical-qa@", "no version ''"),
        ("medical-qa@01", "no version '01'"),
        ("medical-qa@3\n", r"no version '3\\n'"),
        ("medical-qa@1@1", "no version '1@1'"),
        ("medical_qa", "'medical_qa': not a valid adapter name: .*; write medical-qa"),
        ("../../x@1", r"'../../x': not a valid adapter name"),
        ("@1", "'': not a valid adapter name: .*; choose a name like medical-qa"),
    ],
)
def test_references_to_nothing_say_what_there_is(
    store: Store, reference: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        store.resolve(reference)


# Speed


def test_an_alias_is_read_in_microseconds_and_never_stale(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    store.promote(NAME, 2, by="ann")
    other = Store(store.root)
    # Faster than the clock of a file system: every move must be visible at once.
    for turn in range(200):
        moved = store.rollback(NAME, by="ann")
        assert other.alias(NAME).live == moved.live == 1 + turn % 2
    for call in (lambda: other.alias(NAME), lambda: other.version(NAME)):
        best = min(timeit.repeat(call, number=1000, repeat=20)) / 1000
        assert best < 20e-6, f"{best * 1e6:.1f} µs"


def test_stamps_of_an_alias_differ_even_where_clock_and_inode_do_not(tmp_path: Path) -> None:
    path = tmp_path / "alias.json"
    late = 4_000_000_000 * 10**9
    aliases.write(path, Alias(live=1))
    os.utime(path, ns=(late, late))
    aliases.write(path, Alias(live=2))
    assert path.stat().st_mtime_ns == late + 1


# Aliases as values, without a store

WHY = {"event": "x"}
TRIAL = Canary(3, 0.5)


def test_what_promotion_makes_of_every_alias() -> None:
    refused = {1: "no", 7: "never"}
    for before, live, previous in (
        (Alias(), 1, None),
        (Alias(live=1), 1, None),
        (Alias(live=2), 1, 2),
        (Alias(live=2, previous=1), 1, 2),
        (Alias(live=1, previous=2), 1, 2),
        (Alias(previous=2), 1, 2),
        (Alias(previous=1), 1, None),
    ):
        found = replace(before, canary=TRIAL, refused=refused).promoted(1, WHY)
        assert found == Alias(live, previous, None, {7: "never"}, WHY), before


def test_what_going_back_and_retiring_make_of_an_alias() -> None:
    before = Alias(2, 1, TRIAL, {7: "never"})
    assert before.rolled_back(WHY) == Alias(1, 2, None, {7: "never"}, WHY)
    assert before.retired(WHY) == Alias(None, 2, None, {7: "never"}, WHY)
    assert before.tried(WHY) == Alias(2, 1, None, {7: "never"}, WHY)
    again = replace(before, refused={4: "no", 7: "never"}).trying(4, 0.25, WHY)
    assert again == Alias(2, 1, Canary(4, 0.25), {7: "never"}, WHY)


def test_what_is_left_of_an_alias_without_a_version() -> None:
    """The version before takes its place; a trial goes on where a live version is beside it."""
    for before, number, after in (
        (Alias(2, 1, TRIAL), 2, Alias(1, None, TRIAL)),
        (Alias(2, 1, TRIAL), 1, Alias(2, None, TRIAL)),
        (Alias(2, 1, TRIAL), 3, Alias(2, 1, None)),
        (Alias(2, 1, TRIAL), 4, Alias(2, 1, TRIAL)),
        (Alias(2, None, TRIAL), 2, Alias(None, None, None)),
        (Alias(2, 3, TRIAL), 2, Alias(3, None, None)),
        (Alias(None, 1, None), 1, Alias(None, None, None)),
    ):
        assert before.without(number, WHY) == replace(after, changed=WHY), (before, number)
        known = replace(before, refused={number: "old", 7: "never"})
        for refusal, refused in ((None, {7: "never"}), ("new", {number: "new", 7: "never"})):
            found = known.without(number, WHY, refusal)
            assert found == replace(after, changed=WHY, refused=refused)


def test_an_event_has_room_for_a_thousand_characters() -> None:
    made = aliases.event("promote", by="b" * 1000, why="w" * 1000, number=3)
    told = made.to_json()
    at = datetime.fromisoformat(told.pop("at"))
    assert at.utcoffset() == timedelta(0) and len(at.isoformat(timespec="microseconds")) == 32
    assert told == {"event": "promote", "by": "b" * 1000, "why": "w" * 1000, "number": 3}
    for texts, problem in ((("b" * 1001, ""), "by: 1,001"), (("b", "w" * 1001), "why: 1,001")):
        with pytest.raises(UserError, match=problem):
            aliases.event("promote", by=texts[0], why=texts[1])


def test_a_history_is_appended_to_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert aliases.history(path) == []
    aliases.append(path, [])
    assert not path.exists()
    first, second, third, last = (
        aliases.event("promote", by="é", why="", number=number) for number in (1, 2, 3, 4)
    )
    aliases.append(path, [first])
    aliases.append(path, [second, third])
    lines = [json.dumps(one.to_json(), ensure_ascii=False) for one in (first, second, third)]
    assert path.read_text() == "".join(f"{line}\n" for line in lines)
    with path.open("ab") as file:
        file.write(b'{"n": ')
    assert aliases.history(path) == [first, second, third]
    aliases.append(path, [last])
    assert path.read_text().splitlines()[-2] == '{"n": '
    assert aliases.history(path)[-1] == last


def test_a_stamp_tells_states_of_a_file_apart(tmp_path: Path) -> None:
    path = tmp_path / "alias.json"
    with pytest.raises(FileNotFoundError):
        aliases.stamp(path)
    path.write_text("one")
    seen = [aliases.stamp(path)]
    os.utime(path, ns=(5, 5))
    seen.append(aliases.stamp(path))
    path.write_text("three")
    os.utime(path, ns=(5, 5))
    seen.append(aliases.stamp(path))
    path.rename(tmp_path / "old.json")
    path.write_text("three")
    os.utime(path, ns=(5, 5))
    seen.append(aliases.stamp(str(path)))
    assert len(set(seen)) == 4
    assert aliases.stamp(path) == seen[-1]


def test_a_written_alias_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "alias.json"
    made = Alias(
        3,
        2,
        Canary(4, 0.25),
        {1: "no effect"},
        aliases.event("canary", by="ann", why="", share=0.25),
    )
    aliases.write(path, made)
    assert aliases.read(path) == made and path.read_bytes().endswith(b"}\n")
    before = path.stat().st_mtime_ns
    aliases.write(path, made)
    # A clock that goes on needs no help.
    assert before < path.stat().st_mtime_ns < before + 10**12


def test_an_old_alias_is_not_dated_back(tmp_path: Path) -> None:
    path = tmp_path / "alias.json"
    aliases.write(path, Alias(live=1))
    os.utime(path, ns=(5, 5))
    aliases.write(path, Alias(live=2))
    assert path.stat().st_mtime_ns > 10**18


# What else a store is asked


def test_a_digest_needs_twelve_digits_and_an_answer_is_the_newest(store: Store) -> None:
    digest = store.version(NAME, 3).digest
    assert store.resolve(f"{NAME}@{digest[:12]}").number == 3
    for which in (digest[:11], digest[:12].upper(), digest + "0", digest[1:13]):
        with pytest.raises(UnknownAdapter, match="no version"):
            store.resolve(f"{NAME}@{which}")


def test_a_damaged_version_is_not_among_those_to_be_had(store: Store) -> None:
    path = store.version(NAME, 2).folder / "version.json"
    path.chmod(0o644)
    path.write_text("{}")
    assert [version.number for version in store.versions(NAME)] == [1, 3]
    assert store.numbers(NAME) == [1, 2, 3]
    # A live version that is damaged stands in nobody's way.
    store.promote(NAME, 1, by="ann")
    path = store.version(NAME, 1).folder / "version.json"
    path.chmod(0o644)
    path.write_text("{}")
    assert state(store.promote(NAME, 3, by="ann", force=True)) == (3, 1, None)
    with pytest.raises(UserError, match="damaged"):
        store.rollback(NAME, by="ann")
    assert state(store.alias(NAME)) == (3, 1, None)


def test_every_event_names_who_why_and_which(store: Store) -> None:
    store.promote(NAME, 1, by="ann", why="first")
    store.promote(NAME, 2, by="bob", why="better")
    store.canary(NAME, 3, 0.25, by="cy", why="brave", force=True)
    store.canary(NAME, 3, 0, by="cy", why="worse")
    store.rollback(NAME, by="dan", why="back")
    store.retire(NAME, by="eve", why="off")
    store.refuse(NAME, 3, "broken", by="srv")
    store.refuse(NAME, 2, "broken")
    store.remove(NAME, 3, by="fay", why="old")
    rows = [event.to_json() for event in store.history(NAME)[3:]]
    told = [{key: row[key] for key in row if key != "at"} for row in rows]
    failed = ["gate field_f1 failed: 0.5, wanted 0.6"]
    assert told == [
        {"event": "promote", "by": "ann", "why": "first", "number": 1, "before": None},
        {"event": "promote", "by": "bob", "why": "better", "number": 2, "before": 1},
        {"event": "canary", "by": "cy", "why": "brave", "number": 3, "share": 0.25}
        | {"forced": failed},
        {"event": "canary", "by": "cy", "why": "worse", "number": 3, "share": 0},
        {"event": "rollback", "by": "dan", "why": "back", "number": 1, "before": 2},
        {"event": "retire", "by": "eve", "why": "off", "number": 1},
        {"event": "refused", "by": "srv", "why": "broken", "number": 3, "before": None},
        {"event": "refused", "by": "server", "why": "broken", "number": 2, "before": None},
        {"event": "remove", "by": "fay", "why": "old", "number": 3},
    ]


def test_a_refused_version_is_let_go_of_when_it_is_removed(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    store.refuse(NAME, 3, "broken")
    assert store.alias(NAME).refused == {3: "broken"}
    store.remove(NAME, 3, by="ann")
    assert store.alias(NAME).refused == {}
    # One that the alias does not know leaves it as it is.
    before = store.alias(NAME)
    store.remove(NAME, 2, by="ann")
    assert store.alias(NAME) == before
    for call in (
        lambda: store.remove(NAME, 2, by="ann"),
        lambda: store.refuse(NAME, 2, "broken"),
        lambda: store.promote(NAME, 2, by="ann"),
    ):
        with pytest.raises(UnknownAdapter, match="no version 2; choose one of 1"):
            call()
    assert store.alias(NAME) == before


def test_a_name_that_nobody_published_cannot_be_moved(store: Store) -> None:
    for call in (
        lambda: store.promote("nobody", 1, by="ann"),
        lambda: store.rollback("nobody", by="ann"),
        lambda: store.retire("nobody", by="ann"),
        lambda: store.canary("nobody", 1, 0.5, by="ann"),
        lambda: store.remove("nobody", 1, by="ann"),
        lambda: store.refuse("nobody", 1, "no"),
    ):
        with pytest.raises(UnknownAdapter, match="unknown adapter; choose one of medical-qa"):
            call()
    assert not (store.root / "nobody").exists()
    with pytest.raises(UnknownAdapter, match="publish it: llm-lora publish RUN --as NAME"):
        Store(store.root / "empty").alias("nobody")


def test_a_folder_without_a_version_is_no_name(store: Store) -> None:
    (store.root / "empty" / "versions").mkdir(parents=True)
    (store.root / "Not a name").mkdir()
    assert store.names() == [NAME]


def test_the_end_of_a_trial_names_the_version_that_is_tried(store: Store) -> None:
    store.promote(NAME, 1, by="ann")
    store.canary(NAME, 2, 0.5, by="ann")
    with pytest.raises(UserError, match=r"medical-qa@1: not on trial"):
        store.canary(NAME, 1, 0, by="ann")
    # The live version may be promoted once more, which ends the trial of the other.
    assert state(store.promote(NAME, 1, by="ann")) == (1, None, None)
