"""The held-out report: figures, gates, and the page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llm_lora.errors import UserError
from llm_lora.example import Answer, Example, Message
from llm_lora.report import charts
from llm_lora.report.document import BaseIdentity, RecipeIdentity
from llm_lora.report.pages import clock
from llm_lora.report.reading import read_report
from llm_lora.report.text import building as report
from llm_lora.report.text.document import AdapterIdentity, TextReport
from llm_lora.report.text.page import percent
from llm_lora.run import Run
from llm_lora.schema.answer import AnswerSchema

SCHEMA = AnswerSchema.from_text(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "level": {"enum": ["low", "high"]},
                "drugs": {"type": "array", "items": {"type": "string"}},
                "day": {"type": "string", "format": "date"},
            },
            "required": ["level"],
            "additionalProperties": False,
        }
    )
)
ATTACK = "<script>alert('x')</script><img src=https://example.org/x onerror=alert(1)>"
RIGHT = '{"level":"low","drugs":["a"]}'
CURVE = [
    {"step": 1, "loss": 4.0, "epoch": 0.1},
    {"step": 10, "loss": 0.1},
    {"step": 10, "validation_loss": 0.2},
    {"step": 20, "validation_loss": 0.3},
]
LENGTHS = {"prompt": [10, 12, 300], "answer": [40, 41]}


def examples(*parts: str | None) -> list[Example]:
    return [
        Example(f"{i:04x}", (Message("user", f"{ATTACK} case {i}"),), RIGHT, part, f"h.jsonl:{i}")
        for i, part in enumerate(parts, 1)
    ]


def said(*texts: str, finish: Any = "stop") -> list[Answer]:
    return [Answer(text, len(text), finish) for text in texts]


HELD_OUT = examples("seen", "seen", "unseen")
ANSWERS = {
    "adapter": {
        "unconstrained": said(RIGHT, RIGHT.replace("low", "high"), f"Sure {ATTACK}"),
        "constrained": said(RIGHT, RIGHT, RIGHT),
    },
    "base": {"unconstrained": said("a", "b", "c"), "constrained": said(RIGHT, RIGHT, "{")},
}


def make(**changes: Any) -> TextReport:
    arguments: dict[str, Any] = {
        "recipe": RecipeIdentity(f"visit {ATTACK}", "d1", "cpu"),
        "base": BaseIdentity("tiny", "d2"),
        "adapter": AdapterIdentity("d3", 16, bits=4),
        "schema": SCHEMA,
        "held_out": HELD_OUT,
        "train": HELD_OUT[:1],
        "answers": ANSWERS,
        "gates": {"schema_valid": 0.5, "field_f1_seen": 0.9, "better_than_base": True},
        "seconds": 61.04,
        "peak_memory_bytes": 2**30,
    }
    return report.build(**arguments | changes)


def build(**changes: Any) -> dict[str, Any]:
    """The document of `report.json`."""
    return make(**changes).to_json()


def write(folder: Path, **changes: Any) -> str:
    report.write(
        folder,
        make(**changes),
        schema=changes.get("schema", SCHEMA),
        held_out=changes.get("held_out", HELD_OUT),
        answers=changes.get("answers", ANSWERS),
        curve=CURVE,
        lengths=LENGTHS,
    )
    return (folder / "report.html").read_text(encoding="utf-8")


# --- report.json ----------------------------------------------------------------------------------


def test_the_document_has_the_promised_shape() -> None:
    document = build()
    assert list(document) == [
        "recipe", "base", "adapter", "published", "held_out", "findings", "scores", "baselines",
        "comparisons", "calibration", "latency", "gates", "passed", "seconds", "peak_memory_bytes",
        "decoding",
    ]  # fmt: skip
    assert document["held_out"] == {"seen": 2, "unseen": 1}
    for model in ("base", "adapter"):
        for form in ("unconstrained", "constrained"):
            blocks = document["scores"][model][form]
            assert list(blocks) == ["seen", "unseen", "all"]
            assert [block["n"] for block in blocks.values()] == [2, 1, 3]
            for block in blocks.values():
                figures = {"n", "parsed", "schema_valid", "exact_match", "field_f1", "fields"}
                assert figures <= block.keys()
                assert list(block["fields"]) == ["level", "drugs[]", "day"]
                for field in block["fields"].values():
                    assert {"f1", "kind", "n", "support"} <= field.keys()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_figures_are_those_of_the_answers() -> None:
    blocks = build()["scores"]["adapter"]["unconstrained"]
    assert blocks["seen"]["exact_match"] == 0.5
    assert blocks["seen"]["schema_valid"] == 1
    assert blocks["seen"]["fields"]["level"]["f1"] == 0.5
    assert blocks["unseen"]["parsed"] == blocks["unseen"]["field_f1"] == 0
    # Six values in the references, four in the answers, three of them right; no day in either.
    assert blocks["all"]["field_f1"] == pytest.approx(2 * 3 / (6 + 4), abs=1e-6)


def test_examples_without_a_part_count_in_all_only() -> None:
    document = build(held_out=examples(None, None, None))
    assert document["held_out"] == {}
    assert list(document["scores"]["adapter"]["unconstrained"]) == ["all"]


def test_other_labels_have_blocks_of_their_own() -> None:
    document = build(held_out=examples("unseen", "clinic", "seen"))
    assert list(document["held_out"]) == ["seen", "unseen", "clinic"]


def test_answers_must_be_as_many_as_examples() -> None:
    with pytest.raises(ValueError, match="shorter"):
        build(answers={"adapter": {"unconstrained": said(RIGHT)}})


def test_a_written_report_is_read_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "recipe.yaml").write_text("task: text\n")
    found = read_report(Run(tmp_path))
    assert isinstance(found, TextReport)
    assert found.to_json() == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found.adapter.constrained.all.field_f1 == 1
    assert found.base.unconstrained.parts["seen"].n == 2
    assert found.published is None
    (tmp_path / "report.json").write_text(json.dumps(found.to_json() | {"gates": [{}]}))
    with pytest.raises(UserError, match=r"another version of llm-lora.*"):
        read_report(Run(tmp_path))


# --- gates ----------------------------------------------------------------------------------------


def gates(**changes: Any) -> dict[str, dict[str, Any]]:
    return {gate.pop("name"): gate for gate in build(**changes)["gates"]}


def test_gates_judge_the_adapters_own_answers() -> None:
    outcomes = gates()
    assert outcomes["schema_valid"] == {"threshold": 0.5, "value": 0.666667, "passed": True}
    assert outcomes["field_f1_seen"]["passed"] is False
    assert outcomes["field_f1_seen"]["value"] == pytest.approx(2 * 3 / (4 + 4), abs=1e-6)
    assert outcomes["better_than_base"]["threshold"] == 0
    assert outcomes["better_than_base"]["passed"] is True
    assert outcomes["constrained_schema_valid"] == {"threshold": 1.0, "value": 1.0, "passed": True}
    assert build()["passed"] is False
    assert build(gates={"schema_valid": 0.5})["passed"] is True


def test_a_gate_is_met_by_its_own_value() -> None:
    value = build()["scores"]["adapter"]["unconstrained"]["all"]["exact_match"]
    assert gates(gates={"exact_match": value})["exact_match"]["passed"] is True
    assert gates(gates={"exact_match": value + 1e-6})["exact_match"]["passed"] is False


def test_gates_that_ask_for_nothing_are_left_out() -> None:
    assert list(gates(gates={"field_f1": None, "better_than_base": False})) == [
        "constrained_schema_valid"
    ]


def test_a_gate_without_examples_fails_and_says_why() -> None:
    outcome = gates(gates={"field_f1_unseen": 0.1}, held_out=examples("seen", "seen", "seen"))
    assert outcome["field_f1_unseen"]["passed"] is False
    assert outcome["field_f1_unseen"]["reason"] == "no held-out example for it (part unseen)"


def test_no_better_than_the_base_is_not_better() -> None:
    same = {"adapter": {"unconstrained": said(RIGHT, RIGHT, "x")}}
    same["base"] = same["adapter"]
    assert gates(answers=same)["better_than_base"]["passed"] is False
    assert gates(answers={"adapter": same["adapter"]})["better_than_base"]["passed"] is False


def test_a_constrained_answer_that_does_not_fit_has_a_stated_reason() -> None:
    broken = [
        *said(RIGHT),
        *said('{"level":"lo', finish="length"),
        *said('{"level":"low","day":"2026-02-30"}'),
    ]
    outcome = gates(answers=ANSWERS | {"adapter": ANSWERS["adapter"] | {"constrained": broken}})
    assert outcome["constrained_schema_valid"] == {
        "threshold": 1.0,
        "value": 0.333333,
        "passed": False,
        "reason": "1 cut off by the token limit (generate.max_new_tokens), 1 with format at day",
    }


# --- answers.jsonl --------------------------------------------------------------------------------


def test_every_answer_is_written_with_its_verdict(tmp_path: Path) -> None:
    write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").open(encoding="utf-8")]
    assert len(rows) == 12
    assert {(row["model"], row["form"]) for row in rows} == {
        (model, form) for model, forms in ANSWERS.items() for form in forms
    }
    row = next(row for row in rows if row["answer"].startswith("Sure"))
    assert row["verdict"]["kind"] == "not_json"
    assert row["verdict"]["reasons"][0]["keyword"] == "prose"
    assert row["exact_match"] is False
    lost = {"f1": 0.0, "hits": 0.0, "expected": 1, "given": 0}
    none = {"f1": None, "hits": 0.0, "expected": 0, "given": 0}
    assert row["fields"] == {"level": lost, "drugs[]": lost, "day": none}
    assert row["reference"] == RIGHT
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == build()


# --- report.html ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """A parser that checks that tags are balanced and collects tags, attributes and text."""

    VOID = ("meta", "br", "img", "input", "link", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_escapes_everything(tmp_path: Path) -> None:
    html = write(tmp_path)
    page = Page(html)
    assert not page.tags & {"script", "img", "link", "iframe", "object", "style@import"}
    assert not [pair for pair in page.attributes if pair[0] in ("src", "href", "srcset")]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import", html)
    assert page.text.count(ATTACK) >= 3  # recipe name, prompts and an answer, as text


def test_the_page_shows_what_it_must(tmp_path: Path) -> None:
    text = " ".join(Page(write(tmp_path)).text.split())
    for expected in (
        "1 of 4 gates failed",
        "2 of 3 answers differ from their reference",
        "Field F1, unseen",
        "lowest validation 0.2 at step 10",
        "loss (log scale)",
        "prompt: median 12, longest 300",
        "drugs[]",
        "not JSON",
        "no JSON in the text: Sure",
        "1 min 1 s",
        "1.00 GiB",
    ):
        assert expected in text, expected


def test_differing_words_are_marked(tmp_path: Path) -> None:
    html = write(tmp_path)
    assert '<td class="reference"><mark>low</mark></td><td><mark>high</mark></td>' in html


def test_the_page_stands_without_parts_curve_base_or_schema(tmp_path: Path) -> None:
    held_out = [Example("1", (Message("user", "hi"),), "Good day to you", None, "h:1")]
    answers = {"adapter": {"unconstrained": said("Good night to you")}}
    found = make(schema=None, held_out=held_out, answers=answers, gates={})
    report.write(
        tmp_path, found, schema=None, held_out=held_out, answers=answers, curve=[], lengths={}
    )
    assert found.passed is True
    assert found.adapter.unconstrained.all.field_f1 == 0.75
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no gates set" in Page(html).text
    assert "<svg" not in html
    assert "<mark>day</mark>" in html


def test_many_failures_of_one_kind_do_not_hide_the_others(tmp_path: Path) -> None:
    held_out = examples(*["seen"] * 20)
    given = said(*["oh no"] * 15, *['{"level":"mid"}'] * 2, *[RIGHT.replace("low", "high")] * 3)
    html = write(tmp_path, held_out=held_out, answers={"adapter": {"unconstrained": given}})
    worst = html.partition("<h2>Worst answers</h2>")[2]
    assert worst.count("<article>") == 3 + 2 + 3


def test_a_perfect_adapter_has_no_worst_answer(tmp_path: Path) -> None:
    answers = {"adapter": {"unconstrained": said(RIGHT, RIGHT, RIGHT)}}
    html = write(tmp_path, answers=answers)
    assert "Every answer equals its reference" in html
    assert "<article>" not in html.partition("<h2>Worst answers</h2>")[2]


def test_figures_for_people() -> None:
    assert [percent(value) for value in (None, 0, 1, 0.5, 0.9999, 0.0001)] == [
        "n/a", "0%", "100%", "50.0%", "99.9%", "0.1%",
    ]  # fmt: skip
    assert [clock(seconds) for seconds in (7.4, 61, 7300)] == ["7 s", "1 min 1 s", "2 h 1 min"]


# --- charts ---------------------------------------------------------------------------------------


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]
        for line in re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    ]


def test_lines_are_well_formed_and_inside() -> None:
    series = [
        charts.Series("a <b>", [(0, 1.0), (5, 0.5), (10, float("nan"))]),
        charts.Series("c", [(5, 0.8)]),
    ]
    svg = charts.lines(series, x_label="step", y_label="loss")
    ElementTree.fromstring(svg)
    first = points(svg)[0]
    assert len(first) == 2  # a NaN loss cannot be drawn
    assert first[0][0] < first[1][0] and first[0][1] < first[1][1]  # SVG's y axis points down
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in first)


def test_a_steep_fall_is_drawn_on_a_logarithmic_scale() -> None:
    def draw(low: float) -> str:
        series = [charts.Series("a", [(1, 4.0), (2, 2.0), (3, low)])]
        return charts.lines(series, x_label="step", y_label="loss")

    assert "log scale" not in draw(0.5)
    assert "log scale" not in draw(0.0)
    for low in (0.1, 0.01, 1e-9):
        steep = draw(low)
        assert "log scale" in steep
        assert ElementTree.fromstring(steep).tag == "svg"
        assert steep.count('class="grid"') <= 12
        assert all(0 <= y <= charts.HEIGHT for _, y in points(steep)[0])


def test_histograms_count_every_value() -> None:
    svg = charts.histograms({"a": [1, 1, 2, 500], "none": []}, x_label="tokens")
    ElementTree.fromstring(svg)
    assert sum(int(n) for n in re.findall(r"<title>\d+ to \d+: (\d+)</title>", svg)) == 4
    assert charts.histograms({"a": []}, x_label="tokens") == ""
    ElementTree.fromstring(charts.histograms({"a": [0]}, x_label="tokens"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 300, [0, 100, 200, 300]),
        (0, 4.2, [0, 1, 2, 3, 4, 5]),
        (3, 3, [3, 4]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == expected
