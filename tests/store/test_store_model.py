"""Any sequence of operations leaves the store as a short model in plain Python predicts."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.adapter_folders import report_of, write_adapter

from llm_lora.errors import UserError
from llm_lora.store.store import Store

NAME = "medical-qa"
NUMBERS = st.integers(1, 5)
CONTENTS = st.tuples(st.integers(0, 2), st.sampled_from((True, False, None)))
SHARES = st.sampled_from((0.01, 0.1, 0.5))


@dataclass
class Model:
    """The expected store; a content is (weights, whether gates passed)."""

    contents: dict[int, tuple[int, bool | None]] = field(default_factory=dict)
    given: int = 0
    live: int | None = None
    previous: int | None = None
    canary: tuple[int, float] | None = None
    refused: set[int] = field(default_factory=set)
    events: list[tuple[str, int]] = field(default_factory=list)

    @property
    def trial(self) -> int | None:
        return self.canary[0] if self.canary else None

    def may_go_live(self, number: int, force: bool) -> bool:
        proven = self.contents.get(number, (0, False))[1] is True and number not in self.refused
        return number in self.contents and (proven or force)


class Machine(RuleBasedStateMachine):
    """Applies the same operations to a store and to the model."""

    def __init__(self, folders: list[Path]) -> None:
        super().__init__()
        self.folders = folders
        self.place = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.place.name) / "store")
        self.reader = Store(Path(self.place.name) / "store")
        self.model = Model()

    def teardown(self) -> None:
        self.place.cleanup()

    def expect(self, may: bool, order: Any, *arguments: Any, **more: Any) -> None:
        """The operation succeeds if allowed, and is otherwise refused with a clear message."""
        try:
            order(NAME, *arguments, by="ann", **more)
        except UserError as error:
            assert not may, error
            assert all(problem.fix for problem in error.problems)
        else:
            assert may

    @rule(content=CONTENTS)
    def publish(self, content: tuple[int, bool | None]) -> None:
        weights, passed = content
        folder, model = self.folders[weights], self.model
        report = None if passed is None else report_of(folder, passed=passed)
        version = self.store.publish(folder, NAME, report=report, by="ann")
        known = [number for number, held in model.contents.items() if held == content]
        if known:
            assert [version.number] == known
        else:
            model.given += 1
            model.contents[model.given] = content
            model.events.append(("publish", model.given))
            assert version.number == model.given

    @rule(number=NUMBERS, force=st.booleans())
    def promote(self, number: int, force: bool) -> None:
        model = self.model
        may = model.may_go_live(number, force)
        self.expect(may, self.store.promote, number, force=force)
        if not may or (model.live == number and model.canary is None):
            return
        if model.live not in (None, number):
            model.previous = model.live
        if model.previous == number:
            model.previous = None
        model.live, model.canary = number, None
        model.refused.discard(number)
        model.events.append(("promote", number))

    @rule()
    def rollback(self) -> None:
        model = self.model
        self.expect(model.previous is not None, self.store.rollback)
        if model.previous is not None:
            model.live, model.previous, model.canary = model.previous, model.live, None
            model.events.append(("rollback", model.live))

    @rule()
    def retire(self) -> None:
        model = self.model
        self.expect(model.live is not None, self.store.retire)
        if model.live is not None:
            model.events.append(("retire", model.live))
            model.live, model.previous, model.canary = None, model.live, None

    @rule(number=NUMBERS, share=SHARES, force=st.booleans())
    def try_out(self, number: int, share: float, force: bool) -> None:
        model = self.model
        may = model.may_go_live(number, force) and model.live not in (None, number)
        self.expect(may, self.store.canary, number, share, force=force)
        if may:
            model.canary = (number, share)
            model.refused.discard(number)
            model.events.append(("canary", number))

    @rule(number=NUMBERS)
    def end_trial(self, number: int) -> None:
        may = self.model.trial == number
        self.expect(may, self.store.canary, number, 0)
        if may:
            self.model.canary = None
            self.model.events.append(("canary", number))

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        model = self.model
        may = number in model.contents and number not in (model.live, model.trial)
        self.expect(may, self.store.remove, number)
        if may:
            del model.contents[number]
            model.refused.discard(number)
            model.previous = None if model.previous == number else model.previous
            model.events.append(("remove", number))

    @precondition(lambda self: self.model.contents)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        model = self.model
        number = data.draw(st.sampled_from(sorted(model.contents)))
        used = (model.live, model.previous, model.trial)
        self.store.refuse(NAME, number, "no effect")
        if number in model.refused and number not in used:
            return
        model.refused.add(number)
        model.events.append(("refused", number))
        if model.live == number:
            model.live, model.previous = model.previous, None
        if model.previous == number:
            model.previous = None
        if model.trial in (number, model.live) or model.live is None:
            model.canary = None

    @invariant()
    def store_is_as_the_model(self) -> None:
        model = self.model
        for store in (self.store, self.reader, Store(self.store.root)):
            assert store.numbers(NAME) == sorted(model.contents)
            events = [(event.kind, event.number) for event in store.history(NAME)]
            assert events == model.events
            if not model.events:
                continue
            alias = store.alias(NAME) if model.contents or model.live else None
            if alias is None:
                continue
            canary = (alias.canary.number, alias.canary.share) if alias.canary else None
            assert (alias.live, alias.previous, canary) == (
                model.live,
                model.previous,
                model.canary,
            )
            assert set(alias.refused) == model.refused
            for number, (_, passed) in model.contents.items():
                assert store.version(NAME, number).passed is passed


def test_any_orders(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(seed), seed=seed) for seed in range(3)]
    run_state_machine_as_test(
        lambda: Machine(folders),
        settings=settings(max_examples=40, stateful_step_count=30, deadline=None),
    )
