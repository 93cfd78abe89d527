"""The medical_qa data template: reproducible, valid, fair to the learner, and free of leaks."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema_rs
import pytest
from support.places import TEMPLATE

FOLDER = TEMPLATE
FILES = ("train.jsonl", "held_out.jsonl")
# What the slots of a sentence pattern may hold.
SLOTS = dict.fromkeys(("age", "score", "number", "small"), r"\d+")
SLOTS |= {"temperature": r"\d+\.\d", "name": r"\w+ \w+"}


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    """``generate.py`` under a name of its own: other templates have a ``generate.py`` too."""
    name = "medical_qa_generate"
    spec = importlib.util.spec_from_file_location(name, FOLDER / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def data(generator: ModuleType) -> dict[str, list[Any]]:
    return generator.build()


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


def part(name: str) -> list[dict[str, str]]:
    return [row for row in rows("held_out.jsonl") if row["part"] == name]


def all_rows() -> list[dict[str, str]]:
    return [row for name in FILES for row in rows(name)]


def patterns(generator: ModuleType, name: str) -> set[str]:
    frames = generator.load_frames(FOLDER / name)
    return {frame for slot in frames.values() for frame in slot}


def sentence_regex(frame: str) -> re.Pattern[str]:
    """Matches the pattern as a whole sentence of a prompt; its slots become named groups."""
    pieces = re.split(r"\{(\w+)\}", frame)
    pieces[::2] = map(re.escape, pieces[::2])
    pieces[1::2] = [f"(?P<{slot}>{SLOTS.get(slot, '[^.?]+')})" for slot in pieces[1::2]]
    return re.compile(r"(?:^|(?<=[.?] ))" + "".join(pieces) + r"(?= |$)")


def says(regex: re.Pattern[str], row: dict[str, str]) -> bool:
    """Whether a sentence of the prompt has the pattern and states the answer's own values.

    Without the second half, "I have {symptoms}." would also fit "I have two children."
    """
    answer = json.loads(row["response"])
    main = {
        "symptoms": answer["symptoms"][0],
        "medications": answer["medications"][0]["name"] if answer["medications"] else "\n",
        "duration": answer["duration"] or "\n",
    }
    slots = [match.groupdict() for match in regex.finditer(row["prompt"])]
    return any(all(main.get(k, "") in v for k, v in groups.items()) for groups in slots)


def test_generate_rewrites_the_files_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "generate.py", tmp_path], check=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_sizes() -> None:
    assert len(rows("train.jsonl")) == 900
    assert len(part("seen")) == len(part("unseen")) == 150
    assert max(len(row["prompt"].split()) for row in all_rows()) <= 100
    answers = [len(row["response"]) for row in all_rows()]
    assert sum(answers) / len(answers) < 335


def test_every_response_is_valid_and_canonical() -> None:
    schema = json.loads((FOLDER / "answer.schema.json").read_text("utf-8"))
    validator = jsonschema_rs.Draft202012Validator(schema)
    item = schema["properties"]["medications"]["items"]
    for row in all_rows():
        answer = json.loads(row["response"])
        assert validator.is_valid(answer), row
        assert row["response"] == json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        assert list(answer) == list(schema["properties"]) == schema["required"]
        for medication in answer["medications"]:
            assert list(medication) == list(item["properties"]) == item["required"]


def test_the_schema_is_closed_and_bounded() -> None:
    def check(node: dict[str, Any]) -> None:
        kinds = node.get("type", [])
        kinds = {kinds} if isinstance(kinds, str) else set(kinds)
        assert not kinds & {"string"} or "maxLength" in node
        assert not kinds & {"integer", "number"} or {"minimum", "maximum"} <= set(node)
        if "array" in kinds:
            assert "maxItems" in node
            check(node["items"])
        if "object" in kinds:
            assert node["additionalProperties"] is False
            assert node["required"] == list(node["properties"])
            for child in node["properties"].values():
                assert child["description"]
                check(child)

    check(json.loads((FOLDER / "answer.schema.json").read_text("utf-8")))


def test_no_prompt_occurs_twice() -> None:
    prompts = [row["prompt"] for row in all_rows()]
    assert len(prompts) == len(set(prompts))


def test_copied_values_are_verbatim() -> None:
    for row in all_rows():
        prompt, answer = row["prompt"], json.loads(row["response"])
        copied = [*answer["symptoms"], *filter(None, [answer["duration"]])]
        copied += [value for medication in answer["medications"] for value in medication.values()]
        copied += [str(answer[key]) for key in ("age", "temperature_c") if answer[key] is not None]
        for value in copied:
            assert re.search(rf"(?<!\w){re.escape(value)}(?!\w)", prompt), (value, prompt)
        places = [prompt.index(symptom) for symptom in answer["symptoms"]]
        assert places == sorted(places), "the first symptom decides, so the order matters"


def test_the_conclusions_follow_from_the_evidence(data: dict[str, list[Any]]) -> None:
    """The deciding word alone gives the specialty; urgency and reply depend on other fields."""
    specialty_of: dict[str, str] = {}
    for row in [row for rows in data.values() for row in rows]:
        answer = row.answer
        decider = row.deciders[0]
        assert decider in answer["symptoms"][0]
        assert specialty_of.setdefault(decider, answer["specialty"]) == answer["specialty"]
        calm = "soon" if answer["severity"] == "severe" else "routine"
        assert answer["urgency"] == ("emergency" if answer["red_flag"] else calm)
        assert answer["symptoms"][0] in answer["reply"]
        assert len(answer["reply"].split()) <= 20


def test_held_out_words_are_new_but_deciding_words_are_known(
    generator: ModuleType, data: dict[str, list[Any]]
) -> None:
    words = generator.words
    text = "\n".join(row["prompt"] for row in rows("held_out.jsonl"))
    for known in (words.FIRST, words.LAST, words.DRUGS, words.ALLERGENS):
        assert not re.search(rf"(?<!\w)({'|'.join(known)})(?!\w)", text)

    old = {symptom for row in data["train"] for symptom in row.answer["symptoms"]}
    counts = Counter(decider for row in data["train"] for decider in row.deciders)
    for row in data["seen"] + data["unseen"]:
        assert old.isdisjoint(row.answer["symptoms"])
        assert all(counts[decider] >= 25 for decider in row.deciders)
    assert len(words.DRUGS) >= 60


def test_half_of_the_held_out_numbers_are_new(data: dict[str, list[Any]]) -> None:
    for key in ("age", "temperature_c", "duration"):
        old = {row.answer[key] for row in data["train"]}
        for name in ("seen", "unseen"):
            values = [row.answer[key] for row in data[name] if row.answer[key] is not None]
            assert 0.35 < sum(value not in old for value in values) / len(values) < 0.65, key


def test_the_files_hold_the_rows_that_were_built(data: dict[str, list[Any]]) -> None:
    """So what the other tests learn from ``build`` holds for the files."""
    for name, stored in (
        ("train", rows("train.jsonl")),
        ("seen", part("seen")),
        ("unseen", part("unseen")),
    ):
        assert [row.prompt for row in data[name]] == [row["prompt"] for row in stored]
        assert [row.answer for row in data[name]] == [json.loads(r["response"]) for r in stored]


def test_seen_uses_training_patterns_and_unseen_shares_none(
    generator: ModuleType, data: dict[str, list[Any]]
) -> None:
    used = {name: set().union(*(row.frames for row in rows)) for name, rows in data.items()}
    assert used["train"] == patterns(generator, "phrases_train.txt")
    assert used["seen"] <= used["train"]
    assert used["unseen"] <= patterns(generator, "phrases_unseen.txt")
    assert used["unseen"].isdisjoint(used["train"])


def test_no_training_sentence_is_found_in_an_unseen_prompt(generator: ModuleType) -> None:
    """The same from the text alone, and no pattern is a near copy of a training pattern."""
    sentences = {f for f in patterns(generator, "phrases_train.txt") if f[-1] in ".?"}
    known, unseen = rows("train.jsonl"), part("unseen")
    for frame in sentences:
        regex = sentence_regex(frame)
        assert any(says(regex, row) for row in known), frame
        for row in unseen:
            assert not says(regex, row), (frame, row["prompt"])
    for new in patterns(generator, "phrases_unseen.txt"):
        if new[-1] in ".?":
            likeness = [difflib.SequenceMatcher(None, new, old).ratio() for old in sentences]
            assert max(likeness) < 0.86, new


def test_distribution() -> None:
    answers = [json.loads(row["response"]) for row in rows("train.jsonl")]
    schema = json.loads((FOLDER / "answer.schema.json").read_text("utf-8"))

    def share(key: str, value: Any) -> float:
        return sum(answer[key] == value for answer in answers) / len(answers)

    for key in ("severity", "specialty", "urgency"):
        for value in schema["properties"][key]["enum"]:
            assert share(key, value) >= 0.05, (key, value)
    for key in ("allergic", "red_flag"):
        assert 0.2 < share(key, True) < 0.5
    for key in ("duration", "age", "temperature_c"):
        assert 0.2 < share(key, None) < 0.7
    assert 0.3 < share("medications", []) < 0.7
    assert {len(answer["symptoms"]) for answer in answers} == {1, 2, 3, 4}
    assert {len(answer["medications"]) for answer in answers} == {0, 1, 2, 3}

    drugs = Counter(m["name"] for answer in answers for m in answer["medications"])
    assert max(drugs.values()) <= min(drugs.values()) + 2, "no drug is worth remembering"
