"""The sections of the report page, and the page in a real browser."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from support import browser

from llm_lora.errors import UserError
from llm_lora.example import Answer, Example, Message
from llm_lora.report.document import BaseIdentity, RecipeIdentity
from llm_lora.report.text import answers as judging
from llm_lora.report.text import building as report
from llm_lora.report.text import page, samples, versus
from llm_lora.report.text.document import AdapterIdentity, TextReport
from llm_lora.run import Run
from llm_lora.schema.answer import AnswerSchema
from llm_lora.scores.figures import Confusion
from llm_lora.scores.gates import Latency, Rival

LEVELS = ["low", "middling", "high", "<b>odd</b>"]
SCHEMA = AnswerSchema.from_text(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "level": {"enum": LEVELS},
                "note": {"type": "string", "maxLength": 20},
                "drugs": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["level", "note"],
            "additionalProperties": False,
        }
    )
)
RIGHT = '{"level":"low","note":"rest a day","drugs":["a"]}'
HIGH = RIGHT.replace("low", "high")
LONG = RIGHT.replace("rest a day", "rest a day " * 3)
FIXED = RIGHT.replace("rest a day", "rest a day rest a da")
HELD_OUT = [
    Example(f"{i:04x}", (Message("user", f"case {i}"),), RIGHT, "seen", f"h.jsonl:{i}")
    for i in range(8)
]


def said(*texts: str, finish: Any = "stop") -> list[Answer]:
    return [Answer(text, len(text), finish) for text in texts]


def sure(text: str, probability: float) -> Answer:
    """An answer in which every character is a token, all with the same probability."""
    chances = tuple((at, math.log(probability)) for at in range(len(text)))
    return Answer(text, len(text), "stop", chances)


FREE = [*said(RIGHT, RIGHT, HIGH, LONG, LONG, "Sure!"), *said(RIGHT[:20], finish="length")]
ANSWERS = {
    "adapter": {
        "unconstrained": [*FREE, sure(HIGH, 0.99)],
        "constrained": said(RIGHT, HIGH, RIGHT, FIXED, FIXED, RIGHT, RIGHT, HIGH),
    },
    "published": {"unconstrained": said(*[HIGH] * 8), "constrained": said(*[HIGH] * 8)},
    "base": {"unconstrained": said(*["?"] * 8), "constrained": said(*[HIGH] * 8)},
}


def make(**changes: Any) -> TextReport:
    arguments: dict[str, Any] = {
        "recipe": RecipeIdentity("visit", "d1", None),
        "base": BaseIdentity("tiny", "d2"),
        "adapter": AdapterIdentity("d3", 16, bits=4),
        "schema": SCHEMA,
        "held_out": HELD_OUT,
        "train": HELD_OUT[:1],
        "answers": ANSWERS,
        "gates": {"fields.level": 0.5, "max_drop": 0.5, "max_latency_ms": 800},
        "seconds": 61.04,
        "peak_memory_bytes": 2**30,
        "rival": Rival("visit@3", "e" * 64),
        "latency": Latency(8, p50_ms=400.2, p95_ms=1234.5),
    }
    return report.build(**arguments | changes)


def document(**changes: Any) -> dict[str, Any]:
    """The document of `report.json`."""
    return make(**changes).to_json()


def write(folder: Path, **changes: Any) -> str:
    report.write(
        folder,
        make(),
        schema=SCHEMA,
        held_out=HELD_OUT,
        answers=ANSWERS,
        curve=[{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0, "validation_loss": 0.5}],
        lengths={"prompt": [10, 12, 300]},
        **changes,
    )
    return (folder / "report.html").read_text(encoding="utf-8")


def section(html: str, title: str) -> str:
    """The text of a section without tags, up to the next heading."""
    assert f"<h2>{title}</h2>" in html, title
    body = html.partition(f"<h2>{title}</h2>")[2].partition("<h2>")[0]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


# --- report.json ----------------------------------------------------------------------------------


def test_the_live_version_takes_its_place_between_base_and_adapter() -> None:
    told = document()
    assert list(told["scores"]) == ["base", "published", "adapter"]
    assert told["published"] == {"label": "visit@3", "digest": "e" * 64}
    assert [(one["ours"], one["theirs"]) for one in told["comparisons"]] == [
        (["adapter", form], [model, form])
        for model in ("base", "published")
        for form in ("unconstrained", "constrained")
    ] + [(["adapter", "constrained"], ["adapter", "unconstrained"])]
    assert told["latency"]["p95_ms"] == 1234.5
    assert document(rival=None)["published"] is None


def test_gates_of_fields_time_and_drop_are_judged() -> None:
    found = {gate["name"]: gate for gate in document()["gates"]}
    # level is right in 2 free answers and in the two whose note is too long; 6 of 8 give it.
    assert found["fields.level"]["value"] == pytest.approx(2 * 4 / (8 + 6), abs=1e-6)
    assert found["fields.level"]["passed"] is True
    assert found["max_latency_ms"]["passed"] is False
    # Answers that fit: published 8 of 8, adapter 4 of 8.
    assert (found["max_drop"]["value"], found["max_drop"]["passed"]) == (0.5, True)


def test_probabilities_become_a_calibration_table(tmp_path: Path) -> None:
    table = document()["calibration"]["adapter"]["unconstrained"]
    value = 0.99 ** len('"high"')
    assert table["fields"] == {
        "level": {"n": 1, "confidence": pytest.approx(value, abs=1e-6), "accuracy": 0.0,
                  "ece": pytest.approx(value, abs=1e-6)}
    }  # fmt: skip
    assert list(document()["calibration"]) == ["adapter"]
    write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").open(encoding="utf-8")]
    assert [row["confidence"] for row in rows if "confidence" in row] == [
        {"level": pytest.approx(value, abs=1e-6)}
    ]


# --- which answers are shown ----------------------------------------------------------------------


def judged() -> samples.Sets:
    return {
        (model, form): judging.judge(SCHEMA, HELD_OUT, given)
        for model, forms in ANSWERS.items()
        for form, given in forms.items()
    }


def test_every_answer_is_of_one_kind() -> None:
    kinds = [samples.kind(row) for row in judged()["adapter", "unconstrained"]]
    assert kinds == [
        *("right", "right", "differs", "invalid", "invalid", "not_json", "cut_off", "differs")
    ]


def test_one_of_each_kind_is_shown_with_its_counts() -> None:
    found = list(samples.kinds(judged()))
    assert [one.title for one in found] == list(samples.KINDS.values())
    counts = {one.title: one.counts for one in found}
    # adapter free, constrained; published free, constrained; base free, constrained
    assert counts["equals the reference"] == (2, 4, 0, 0, 0, 0)
    assert counts["not JSON"] == (1, 0, 0, 0, 8, 0)
    assert {one.whose for one in found} == {("adapter", "unconstrained")}
    without = {key: rows for key, rows in judged().items() if key[0] == "base"}
    assert [(one.title, one.whose) for one in samples.kinds(without)] == [
        ("fits the schema, but differs", ("base", "constrained")),
        ("not JSON", ("base", "unconstrained")),
    ]


def test_what_the_constraint_changed_is_told() -> None:
    found = samples.changes(judged())
    assert found is not None
    assert found.counts == {
        "same text": 2,
        "now fits the schema": 4,
        "fitted before; better score now": 1,
        "fitted before; worse score now": 1,
    }
    # One of each effect, then the largest changes.
    assert [(one.free.answer, one.held.answer) for one in found.examples] == [
        *(("Sure!", RIGHT), (HIGH, RIGHT), (RIGHT, HIGH), (RIGHT[:20], RIGHT))
    ]
    (mark,) = [piece.text for piece in found.examples[1].after if piece.mark]
    assert mark == "low"
    assert samples.changes({("adapter", "unconstrained"): []}) is None


def test_another_wrong_answer_is_neither_better_nor_worse() -> None:
    sets = {
        ("adapter", form): judging.judge(SCHEMA, HELD_OUT[:1], said(RIGHT.replace("low", level)))
        for form, level in (("unconstrained", "high"), ("constrained", "middling"))
    }
    found = samples.changes(sets)
    assert found is not None
    assert list(found.counts) == ["fitted before; different values, same score"]


# --- the page -------------------------------------------------------------------------------------


def test_the_page_has_its_sections(tmp_path: Path) -> None:
    html = write(tmp_path)
    expected = {
        "Gates": ["fields.level", "1,234 ms", "≤ 800 ms", "≤ 50.0 points"],
        "Base, published, adapter": ["Published: visit@3", "at the 95th percentile"],
        "Is the adapter better?": ["unconstrained, against visit@3", "constrained, against the "
                                   "base", "constrained against unconstrained", "no clear"],
        "Fields": ["level", "50.0%", "Missing", "Spurious"],
        "Closed fields": ["high", "(not JSON)", "found"],
        "Calibration": ["ECE 94.1%"],
        "Verdicts": ["does not fit the schema", "cut off by the token limit", "Sure!"],
        "What the constraint changed": ["now fits the schema 4", "Unconstrained", "Constrained"],
    }  # fmt: skip
    for title, parts in expected.items():
        text = section(html, title)
        for part in parts:
            assert part in text, f"{title}: {part} not in {text}"


def test_a_weighted_loss_says_so(tmp_path: Path) -> None:
    plain = section(write(tmp_path / "a"), "Loss")
    assert "weighted" not in plain
    html = write(tmp_path / "b", closed_weight=5.0)
    assert "training (weighted): 4 at step 1" in html
    weighted = section(html, "Loss")
    assert weighted.startswith("training, weighted validation, not weighted")
    assert "a token of a closed value has 5 times the weight" in weighted
    assert "cannot be compared with each other" in weighted
    html = write(tmp_path / "c", forced_weight=0.3, constrained_loss=True)
    other = section(html, "Loss")
    assert other.startswith("training, weighted validation, not weighted, constrained")
    assert "a token that the schema forces has 0.3 times the weight" in other
    assert "closed value" not in other and "over the allowed tokens only" in other


def test_a_large_confusion_table_becomes_a_list() -> None:
    labels = [f"v{i}" for i in range(page.LABELS + 1)]
    counts = [[0] * len(labels) for _ in labels]
    counts[3][4], counts[5][5] = 7, 1
    table = Confusion(tuple(labels), tuple(map(tuple, counts)))
    found = page.confusion_table("code", 0.1, table)
    assert (found.large, found.wrong) == (True, [(7, "v3", "v4")])


def test_figures_for_people() -> None:
    assert page.points(-0.02) == "\N{MINUS SIGN}2.0"
    assert (page.points(0.1234), page.points(0.0), page.points(-0.0001)) == ("+12.3", "0.0", "0.0")
    assert (page.chance(0.00001), page.chance(0.042), page.chance(1.0)) == (
        *("p < 0.001", "p = 0.042", "p = 1"),
    )
    assert page.ends([0.7877, 1.0]) == "78.8 to 100.0"
    assert page.gate_value(0.02, "max_drop") == "2.0 points"
    assert page.gate_value(None, "max_latency_ms") == "n/a"


@browser.needed
def test_the_page_fits_a_phone_in_light_and_dark(tmp_path: Path) -> None:
    write(tmp_path / "run", closed_weight=5.0)
    seen = {}
    with browser.browsing(tmp_path) as tab:
        tab.open((tmp_path / "run" / "report.html").as_uri())
        for dark in (False, True):
            for width in (390, 1200):
                tab.show(width, dark=dark)
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                wide = tab.evaluate(
                    "[...document.querySelectorAll('.card')].filter(one => one.scrollWidth >"
                    " one.clientWidth + 1).map(one => one.innerText.slice(0, 40))"
                )
                assert wide == [], width
            seen[dark] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert tab.errors == [] and len(tab.asked) == 1
    assert seen[False] != seen[True]


# --- two runs -------------------------------------------------------------------------------------


def test_two_runs_are_compared_on_what_both_answered(tmp_path: Path) -> None:
    write(tmp_path / "a")
    rows = (tmp_path / "a" / "answers.jsonl").read_text().splitlines()
    (tmp_path / "b").mkdir()
    # The other run lacks the last two prompts, and has a different reference for the first.
    kept = [json.loads(row) for row in rows if json.loads(row)["id"] < "0006"]
    for row in kept:
        if row["id"] == "0000":
            row["reference"] = HIGH
        if row["model"] == "adapter" and row["form"] == "constrained":
            nothing = {"f1": 0.0, "hits": 0.0, "expected": 1, "given": 1}
            row |= {"exact_match": False, "fields": dict.fromkeys(row["fields"], nothing)}
    (tmp_path / "b" / "answers.jsonl").write_text("\n".join(map(json.dumps, kept)))
    told = versus.compare(Run(tmp_path / "a"), Run(tmp_path / "b")).to_json()
    assert told["prompts"] == 5
    assert told["forms"]["unconstrained"]["field_f1"]["difference"] == 0
    found = told["forms"]["constrained"]
    assert found["n"] == 5
    assert found["fields"]["drugs[]"]["difference"] == 1.0
    assert found["fields"]["level"]["difference"] == 0.8  # one of five was wrong already
    # Before, a field was one number, in which a value that neither side had counted as right.
    old = [row | {"fields": dict.fromkeys(row["fields"], 1.0)} for row in kept]
    (tmp_path / "b" / "answers.jsonl").write_text("\n".join(map(json.dumps, old)))
    with pytest.raises(UserError, match=r"scored by another version of llm-lora.*evaluate"):
        versus.compare(Run(tmp_path / "a"), Run(tmp_path / "b"))
    (tmp_path / "b" / "answers.jsonl").write_text("")
    with pytest.raises(UserError, match="no held-out example in common"):
        versus.compare(Run(tmp_path / "a"), Run(tmp_path / "b"))
    with pytest.raises(UserError, match="no answers to compare"):
        versus.compare(Run(tmp_path / "a"), Run(tmp_path / "c"))
