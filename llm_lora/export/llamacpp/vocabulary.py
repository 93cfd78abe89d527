"""A tokenizer in GGUF's terms: tokens, merges, and how text is split before merging.

llama.cpp knows ways of splitting only by name. A name is written when the tokenizer splits in
exactly this way, or when every text tried gives the same tokens; otherwise the export is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lora import files
from llm_lora.base import Chat
from llm_lora.base import text as bases
from llm_lora.export.llamacpp.family import package, refuse
from llm_lora.files import Json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# llama.cpp's name → its patterns, in order, and whether a word that is itself a token is taken
# without merging (llama.cpp, src/llama-vocab.cpp).
_CUTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "qwen2": ((_CONTRACTIONS + _WORDS + r"\p{N}" + _REST,), False),
    "llama-bpe": ((_CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST,), True),
    "gpt-2": ((_GPT2,), False),
    "smollm": ((r"\p{N}", _GPT2), False),
    "superbpe": ((r"\p{N}+", r"(?=(\d{3})+(?!\d))"), False),
}

_HARD = (
    "It's 12,345.67 kg \u2013 naïve café\u2019s \u201cdéjà vu\u201d; WE'LL see  two   spaces",
    "tabs\tand\t\ttabs.\r\n\r\n  x\n\n\n y \n",
    '{"name":"Ana María","age":  42,\n "tags":["a","b"],"ok":null,"n":-1.5e-3}',
    "привет мир 你好\uff0c世界 ١٢٣ नमस्ते ½ ²³ 🚀😶‍🌫️ _x__y-z/\\[](){}<>|`~^$+=@#%&*",
)
"""Texts on which ways of splitting differ."""


@dataclass(frozen=True)
class Vocabulary:
    """The GGUF metadata of a tokenizer; `cut_exactly` where the patterns are equal."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    cut: str
    cut_exactly: bool
    adds_begin: bool
    adds_end: bool
    begin: int | None
    ends: tuple[int, ...]
    pad: int
    template: str

    def describe(self, writer: Any) -> None:
        """Write it into a file's metadata."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        if self.begin is not None:
            writer.add_bos_token_id(self.begin)
        for add, token in zip(
            (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
            self.ends,
            strict=False,
        ):
            add(token)
        writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(self.adds_begin)
        writer.add_add_eos_token(self.adds_end)
        writer.add_chat_template(self.template)


def read(folder: Path, size: int, chat: Chat, texts: Iterable[str]) -> Vocabulary:
    """Read a model folder's tokenizer.

    Args:
        folder: holds tokenizer.json.
        size: rows of the model's embedding; unused ones get a name, as llama.cpp requires.
        chat: the same tokenizer with its template.
        texts: texts on which another way of splitting may prove equal.

    Raises:
        UserError: not a byte-level BPE, or one that splits text as llama.cpp cannot.
    """
    from tokenizers import Tokenizer

    path = folder / bases.TOKENIZER
    document = json.loads(files.read_text(path))
    _require_byte_level(document, str(path))
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(document))
    cut = _named(document)
    exactly = cut is not None
    if cut is None:
        cut = _proven(document, tokenizer, [*_HARD, *texts])
    if cut is None:
        raise refuse("its tokenizer splits text as llama.cpp cannot", str(path))
    bare = tokenizer.encode("x", add_special_tokens=False).ids
    whole = tokenizer.encode("x", add_special_tokens=True).ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    tokens, kinds = _tokens(tokenizer, size, str(path))
    begin = bases.read_config(folder).get("bos_token_id")
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        merges=[_merge(pair) for pair in document["model"]["merges"]],
        cut=cut,
        cut_exactly=exactly,
        adds_begin=start > 0,
        adds_end=len(whole) > start + len(bare),
        begin=whole[0] if start else begin,
        ends=chat.eos_ids,
        pad=chat.pad_id,
        template=chat.template,
    )


def _require_byte_level(document: Json, where: str) -> None:
    model = document["model"]
    steps = _steps(document.get("pre_tokenizer"), "pretokenizers")
    normalizers = {step["type"] for step in _steps(document.get("normalizer"), "normalizers")}
    plain = (
        model.get("type", "BPE") == "BPE"
        and any(step["type"] == "ByteLevel" for step in steps)
        and not any(step.get("add_prefix_space") for step in steps)
        and not any(
            model.get(key)
            for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
        )
        # llama.cpp omits this normalisation, also for models that it converts itself.
        and normalizers <= {"NFC"}
    )
    if not plain:
        raise refuse("its tokenizer is not a plain byte-level BPE", where)


def _steps(part: Json | None, key: str) -> list[Json]:
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _named(document: Json) -> str | None:
    """llama.cpp's name for the way in which a tokenizer splits, where it has one."""
    patterns: list[str] = []
    for step in _steps(document.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            patterns.append(step["pattern"].get("Regex", ""))
        elif step["type"] == "Digits" and step["individual_digits"]:
            patterns.append(r"\p{N}")
        elif step["type"] == "ByteLevel":
            patterns += [_GPT2] if step.get("use_regex", True) else []
        else:
            return None
    own = (tuple(patterns), bool(document["model"].get("ignore_merges")))
    return next((name for name, cut in _CUTS.items() if cut == own), None)


def _proven(document: Json, tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """The first of llama.cpp's ways to split that gives the same tokens for every text."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    wanted = [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
    for name, (patterns, whole_words) in _CUTS.items():
        model = {**document["model"], "ignore_merges": whole_words}
        other = Tokenizer.from_str(json.dumps({**document, "model": model}))
        splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in patterns]
        # The stub allows one kind of step; tokenizers accepts any.
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        other.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
        found = other.encode_batch(texts, add_special_tokens=False)
        if [one.ids for one in found] == wanted:
            return name
    return None


def _tokens(tokenizer: Tokenizer, size: int, where: str) -> tuple[list[str], list[int]]:
    """Text and kind of every token id below `size`."""
    kinds = package().TokenType
    names = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.get_added_tokens_decoder()
    if max(names) >= size:
        raise refuse(f"its tokenizer has {max(names) + 1} tokens, its embedding {size}", where)
    tokens, found = [], []
    for number in range(size):
        tokens.append(names.get(number, f"[PAD{number}]"))
        if number not in names:
            found.append(int(kinds.UNUSED))
        elif number in added:
            special = added[number].special
            found.append(int(kinds.CONTROL if special else kinds.USER_DEFINED))
        else:
            found.append(int(kinds.NORMAL))
    return tokens, found


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)
