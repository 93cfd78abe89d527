"""The embedded tiny base: its files, its tokenizer, what it can copy, and how it is made."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import ROOT
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lora.base.text import TINY

TEMPLATE = ROOT / "data_templates" / "medical_qa"
WORDNET = Path("/usr/share/wordnet/data.noun")

needs_wordnet = pytest.mark.skipif(
    not WORDNET.exists(), reason="the Debian package wordnet-base is not installed"
)
# What JSON and prose put around a word.
SURROUNDINGS = ("{}", " {}", "a {} b", '"{}"', '["{}","x"]', '{{"k":"{}"}}', "({})", "x, {}.")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY, local_files_only=True)


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)


def pretraining(module: str) -> Any:
    """A module of the pretraining script, which is no part of the package."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"pretraining.text.{module}")


def test_the_files_are_complete_and_small() -> None:
    names = {path.name for path in TINY.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 20 * 2**20


def test_a_server_finds_what_it_needs(model: Any, raw: Tokenizer) -> None:
    config = json.loads((TINY / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["head_dim"] == 64
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 2048
    assert config["vocab_size"] == raw.get_vocab_size()
    assert config["eos_token_id"] == raw.token_to_id("<|im_end|>")
    assert config["pad_token_id"] == raw.token_to_id("<|pad|>") != config["eos_token_id"]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    raw = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    encoded = raw.encode(text, add_special_tokens=False)
    if not {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>"} & set(encoded.tokens):
        assert raw.decode(encoded.ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text", ["", "Grüße, 3.75 °C\n\n\t日本 🙂", '{"a":[1,"x y"]}', "<|im_end|>x"]
)
def test_transformers_gives_the_same_ids(tokenizer: Any, raw: Tokenizer, text: str) -> None:
    expected = raw.encode(text, add_special_tokens=False).ids
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize("word", ["zorbaxin", "Quendriol", "twelve weeks", "38.5", "Renée"])
def test_a_word_is_the_same_tokens_everywhere(raw: Tokenizer, word: str) -> None:
    alone = raw.encode(word, add_special_tokens=False).tokens
    for surrounding in SURROUNDINGS:
        around = raw.encode(surrounding.format(word), add_special_tokens=False).tokens
        windows = (around[i : i + len(alone)] for i in range(len(around)))
        assert alone in windows, surrounding


def test_the_template_marks_the_answer_and_its_end(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": '{"one":1}'},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": '{"two":2}'},
    ]
    done = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [i for i, m in zip(done["input_ids"], done["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == '{"one":1}<|im_end|>{"two":2}<|im_end|>'
    prompt = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages[:3], tokenize=False)
    assert whole == prompt + '{"one":1}<|im_end|>\n'


def test_it_copies_words_that_do_not_exist(model: Any, tokenizer: Any) -> None:
    rng = random.Random(4)
    syllables = [
        a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "or", "il")
    ]

    def word() -> str:
        return "".join(rng.choice(syllables) for _ in range(rng.randint(2, 4)))

    right = 0
    for _ in range(10):
        words = [word() for _ in range(rng.randint(2, 5))]
        answer = json.dumps(words, separators=(",", ":"))
        asked = f"List the items as JSON: {', '.join(words[:-1])} and {words[-1]}"
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_tensors="pt"
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=80, do_sample=False)
        right += tokenizer.decode(out[0, ids["input_ids"].shape[1] :]) == answer + "<|im_end|>"
    assert right >= 8


@needs_wordnet
def test_the_corpus_does_not_know_the_medical_task() -> None:
    corpus = pretraining("corpus")
    schema = json.loads((TEMPLATE / "answer.schema.json").read_text())
    names = {*schema["properties"], "dose", "frequency"}
    specialties = set(schema["properties"]["specialty"]["enum"]) - {"general"}
    forbidden = specialties | {"symptom", "symptoms", "medication", "patient", "fever", "doctor"}
    forbidden |= set(pretraining_free_medical_words())
    for document in itertools.islice(corpus.documents("no medicine"), 3000):
        text = corpus.text(document).lower()
        assert not forbidden & set(re.findall(r"[a-z]+", text)), text
        assert not any(f'"{name}":' in text for name in names), text


def pretraining_free_medical_words() -> list[str]:
    """The drugs of the medical template, known and new."""
    sys.path.append(str(TEMPLATE))
    try:
        words = importlib.import_module("medical_words")
    finally:
        sys.path.remove(str(TEMPLATE))
    return [drug.lower() for drug in (*words.DRUGS, *words.NEW_DRUGS)]


@needs_wordnet
def test_the_corpus_is_decided_by_its_seed_and_answers_are_json() -> None:
    corpus = pretraining("corpus")
    first, again, other = (
        [corpus.text(document) for document in itertools.islice(corpus.documents(seed), 40)]
        for seed in ("a", "a", "b")
    )
    assert first == again != other
    for name in ("known domains, whole record", "invented domains, shown by examples"):
        family, _ = corpus.FAMILIES[name]
        for seed in range(50):
            answers = [text for text, _ in family(random.Random(seed)) if text.startswith("{")]
            assert answers
            for answer in answers:
                assert isinstance(json.loads(answer.removesuffix("<|im_end|>")), dict)


@needs_wordnet
def test_domains_are_sound() -> None:
    domains, values = pretraining("domains"), pretraining("values")
    trained, held_out = domains.load("trained"), domains.load("held_out")
    assert len(trained) >= 20
    assert not {t for d in trained for t in d.titles} & {t for d in held_out for t in d.titles}
    kinds = {*values.MAKERS, "list", "objects", "flag", "choice", "rule"}
    for domain in (*trained, *held_out):
        earlier: set[str] = set()
        for slot in domain.slots:
            assert slot.kind in kinds
            assert slot.telling
            if slot.kind == "rule":
                assert slot.needs <= earlier
            assert all(slot.forms) and bool(slot.forms) == (slot.kind == "objects")
            earlier.add(slot.names[0])


@needs_wordnet
def test_pretraining_runs_saves_and_resumes(tmp_path: Path) -> None:
    train = pretraining("train")
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(TINY / "tokenizer.json", base)
    plan: dict[str, Any] = {
        "base": base,
        "checkpoints": tmp_path / "checkpoints",
        "batch": 2,
        "rows_per_shard": 4,
        "report_every": 2,
        "cases": 1,
        "decay": 2,
    }
    with torch.compiler.set_stance("force_eager"):
        train.train(train.Plan(steps=2, **plan))
        before = (base / "model.safetensors").read_bytes()
        resume = tmp_path / "checkpoints" / "step2.safetensors"
        train.train(train.Plan(steps=4, resume=resume, **plan))
    assert (base / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step2.safetensors",
        "step4.safetensors",
    ]
    loaded = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    assert loaded.dtype == torch.bfloat16
