"""Small model folders for tests: a byte-level tokenizer, a family's chat template, no real weights.

The templates in tests/templates/ are written in the style of their families, with generation
markers added, so that transformers can mark the tokens of the assistant.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from support.places import TESTS
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

TEMPLATES = TESTS / "templates"

# How current families split text before merging (transformers/models/qwen2), and how GPT-2 did: the
# second splits a run of line breaks by the character after it.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_CORPUS = [
    "The patient reports a headache and a fever of 38.5 since three days.",
    '{"symptoms": ["headache", "fever"], "urgent": false, "days": 3, "note": null}',
    "assistant user system model think\n\n</think>\n\n{}\n{\n\n",
] * 20


@dataclass(frozen=True)
class Family:
    """What a family's template needs: its special tokens and which of them end a turn."""

    template: str
    specials: tuple[str, ...]
    eos: str
    ends: tuple[str, ...]
    bos: str | None = None
    plain_added: tuple[str, ...] = ()
    split: str = QWEN_SPLIT
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "qwen2.5": Family(
        "qwen2.5", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", ("<|im_end|>",)
    ),
    "qwen3": Family(
        "qwen3",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
        plain_added=("<think>", "</think>"),
    ),
    "llama3": Family(
        "llama3",
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        "<|eot_id|>",
        ("<|end_of_text|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
    ),
    "gemma": Family(
        "gemma",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        ("<eos>", "<end_of_turn>"),
        bos="<bos>",
    ),
}


@cache
def tokenizer(
    specials: tuple[str, ...], plain_added: tuple[str, ...] = (), split: str = QWEN_SPLIT
) -> Tokenizer:
    """A byte-level BPE tokenizer of a few hundred tokens."""
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    result.train_from_iterator(_CORPUS, trainer)
    result.add_tokens([AddedToken(text, normalized=False) for text in plain_added])
    return result


@cache
def byte_fallback_tokenizer(specials: tuple[str, ...]) -> Tokenizer:
    """A tokenizer as Llama 2 has it: spaces are written as U+2581, one stands before each text, and
    characters outside the vocabulary fall back to tokens of single bytes."""
    result = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    result.normalizer = normalizers.Sequence(spaces)
    result.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    listed = ("<unk>", *specials, *(f"<0x{byte:02X}>" for byte in range(256)))
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(listed), limit_alphabet=200, show_progress=False
    )
    # Words are learned apart, as sentencepiece does; the finished tokenizer has no pre-tokenizer.
    result.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    result.train_from_iterator(_CORPUS, trainer)
    result.pre_tokenizer = None
    # The trainer marks all that it is given; byte tokens are ordinary ones.
    made = json.loads(result.to_str())
    made["added_tokens"] = [
        one for one in made["added_tokens"] if one["content"] in ("<unk>", *specials)
    ]
    return Tokenizer.from_str(json.dumps(made))


def write_family(folder: Path, name: str) -> Path:
    """A complete folder of a family, ready for `Chat.load` and for AutoTokenizer."""
    family = FAMILIES[name]
    template = (TEMPLATES / f"{family.template}.jinja").read_text()
    return write_folder(folder, family, template)


def write_folder(folder: Path, family: Family, template: str | None) -> Path:
    """A complete folder with any template, or without one."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(family.specials, family.plain_added, family.split)
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": family.eos,
        "pad_token": family.specials[0],
        "clean_up_tokenization_spaces": False,
    }
    if family.bos:
        settings["bos_token"] = family.bos
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "max_position_embeddings": 512,
        "vocab_size": made.get_vocab_size(),
    }
    generation = {"eos_token_id": [made.token_to_id(end) for end in family.ends]}
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "config.json", config | family.config)
    _write_json(folder / "generation_config.json", generation)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    write_safetensors(folder / "model.safetensors")
    return folder


def write_safetensors(path: Path, size: int = 64) -> None:
    """A valid safetensors file with one tensor of `size` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
