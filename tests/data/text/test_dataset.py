"""The checked and split dataset, which must not depend on the order of its rows."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.model_folders import write_family

from llm_lora.base.chat import Chat
from llm_lora.data.finding import Finding
from llm_lora.data.text import dataset, duplicates
from llm_lora.data.text.dataset import Dataset, Stats
from llm_lora.data.text.split import SIDES, fingerprint, prompt_text, side_of, split
from llm_lora.errors import UserError
from llm_lora.example import Example, Message, Rejected, make_example
from llm_lora.recipe.loading import Recipe
from llm_lora.schema.answer import AnswerSchema

WORDS = [f"{a}{b}{c}" for a in "bdk" for b in "aeiou" for c in "lmnrst"]
SCHEMA = AnswerSchema.from_text(
    """{"type": "object", "properties": {"colour": {"enum": ["red", "blue", "green"]},
    "count": {"type": "integer"}, "urgent": {"type": "boolean"}},
    "required": ["colour", "count"], "additionalProperties": false}"""
)


def sentence(seed: object, words: int = 12) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=words))


def row(seed: object, **more: Any) -> dict[str, Any]:
    rng = random.Random(str(seed))
    answer = {"colour": rng.choice(["red", "blue"]), "count": rng.randint(0, 10**6)}
    return {"prompt": sentence(seed), "response": answer} | more


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def recipe(
    train: Path,
    held_out: Path | float = 0.2,
    *,
    max_tokens: int = 2048,
    max_new_tokens: int = 512,
    **data: Any,
) -> Recipe:
    named = (held_out,) if isinstance(held_out, Path) else held_out
    return Recipe.model_validate(
        {
            "task": "text",
            "name": "test",
            "base": "tiny",
            "data": {"train": (train,), "held_out": named} | data,
            "train": {"max_tokens": max_tokens},
            "generate": {"max_new_tokens": max_new_tokens},
        }
    )


def prepare(path: Path, rows: list[dict[str, Any]], **options: Any) -> Dataset:
    return dataset.prepare(recipe(write(path, rows), **options), SCHEMA, None)


def side_by_prompt(made: Dataset) -> dict[str, str]:
    return {e.prompt[-1].content: side for side in SIDES for e in made.side(side)}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(write_family(tmp_path_factory.mktemp("model"), "qwen2.5"))


# Checks


def test_answers_take_the_canonical_form(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    rows[5]["response"] = '{ "urgent": true, "count": 3, "colour": "red" }'
    made = prepare(tmp_path / "t.jsonl", rows)
    answers = {e.where: e.answer for side in SIDES for e in made.side(side)}
    assert answers[f"{tmp_path}/t.jsonl:6"] == '{"colour":"red","count":3,"urgent":true}'
    (finding,) = (f for f in made.findings if f.kind == "canonical")
    assert finding.count == made.stats.answers_changed == 60


def test_what_the_decoder_would_not_write_is_set_aside_with_byte_and_cure(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    rows[5]["response"] = '{"colour":"red","count":3.0}'
    (rejected,) = prepare(tmp_path / "t.jsonl", rows).rejected
    assert rejected.reason == (
        'the decoder would not write the answer: byte 25 in count: after "our\\":\\"red\\",'
        '\\"count\\":3" one of 12 other bytes was possible, got "."; correct the data: write '
        '"{\\"colour\\":\\"red\\",\\"count\\":3}"'
    )


def test_a_schema_that_the_decoder_refuses_stops_before_training(tmp_path: Path) -> None:
    refused = AnswerSchema.from_text('{"type": "array", "items": {}, "uniqueItems": true}')
    made = recipe(write(tmp_path / "t.jsonl", [row(i) for i in range(60)]))
    with pytest.raises(UserError, match=r"cannot enforce this schema: .*uniqueItems"):
        dataset.prepare(made, refused, None)


def test_what_is_judged_but_not_enforced_is_told(tmp_path: Path) -> None:
    loose = AnswerSchema.from_text('{"type": "object", "properties": {"count": {}}}')
    path = write(tmp_path / "t.jsonl", [row(i) for i in range(60)])
    found = dataset.prepare(recipe(path), loose, None).findings
    (finding,) = (one for one in found if one.kind == "not_enforced")
    assert finding.count == 2 and "open object ((schema))" in finding.message


def test_equal_rows_are_kept_once_and_counted(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    made = prepare(tmp_path / "t.jsonl", [*rows, rows[3], rows[3]])
    assert sum(len(made.side(side)) for side in SIDES) == 60
    assert made.stats.counts["equal"] == 2
    (finding,) = (f for f in made.findings if f.kind == "equal")
    assert finding.where == f"{tmp_path}/t.jsonl:61"


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)] + [row(1), {"prompt": "no answer"}, row(99, response="x")]
    made = prepare(tmp_path / "t.jsonl", rows)
    counts = dict(made.stats.counts)
    assert counts.pop("read") == sum(counts.values()) == 63
    assert len(made.rejected) == counts["rejected"] == 2


def test_train_rows_that_are_held_out_are_set_aside(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    like = row("held", prompt=sentence("long", 60))
    nearly = row("held", prompt=like["prompt"] + " again")
    held_out = write(tmp_path / "h.jsonl", [row(3), like, row("other")])
    made = prepare(tmp_path / "t.jsonl", [*rows, nearly], held_out=held_out)
    assert [e.where for e in made.held_out] == [f"{held_out}:{i}" for i in (1, 2, 3)]
    told = {r.where.rpartition("/")[2]: r.reason for r in made.rejected}
    assert told == {
        "t.jsonl:4": f"also held out: equal to {held_out}:1",
        "t.jsonl:61": f"near-duplicate on another side: it is like {held_out}:2, in held_out",
    }


def test_rows_that_share_a_frame_but_not_their_facts_are_kept(tmp_path: Path) -> None:
    names = random.Random(0).sample(WORDS, 60)
    rows = [
        row(i, prompt=f"The patient {name} aged {20 + i} came with a headache for {i} days.")
        for i, name in enumerate(names)
    ]
    made = prepare(tmp_path / "t.jsonl", rows)
    assert not made.rejected
    assert made.stats.near_duplicates["rows"] == 0


def test_lengths_are_measured_and_limits_kept(tmp_path: Path, chat: Chat) -> None:
    rows = [row(i) for i in range(60)] + [row("long", prompt=sentence("long", 400))]
    path = write(tmp_path / "t.jsonl", rows)
    made = dataset.prepare(recipe(path, max_tokens=400, max_new_tokens=5), SCHEMA, chat)
    (long,) = made.rejected
    assert long.reason.startswith("too long: ")
    assert "over the limit of 400 (train.max_tokens)" in long.reason
    everyone = [*made.train, *made.validation, *made.held_out]
    encoded = [chat.encode(example) for example in everyone]
    assert made.stats.tokens["prompt"] == [e.prompt_tokens for e in encoded]
    assert made.stats.tokens["answer"] == [e.answer_tokens for e in encoded]
    histogram = made.summary()["tokens"]["answer"]["histogram"]
    assert sum(histogram["counts"]) == len(everyone)
    assert "cut_off" in {f.kind for f in made.findings}
    roomy = recipe(path, max_tokens=400, max_new_tokens=500)
    kinds = {f.kind for f in dataset.prepare(roomy, SCHEMA, chat).findings}
    assert "no_room" in kinds and "cut_off" not in kinds
    (long,) = dataset.prepare(recipe(path, max_tokens=4000), SCHEMA, chat).rejected
    assert "over the limit of 512 (the base's context)" in long.reason


def test_findings(tmp_path: Path) -> None:
    rows = [row(i, response={"colour": "red", "count": 1, "urgent": False}) for i in range(100)]
    twin = row(0, response={"colour": "red", "count": 2})
    rows += [row(i, response=twin["response"]) for i in range(20)]
    made = prepare(tmp_path / "t.jsonl", rows)
    told = {(f.kind, f.message.partition(":")[0].partition(" is ")[0]) for f in made.findings}
    kinds = {kind for kind, _ in told}
    assert kinds >= {"unseen_values", "one_sided", "contradictions", "few_validation"}
    assert any(f.kind == "unseen_values" and '"blue", "green"' in f.message for f in made.findings)
    assert all(f.count > 0 for f in made.findings)


def test_unusable_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.near_duplicate 0\.2 would treat unrelated rows"):
        prepare(tmp_path / "t.jsonl", [row(1)], near_duplicate=0.2)


def test_no_schema_means_free_text(tmp_path: Path) -> None:
    rows = [{"prompt": sentence(i), "response": sentence(-i)} for i in range(60)]
    made = dataset.prepare(recipe(write(tmp_path / "t.jsonl", rows)), None, None)
    assert not made.rejected
    assert made.stats.tokens == {}


# Sides


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    first=st.sets(st.integers(0, 99), min_size=50, max_size=60),
    added=st.sets(st.integers(0, 99), max_size=30),
    near=st.sets(st.integers(0, 99), max_size=30),
    rng=st.randoms(use_true_random=False),
)
def test_no_record_ever_changes_its_side(
    tmp_path: Path, first: set[int], added: set[int], near: set[int], rng: random.Random
) -> None:
    """Rows are added (including near-duplicates), shuffled, and their answers corrected."""
    base = [row(i, prompt=sentence(i, 40)) for i in first]
    before = side_by_prompt(prepare(tmp_path / "t.jsonl", base, validation=0.3))
    more = [row(i, prompt=sentence(i, 40)) for i in added]
    more += [row(i, prompt=sentence(i, 40) + " indeed") for i in near]
    rows = [*base, *more]
    rng.shuffle(rows)
    for one in rows[::7]:
        one["response"] = dict(one["response"], count=7)
    changed = {"system": "Another system text.", "validation": 0.3}
    after = side_by_prompt(prepare(tmp_path / "t.jsonl", rows, **changed))
    for prompt in before.keys() & after.keys():
        assert before[prompt] == after[prompt]


@settings(max_examples=30, deadline=None)
@given(
    clusters=st.lists(st.integers(1, 6), min_size=20, max_size=60),
    held_out=st.integers(0, 10),
    rng=st.randoms(use_true_random=False),
)
def test_near_duplicates_never_straddle(
    clusters: list[int], held_out: int, rng: random.Random
) -> None:
    def member(cluster: int, copy: int) -> Example:
        words = sentence(cluster, 80).split()
        if copy:
            words[copy * 7] = f"changed{copy}"
        prompt = (Message("user", " ".join(words)),)
        return make_example(prompt, "the same", part=str(cluster), where=f"{cluster}:{copy}")

    examples = [member(i, copy) for i, size in enumerate(clusters) for copy in range(size)]
    rng.shuffle(examples)
    made = split(
        examples[:held_out],
        examples[held_out:],
        held_out_share=0.3,
        validation_share=0.3,
        near_duplicate=0.9,
    )
    seen: dict[str | None, str] = {}
    for side in SIDES:
        for example in made.sides[side]:
            assert seen.setdefault(example.part, side) == side
    assert len(seen) == len(clusters)  # each cluster keeps one
    assert set(examples[:held_out]) <= set(made.sides["held_out"])
    kept = sum(map(len, made.sides.values()))
    assert kept + len(made.aside) == len(examples)


def test_shares_are_what_was_asked_for() -> None:
    examples = [
        make_example((Message("user", sentence(i)),), "a", part=None, where=f"f:{i}")
        for i in range(4000)
    ]
    made = split((), examples, held_out_share=0.2, validation_share=0.1, near_duplicate=0.9)
    sizes = {side: len(made.sides[side]) for side in SIDES}
    assert abs(sizes["held_out"] - 800) < 100
    assert abs(sizes["validation"] - 320) < 70


def test_the_side_follows_the_words_alone() -> None:
    texts = [sentence(i) for i in range(200)]
    loud = [text.upper().replace(" ", ",  ") + "!" for text in texts]
    sides = [side_of(text, 0.3, 0.3) for text in texts]
    assert sides == [side_of(text, 0.3, 0.3) for text in loud]
    assert set(sides) == set(SIDES)
    assert side_of("?!", 0.5, 0.5) in SIDES


def test_validation_is_never_empty_and_takes_whole_clusters() -> None:
    for seed in range(20):
        texts = [sentence((seed, i), 60) for i in range(12)]
        examples = [
            make_example((Message("user", text + more),), "a", part=None, where=f"f:{i}")
            for i, text in enumerate(texts)
            for more in ("", " indeed")
        ]
        made = split((), examples, held_out_share=0.0, validation_share=1e-9, near_duplicate=0.9)
        assert len(made.sides["validation"]) == 2
        assert len({example.where for example in made.sides["validation"]}) == 1


def told(text: str, answer: str = "a", where: str = "") -> Example:
    return make_example((Message("user", text),), answer, part=None, where=where)


def test_what_is_set_aside_names_what_it_is_like_and_the_side_of_that() -> None:
    texts = [sentence(i, 60) for i in range(30)]
    held_out = [told(texts[0]), told(texts[0] + " indeed"), told(texts[1])]
    cut = [told(f"{text} again") for text in texts]
    made = split(held_out, cut, held_out_share=0.3, validation_share=0.3, near_duplicate=0.9)
    kept = {example.id: side for side in SIDES for example in made.sides[side]}
    assert [kept[one.id] for one in held_out] == ["held_out"] * 3
    aside = {one.example.id: (one.like.id, one.side) for one in made.aside}
    # Held-out rows lead their cluster, the first of them; whoever is held out anyway joins them.
    for row, first in ((cut[0], held_out[0]), (cut[1], held_out[2])):
        own = side_of(row.prompt[0].content, 0.3, 0.3)
        assert aside.get(row.id) == (None if own == "held_out" else (first.id, "held_out"))
        assert (row.id in kept) == (own == "held_out")
    assert set(aside) <= {cut[0].id, cut[1].id} and aside
    assert sorted(map(len, made.clusters)) == [2, 3]


def test_among_train_rows_it_is_not_the_first_that_leads() -> None:
    """Else the side of a cluster would depend on the order of its rows."""
    leaders = set()
    for seed in range(30):
        pair = [told(sentence(seed, 60)), told(sentence(seed, 60) + " indeed")]
        found = []
        for rows in (pair, pair[::-1]):
            made = split((), rows, held_out_share=0.4, validation_share=0.0, near_duplicate=0.9)
            found.append({one.id: side for side in SIDES for one in made.sides[side]})
            assert {one.like.id for one in made.aside} <= set(found[-1])
            leaders |= {pair.index(one.like) for one in made.aside}
        held = [{key for key, side in one.items() if side == "held_out"} for one in found]
        assert held[0] == held[1] and found[0].keys() == found[1].keys()
    assert leaders == {0, 1}


def test_shares_of_nothing_and_of_everything() -> None:
    texts = [sentence(i) for i in range(50)]
    assert {side_of(text, 0.0, 0.0) for text in texts} == {"train"}
    assert {side_of(text, 1.0, 0.0) for text in texts} == {"held_out"}
    assert {side_of(text, 0.0, 1.0) for text in texts} == {"validation"}
    # Another share of one leaves the other as it was.
    before = [text for text in texts if side_of(text, 0.3, 0.2) == "held_out"]
    assert before == [text for text in texts if side_of(text, 0.3, 0.6) == "held_out"]
    nothing = split((), (), held_out_share=0.5, validation_share=0.5, near_duplicate=0.9)
    assert nothing.sides == {side: [] for side in SIDES}
    only = split([told("a")], (), held_out_share=0.5, validation_share=0.5, near_duplicate=0.9)
    assert [len(only.sides[side]) for side in SIDES] == [0, 0, 1]


def hashed(purpose: str, words: str) -> float:
    """The share of all hashes that are smaller, as data that was split before relies on it."""
    return int(hashlib.sha256(f"{purpose}: {words}".encode()).hexdigest()[:16], 16) / 2**64


@settings(max_examples=50, deadline=None)
@given(st.text("ab ?", min_size=1, max_size=8))
def test_sides_are_those_that_earlier_versions_gave(text: str) -> None:
    words = " ".join(re.findall("[ab]+", text)) or text
    held_out, validation = hashed("held_out", words), hashed("validation", words)
    side = "held_out" if held_out < 0.4 else "validation" if validation < 0.4 else "train"
    assert side_of(text, 0.4, 0.4) == side
    # A share that ends at the very hash leaves it out.
    assert side_of(text, held_out, 0.0) == "train" == side_of(text, 0.0, validation)


def test_of_near_duplicates_in_train_files_the_smallest_hash_leads() -> None:
    for seed in range(12):
        texts = [sentence(seed, 60) + more for more in ("", " indeed", " again")]
        made = split(
            (), [told(t) for t in texts], held_out_share=0.4, validation_share=0.3,
            near_duplicate=0.9,
        )  # fmt: skip
        leader = min(texts, key=lambda text: hashed("anchor", text))
        side = side_of(leader, 0.4, 0.3)
        kept = [text for text in texts if side_of(text, 0.4, 0.3) == side]
        assert [one.prompt[0].content for one in made.sides[side]] == kept or side == "train"
        assert {one.like.prompt[0].content for one in made.aside} <= {leader}
        assert len(made.aside) == len(texts) - len(kept)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_file_validates_on_the_cluster_with_the_smallest_hash(seed: int) -> None:
    texts = [sentence((seed, i), 60) for i in range(6)]
    rows = [told(text + more) for text in texts for more in ("", " indeed")] + [told("alone")]
    made = split((), rows, held_out_share=0.0, validation_share=0.0, near_duplicate=0.9)
    least = min(rows, key=lambda one: hashed("validation", one.prompt[0].content))
    chosen = next((pair for pair in made.clusters if least in pair), [least])
    assert made.sides["validation"] == chosen
    assert made.sides["train"] == [one for one in rows if one not in chosen]
    assert made.sides["held_out"] == made.aside == []
    assert made.clusters == [rows[at : at + 2] for at in range(0, 12, 2)]


def test_the_prompts_text_is_what_was_said_without_the_system_text() -> None:
    turns = [("system", "S"), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Help")]
    prompt = tuple(Message(role, text) for role, text in turns)  # type: ignore[arg-type]
    assert prompt_text(make_example(prompt, "a", part=None, where="")) == "Hi\nYes?\nHelp"


def test_the_fingerprint_knows_contents_and_sides_but_no_order(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    made = prepare(tmp_path / "a.jsonl", rows)
    same = prepare(tmp_path / "b.jsonl", rows[::-1])
    assert made.fingerprint == same.fingerprint
    assert prepare(tmp_path / "c.jsonl", rows[1:]).fingerprint != made.fingerprint
    moved = {"train": made.held_out, "validation": made.validation, "held_out": made.train}
    assert fingerprint({side: moved[side] for side in SIDES}) != made.fingerprint


# Near-duplicates


def brute_force(records: list[tuple[str, str]], threshold: float) -> list[int]:
    """The definition, applied record by record."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = duplicates.words(text)
        return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}

    def similar(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> bool:
        return bool(a & b) and len(a & b) >= threshold * len(a | b) - 1e-9

    prompts = [shingles(prompt) for prompt, _ in records]
    counts = Counter(shingle for prompt in prompts for shingle in prompt)
    limit = max(10, len(records) // 10)
    rare = [{shingle for shingle in prompt if counts[shingle] <= limit} for prompt in prompts]
    answers = [shingles(answer) for _, answer in records]
    words = [duplicates.words(prompt) for prompt, _ in records]
    labels = list(range(len(records)))
    for i in range(len(records)):
        for j in range(i):
            alike = similar(rare[i], rare[j]) and similar(answers[i], answers[j])
            if labels[i] != labels[j] and (words[i] == words[j] or alike):
                low, high = sorted((labels[i], labels[j]))
                labels = [low if label == high else label for label in labels]
    return labels


@settings(max_examples=60, deadline=None)
@given(rng=st.randoms(use_true_random=False), threshold=st.sampled_from([0.5, 0.7, 0.9, 1.0]))
def test_clusters_are_those_of_the_definition(rng: random.Random, threshold: float) -> None:
    vocabulary = WORDS[: rng.choice([4, 20, 78])]
    records: list[tuple[str, str]] = []
    for _ in range(rng.randint(2, 60)):
        if records and rng.random() < 0.6:
            prompt, answer = rng.choice(records)
            words = prompt.split()
            for _ in range(rng.randint(0, 2)):
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
            records.append((" ".join(words), rng.choice([answer, "yes"])))
        else:
            length = rng.choice([1, 2, 3, 9, 25, 60])
            answer = rng.choice(["yes", "no", sentence(rng.random(), 20)])
            records.append((" ".join(rng.choices(vocabulary, k=length)), answer))
    assert duplicates.clusters(records, threshold) == brute_force(records, threshold)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How ARE you, Ann?", "how are you  ann"),
        ("\ufb01ne caf\u00e9 today", "fine cafe\u0301 today"),
        ("头痛三天,发烧", "头痛三天。发烧"),
    ],
)
def test_case_punctuation_and_unicode_form_make_no_difference(one: str, other: str) -> None:
    assert duplicates.clusters([(one, "a"), (other, "b")], 0.9) == [0, 0]


def test_a_common_instruction_does_not_make_records_alike() -> None:
    instruction = sentence("instruction", 300)
    records = [(f"{instruction} {sentence(i, 8)}", "yes") for i in range(50)]
    assert duplicates.clusters(records, 0.9) == list(range(50))


def framed(count: int, others: int) -> list[tuple[str, str]]:
    """Records that share ten words and differ in an eleventh, and records like none."""
    frame = sentence("frame", 10)
    records = [(f"{frame} {word}", "yes") for word in random.Random(0).sample(WORDS, count)]
    return records + [(sentence(("other", i), 20), "yes") for i in range(others)]


@pytest.mark.parametrize(
    ("sharing", "of", "alike"),
    [(10, 20, True), (11, 20, False), (11, 110, True), (30, 300, True), (31, 309, False)],
)
def test_words_are_common_where_more_than_a_tenth_and_more_than_ten_have_them(
    sharing: int, of: int, alike: bool
) -> None:
    # Two of them share 8 shingles of three words of 10 in all: a similarity of 0.8.
    labels = duplicates.clusters(framed(sharing, of - sharing), 0.5)
    assert (labels[:sharing] == [0] * sharing) == alike
    assert len(set(labels)) == (of - sharing + 1 if alike else of)


def test_in_large_sets_words_are_common_above_a_fixed_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "_COMMON_MOST", 15)
    assert duplicates.clusters(framed(15, 285), 0.5)[:15] == [0] * 15
    assert duplicates.clusters(framed(16, 284), 0.5)[:16] == list(range(16))


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_working_in_portions_changes_nothing(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(7)
    records = []
    for i in range(60):
        words = sentence(i % 12, 30).split()
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        records.append((" ".join(words), rng.choice(["yes", "no"])))
    wanted = brute_force(records, threshold)
    assert 12 < len(set(wanted)) <= 60
    for pairs, members in ((1, 1), (3, 50), (10**6, 70), (7, 10**6)):
        monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", pairs)
        monkeypatch.setattr(duplicates, "_MEMBERS_AT_ONCE", members)
        assert duplicates.clusters(records, threshold) == wanted


def test_unspaced_scripts_are_compared_by_character() -> None:
    text = "患者三天前开始头痛并且发烧三十八度五没有其他不适今天早上服用了布洛芬两片效果不好"
    records = [(text, "是"), (text + "吗", "是"), ("完全不同的一句话没有任何相似之处", "是")]
    assert duplicates.clusters(records, 0.9) == [0, 0, 2]


def test_ten_thousand_records_take_seconds() -> None:
    rng = random.Random(0)
    records = [(" ".join(rng.choices(WORDS, k=60)), "yes") for _ in range(10_000)]
    started = time.process_time()
    duplicates.clusters(records, 0.9)
    assert time.process_time() - started < 20


# Writing and reading


def test_written_and_read_again(tmp_path: Path, chat: Chat) -> None:
    rows = [row(i, part="odd" if i % 2 else "even") for i in range(80)] + [row(1), {"x": 1}]
    made = dataset.prepare(recipe(write(tmp_path / "t.jsonl", rows)), SCHEMA, chat)
    made.write(tmp_path / "out")
    assert Dataset.read(tmp_path / "out") == made
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("train.jsonl", "validation.jsonl", "held_out.jsonl", "quarantine.jsonl", "check.json")
    }
    assert json.loads((tmp_path / "out/check.json").read_text()) == made.summary()


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
filled = any_text.filter(lambda text: bool(text.strip()))
examples = st.builds(
    lambda system, user, answer, part, line: make_example(
        (*([Message("system", system)] if system else []), Message("user", user)),
        answer,
        part=part,
        where=f"a file.jsonl:{line}",
    ),
    any_text,
    filled,
    filled,
    st.none() | any_text,
    st.integers(1, 10**6),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sides=st.tuples(*[st.lists(examples, max_size=3).map(tuple)] * 3),
    rejected=st.lists(st.builds(Rejected, filled, filled, any_text), max_size=2).map(tuple),
)
def test_any_text_survives_writing_and_reading(
    tmp_path: Path, sides: tuple[tuple[Example, ...], ...], rejected: tuple[Rejected, ...]
) -> None:
    everyone = [example for side in sides for example in side]
    tokens = {"prompt": list(range(1, len(everyone) + 1))} if everyone else {}
    made = Dataset(
        train=sides[0],
        validation=sides[1],
        held_out=sides[2],
        rejected=rejected,
        findings=(Finding("kind", "message", 1, None),),
        fingerprint=fingerprint(dict(zip(SIDES, sides, strict=True))),
        stats=Stats({"read": 3}, {}, {}, 0, {}, tokens),
    )
    made.write(tmp_path)
    assert Dataset.read(tmp_path) == made


def test_a_row_taken_out_or_moved_is_noticed(tmp_path: Path) -> None:
    prepare(tmp_path / "t.jsonl", [row(i) for i in range(60)]).write(tmp_path)
    first, _, rest = (tmp_path / "held_out.jsonl").read_text().partition("\n")
    (tmp_path / "held_out.jsonl").write_text(rest)
    with pytest.raises(UserError, match="changed after it was checked"):
        Dataset.read(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(first + "\n")
    with pytest.raises(UserError, match="changed after it was checked"):
        Dataset.read(tmp_path)


@pytest.mark.parametrize("file", ["train.jsonl", "held_out.jsonl", "check.json"])
def test_a_changed_folder_is_noticed(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "out"
    prepare(tmp_path / "t.jsonl", [row(i) for i in range(60)]).write(folder)
    whole = (folder / file).read_text()
    for changed in (whole[: len(whole) // 2], whole.replace("ba", "xx"), whole.replace("e", "")):
        if file == "check.json" and changed == whole.replace("ba", "xx"):
            continue
        (folder / file).write_text(changed)
        with pytest.raises(UserError, match=r"damaged|changed"):
            Dataset.read(folder)
    (folder / file).unlink()
    with pytest.raises(UserError, match="no such file"):
        Dataset.read(folder)
