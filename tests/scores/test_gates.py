"""Gates: in the recipe, in the report, and at promotion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.adapter_folders import NAME, put, report_of, three_versions, write_adapter

from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.errors import UserError
from llm_lora.example import Example, Message
from llm_lora.recipe import loading as recipe
from llm_lora.schema.answer import AnswerSchema
from llm_lora.scores import gates
from llm_lora.scores.figures import FieldFigures, Figures, Forms, Parts
from llm_lora.scores.gates import Latency, Rival
from llm_lora.store.store import Store
from llm_lora.tasks.text import rivals, timing

SCHEMA = AnswerSchema.from_text(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "level": {"enum": ["low", "high"]},
                "grade": {"type": "number"},
                "drugs": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"dose": {"type": "string"}}},
                },
            },
        }
    )
)


def figures(valid: float, f1: float, **fields: float) -> Parts:
    told = {
        name: FieldFigures("closed", 9, 9, 9, score, score, score, (0.0, 1.0), 0, 0, 0)
        for name, score in fields.items()
    }
    whole = Figures(9, 1.0, valid, 0.5, f1, f1, f1, f1, intervals={}, fields=told, cut_off=0)
    return Parts({"all": whole})


SCORES = {
    "base": Forms({"unconstrained": figures(0.1, 0.2)}),
    "published": Forms({"unconstrained": figures(0.96, 0.80), "constrained": figures(1.0, 0.82)}),
    "adapter": Forms(
        {
            "unconstrained": figures(0.97, 0.78, level=0.9),
            "constrained": figures(1.0, 0.81, level=0.9),
        }
    ),
}
LIVE = Rival("medical-qa@3", "d" * 64)


def outcome(name: str, wanted: float, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "baselines": {},
        "constrained": None,
        "rival": LIVE,
        "latency": None,
    } | changes
    (gate,) = gates.judge({name: wanted}, options.pop("scores", SCORES), **options)
    found = gate.to_json()
    assert found.pop("name") == name
    assert found.pop("threshold") == wanted
    return found


# --- judged ---------------------------------------------------------------------------------------


def test_a_single_field_has_a_least_score() -> None:
    assert outcome("fields.level", 0.9) == {"value": 0.9, "passed": True}
    assert outcome("fields.level", 0.91)["passed"] is False
    missing = outcome("fields.drugs[].dose", 0.5)
    assert missing == {"value": None, "passed": False, "reason": "no held-out value of it"}


def test_a_figure_passes_at_its_threshold_and_fails_just_below() -> None:
    assert outcome("schema_valid", 0.97) == {"value": 0.97, "passed": True}
    assert outcome("schema_valid", 0.9701) == {"value": 0.97, "passed": False}
    whole = figures(1.0, 1.0).all
    parts = Parts(
        {"seen": replace(whole, exact_match=0.5), "unseen": replace(whole, exact_match=0.25)}
    )
    apart = {"adapter": Forms({"unconstrained": parts})}
    assert outcome("exact_match_unseen", 0.25, scores=apart) == {"value": 0.25, "passed": True}
    assert outcome("exact_match_unseen", 0.26, scores=apart) == {"value": 0.25, "passed": False}
    assert outcome("exact_match_seen", 0.26, scores=apart) == {"value": 0.5, "passed": True}
    assert outcome("exact_match", 0.25, scores=apart) == {
        "value": None,
        "passed": False,
        "reason": "no held-out example for it (part all)",
    }


def test_as_good_as_the_base_is_not_better() -> None:
    for f1, passed in ((0.19, False), (0.2, False), (0.21, True)):
        scores = SCORES | {"adapter": Forms({"unconstrained": figures(1.0, f1)})}
        (found,) = gates.judge(
            {"better_than_base": True},
            scores,
            baselines={},
            constrained=None,
            rival=None,
            latency=None,
        )
        assert (found.threshold, found.value, found.passed) == (0.2, f1, passed)
    (found,) = gates.judge(
        {"better_than_base": True}, {}, baselines={}, constrained=None, rival=None, latency=None
    )
    assert found.passed is False


def test_the_best_trivial_baseline_must_be_beaten() -> None:
    baselines = {"constant": figures(1.0, 0.3), "nearest": figures(1.0, 0.78)}
    scores = {"adapter": Forms({"unconstrained": figures(1.0, 0.78)})}
    found = outcome_of("better_than_baselines", scores, baselines)
    assert (found.threshold, found.value, found.passed) == (0.78, 0.78, False)
    assert "the answer to the most similar training prompt" in found.reason
    baselines["nearest"] = figures(1.0, 0.77)
    assert outcome_of("better_than_baselines", scores, baselines).passed is True
    none = outcome_of("better_than_baselines", scores, {})
    assert (none.passed, none.reason) == (False, "no baseline was measured")


def outcome_of(name: str, scores: Any, baselines: Any) -> gates.Gate:
    (found,) = gates.judge(
        {name: True}, scores, baselines=baselines, constrained=None, rival=None, latency=None
    )
    return found


def test_gates_that_are_off_judge_nothing() -> None:
    off = {"schema_valid": 0.0, "field_f1": None, "better_than_base": False, "max_drop": None}
    asked = off | {"max_latency_ms": None}
    assert (
        gates.judge(asked, SCORES, baselines={}, constrained=None, rival=LIVE, latency=None) == ()
    )


def test_the_figure_that_falls_furthest_below_the_live_version_counts() -> None:
    # Unconstrained field_f1 falls by 0.02, constrained by 0.01; schema_valid does not fall.
    assert outcome("max_drop", 0.02) == {"value": 0.02, "passed": True}
    assert outcome("max_drop", 0.019) == {
        "value": 0.02,
        "passed": False,
        "reason": "field_f1, unconstrained, is lower than that of medical-qa@3",
    }
    assert outcome("max_drop", 0)["passed"] is False


def test_no_drop_at_all_may_be_demanded() -> None:
    better = SCORES | {"adapter": Forms({"unconstrained": figures(0.97, 0.9)})}
    assert outcome("max_drop", 0, scores=better) == {"value": -0.01, "passed": True}


def test_without_a_live_version_nothing_can_drop() -> None:
    assert outcome("max_drop", 0.02, rival=Rival(), scores={}) == {
        "value": None,
        "passed": True,
        "reason": "no version is live yet, so there is nothing to compare with",
    }


def test_what_cannot_be_compared_has_not_passed() -> None:
    alone = {"adapter": SCORES["adapter"]}
    found = outcome("max_drop", 0.5, rival=Rival("qa@1", "d", "it is damaged"), scores=alone)
    assert found["reason"] == "not comparable with qa@1: it is damaged"
    assert found["passed"] is outcome("max_drop", 0.5, rival=None)["passed"] is False


def test_time_has_a_limit() -> None:
    taken = Latency(32, p50_ms=400.0, p95_ms=900.0)
    assert outcome("max_latency_ms", 900, latency=taken) == {"value": 900.0, "passed": True}
    slow = outcome("max_latency_ms", 899, latency=taken)
    assert slow["reason"] == "95th percentile, one prompt at a time"
    assert outcome("max_latency_ms", 900)["reason"] == "not measured"


def test_latency_is_that_of_single_answers() -> None:
    times = iter([0.0, 0.3, 1.0, 1.1, 2.0, 2.2])
    asked: list[str] = []
    found = timing.latency(asked.append, ["a", "b", "c"], clock=lambda: next(times))
    assert found == Latency(3, p50_ms=200.0, p95_ms=300.0)
    assert asked == ["a", "a", "b", "c"]  # the first one warms up
    assert timing.latency(asked.append, []) is None
    many = timing.latency(lambda _: None, range(1000))
    assert many is not None and many.n == 32


# --- in the recipe --------------------------------------------------------------------------------


def load(folder: Path, check: str) -> recipe.Recipe:
    for name in ("train.jsonl", "s.json"):
        (folder / name).touch()
    path = folder / "qa.yaml"
    path.write_text(
        f"task: text\nbase: tiny\ndata: {{train: train.jsonl, schema: s.json}}\ncheck: {check}\n"
    )
    return recipe.load(path)


def test_a_recipe_names_its_gates(tmp_path: Path) -> None:
    check = load(
        tmp_path,
        "{schema_valid: 0.9, better_than_base: false, max_drop: 0, max_latency_ms: 800,"
        " fields: {level: 0.8, 'drugs[].dose': 0.7}, tolerance: {grade: 0.5}}",
    ).check
    assert check.gates() == {
        "schema_valid": 0.9,
        "better_than_base": False,
        "better_than_baselines": True,
        "max_drop": 0,
        "max_latency_ms": 800,
        "fields.level": 0.8,
        "fields.drugs[].dose": 0.7,
    }
    assert check.tolerance == {"grade": 0.5}


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("{fields: {level: 2}}", "check.fields.level must be a number from 0 to 1, not 2"),
        ("{fields: 0.8}", "check.fields must be a block of settings, not 0.8"),
        ("{max_drop: -0.1}", "check.max_drop must be a number from 0 to 1, not -0.1"),
        ("{max_latency_ms: 0}", "check.max_latency_ms must be a number above 0, not 0"),
        ("{tolerance: {grade: -1}}", "check.tolerance.grade must be a number of at least 0"),
    ],
)
def test_mistakes_in_gates_are_told(tmp_path: Path, check: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, check)
    assert message in str(caught.value)


def test_gates_on_fields_need_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "qa.yaml"
    path.write_text(
        "task: text\nbase: tiny\ndata: {train: qa.yaml}\ncheck: {fields: {a: 1.0}, tolerance: {}}\n"
    )
    with pytest.raises(UserError, match=r"check\.fields needs data\.schema to judge answers by"):
        recipe.load(path)


def test_gates_must_name_fields_of_the_schema() -> None:
    gates.require_fields(SCHEMA, ["level", "drugs[].dose"], ["grade"], "qa recipe")
    with pytest.raises(UserError) as caught:
        gates.require_fields(SCHEMA, ["levle"], ["dose", "level"], "qa recipe")
    assert str(caught.value).splitlines() == [
        "qa recipe: check.fields names no field of the schema: levle; "
        "the schema has level, grade, drugs[].dose",
        "qa recipe: check.tolerance names no field of the schema: dose; "
        "the schema has level, grade, drugs[].dose",
        "qa recipe: check.tolerance is for numbers, but level is closed; remove it",
    ]


def test_gates_of_parts_need_held_out_records_of_them() -> None:
    asked = {"field_f1": 0.9, "field_f1_seen": 0.8, "field_f1_unseen": 0.6, "max_drop": 0.1}
    gates.require_parts(asked, ["seen", "unseen"], "qa recipe")
    gates.require_parts(asked | {"field_f1_unseen": 0.0}, ["seen"], "qa recipe")
    with pytest.raises(UserError) as caught:
        gates.require_parts(asked, ["seen"], "qa recipe")
    assert str(caught.value) == (
        "qa recipe: check.field_f1_unseen has no examples: no held-out record has "
        '"part": "unseen"; write "part": "unseen" into the records of that part, '
        "or remove the gate"
    )


# --- the live version -----------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return three_versions(
        tmp_path / "store", [write_adapter(tmp_path / str(n), seed=n) for n in range(3)]
    )


def test_the_live_version_is_found(store: Store) -> None:
    base = bases.resolve("tiny")
    chat = Chat.load(base.path)
    assert rivals.find(store.root, "nobody", base, chat) == (Rival(), None)
    assert rivals.find(store.root, NAME, base, chat) == (Rival(), None)  # no version is live
    store.promote(NAME, 2, by="ann")
    rival, opponent = rivals.find(store.root, NAME, base, chat)
    # These adapters have their own chat template.
    assert (rival.label, rival.problem) == (
        f"{NAME}@2",
        "it was trained with another chat template",
    )
    assert opponent is None
    other = replace(base, name="small-one", digest="e" * 64)
    rival, opponent = rivals.find(store.root, NAME, other, chat)
    assert (rival.problem, opponent) == ("it is an adapter of another base, tiny", None)
    (store.version(NAME, 2).folder / "version.json").chmod(0o644)
    (store.version(NAME, 2).folder / "version.json").write_text("{}")
    rival, opponent = rivals.find(store.root, NAME, base, chat)
    assert (rival.problem, opponent) == ("damaged", None)


def test_the_live_version_is_asked_under_its_own_system_prompt(store: Store) -> None:
    opponent = rivals.Opponent(store.version(NAME, 1))
    assert opponent.schema is not None
    user = Message("user", "It hurts.")
    for system in ("Answer the triage JSON.", "Other."):
        example = Example("1", (Message("system", system), user), "{}", None, "h:1")
        (prompt,) = opponent.prompts([example], "Answer the triage JSON.")
        # A system prompt in the row itself belongs to the question and stays.
        own = "Answer with JSON." if system != "Other." else "Other."
        assert prompt == (Message("system", own), user)


def compared(store: Store, tmp_path: Path, against: dict[str, Any] | None, seed: int) -> int:
    folder = write_adapter(tmp_path / f"new{seed}", seed=seed)
    report = report_of(folder) | {"published": against}
    return store.publish(folder, NAME, report=report, by="ann").number


def test_promotion_wants_a_report_against_the_version_that_is_live(
    store: Store, tmp_path: Path
) -> None:
    store.promote(NAME, 1, by="ann")
    live = store.version(NAME, 1)
    right = compared(store, tmp_path, {"label": live.label, "digest": live.digest}, 11)
    stale = compared(store, tmp_path, {"label": f"{NAME}@2", "digest": "e" * 64}, 12)
    first = compared(store, tmp_path, {"label": None, "digest": None}, 13)
    for number, told in ((stale, f"{NAME}@2"), (first, "nothing (nothing was live)")):
        with pytest.raises(UserError) as caught:
            store.promote(NAME, number, by="ann")
        assert str(caught.value) == (
            f"{NAME}@{number}: its report compares it with {told}, but {NAME}@1 is live; "
            "rewrite the report (llm-lora evaluate RUN) and publish it, or use --force"
        )
    store.promote(NAME, right, by="ann")
    store.promote(NAME, right, by="ann")  # the live version itself, which is allowed
    store.rollback(NAME, by="ann")
    store.promote(NAME, stale, by="ann", force=True)
    assert "is live" in str(store.history(NAME)[-1].facts["forced"])


def test_a_report_that_compares_with_nobody_is_no_objection(store: Store, tmp_path: Path) -> None:
    store.promote(NAME, 1, by="ann")
    store.promote(NAME, compared(store, tmp_path, None, 14), by="ann")
    put(store, write_adapter(tmp_path / "plain", seed=15))
