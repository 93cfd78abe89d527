"""Findings about captions: too long, too similar, keywords at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llm_lora.data.image import caption_lint
from llm_lora.data.image.caption_lint import Ruler, lint
from llm_lora.errors import UserError


def kinds(
    texts: list[str], trigger: str | None = None, ruler: Ruler | None = None
) -> dict[str, int]:
    named = {f"{i}.txt": text for i, text in enumerate(texts)}
    return {one.kind: one.count for one in lint(named, trigger=trigger, ruler=ruler)}


GOOD = [f"a tower number {i}, at {i} o'clock, in light {i * 7}" for i in range(8)]


def test_good_captions_have_no_findings() -> None:
    assert kinds(GOOD) == {}
    assert kinds(GOOD, "ohwx style") == {}
    assert kinds(["ohwx style, " + text for text in GOOD], "ohwx style") == {}


def test_long_captions_are_told_with_the_trigger_counted() -> None:
    assert kinds([*GOOD, "word " * 76]) == {"long_captions": 1}
    assert kinds([*GOOD, "word " * 75]) == {}
    assert kinds([*GOOD, "word " * 75], "sks") == {"long_captions": 1}
    (told,) = lint({"a.txt": "word " * 100})
    assert "the 77 tokens" in told.message and "at least 102" in told.message
    assert told.where == "a.txt"
    exact = Ruler(lambda text: 2 * len(text.split()), limit=30)
    (told,) = lint({"a.txt": "word " * 16}, ruler=exact)
    assert "the 30 tokens" in told.message and "has 32" in told.message


def test_equal_captions_are_told_and_half_of_them_is_low_variety() -> None:
    assert kinds([*GOOD, GOOD[0].upper()]) == {"equal_captions": 2}
    assert kinds(["a girl in a hat"] * 9 + ["a boy in a coat"]) == {"low_variety_captions": 9}


def test_what_all_captions_share_belongs_in_front() -> None:
    behind = [f"{text}, ink sketch" for text in GOOD]
    assert kinds(behind) == {"keyword_not_first": 8}
    assert kinds(behind, "ink sketch") == {"trigger_not_first": 8}
    assert kinds([f"ink sketch, {text}" for text in GOOD]) == {}
    assert kinds(["ink sketch, a", *behind[:1]], "ink sketch")["trigger_not_first"] == 1


def test_prompt_syntax_and_bare_words_are_told() -> None:
    written = ["a cat <lora:me:0.8>", "a (red:1.3) cat", "(night:1)", "a (moon:.5)"]
    assert kinds([*GOOD, *written]) == {"prompt_syntax": 4, "bare_captions": 1}
    assert kinds([*GOOD, "tower"]) == {"bare_captions": 1}
    assert kinds([*GOOD, "a clock (about 10:30)"]) == {}


def test_blanks_that_a_template_left_are_told() -> None:
    template = "anime girl, long black hair, red jacket, "
    filled = [f"{template}{action}" for action in ("running", "asleep", "reading")]
    assert kinds([*filled, f"{template}[action]", f"{template}{{action}}"]) == {"blanks": 2}
    (told,) = lint({"a.txt": f"{template}[action]"})
    assert "[action]" in told.message and told.where == "a.txt"
    assert kinds(filled) == {}


def test_a_trigger_with_a_slip_is_told() -> None:
    slipped = [f"ink sketch sytle, {text}" for text in GOOD[:3]]
    right = [f"ink sketch style, {text}" for text in GOOD[3:]]
    assert kinds([*slipped, *right], "ink sketch style") == {"trigger_misspelt": 3}
    assert kinds([f"{text}, Ink  Sketch Styl" for text in GOOD], "ink sketch style") == {
        "trigger_misspelt": 8
    }
    assert kinds([f"pencil sketch style, {text}" for text in GOOD], "ink sketch style") == {}
    (told,) = lint({"a.txt": slipped[0]}, trigger="ink sketch style")
    assert '"ink sketch sytle"' in told.message and "nearly the trigger" in told.message


def clip_folder(path: Path) -> Tokenizer:
    """A tokenizer folder as in Stable Diffusion 1.5, and the tokenizer that transformers loads."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.'!-"]
    vocabulary = {t: i for i, t in enumerate([*letters, *(f"{x}</w>" for x in letters)])}
    for token in ("th", "the</w>", "cat</w>", "ca", "<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>")]
    made = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=24)
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    text = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    (path / "merges.txt").write_text(text)
    (path / "tokenizer_config.json").write_text('{"model_max_length": 24}')
    return made


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    folder = tmp_path_factory.mktemp("clip") / "tokenizer"
    return folder, clip_folder(folder)


@given(
    st.lists(st.sampled_from(["the", "cat", "cats,", "it's", "10", "a", "!!", "-"]), max_size=12)
)
def test_the_ruler_counts_as_the_base_does(clip: tuple[Path, Tokenizer], words: list[str]) -> None:
    folder, reference = clip
    ruler = caption_lint.ruler(folder)
    text = " ".join(words)
    assert ruler.count(text) == len(reference(text)["input_ids"])
    assert ruler.limit == 24 and ruler.exact
    assert caption_lint.least_tokens(text) <= ruler.count(text)


def test_a_fast_tokenizer_file_is_enough(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(["a cat"], trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert caption_lint.ruler(tmp_path).count("a cat a cat a") == 7
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="the tokenizer is damaged"):
        caption_lint.ruler(tmp_path)


def test_without_a_tokenizer_the_least_is_told(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        ruler = caption_lint.ruler(folder)
        assert not ruler.exact and ruler.count("it's a cat, 10!") == 10
