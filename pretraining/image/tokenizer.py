"""The tokenizer of base and judge: CLIP's byte-level BPE with a small vocabulary of its own."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from pretraining.image.scenes import caption, draw_scene, vary
from pretraining.image.styles import STYLES

LENGTH = 32  # tokens of a prompt; Stable Diffusion has 77, and a tiny model pays for each
_VOCABULARY = 1000
# Words that prompts and negative prompts often have, so that they are few tokens each.
_COMMON = """
a an the of in on with and no not low high best worst quality blurry sharp picture photo drawing
painting sketch style ink line outline hatching paper neon glow mosaic tile watercolour wash chalk
board pixel art digital cartoon comic pencil oil detailed simple bright dark light colourful black
white grey brown gold silver city forest sea sky night day man woman girl boy cat dog house tree
flower car castle mountain river portrait landscape background foreground left right top bottom
middle small big tiny huge old new young beautiful ugly text watermark two three many
""".split()


def new_tokenizer() -> CLIPTokenizer:
    """Train the tokenizer on captions; equally frequent pairs may merge in another order."""
    rng = random.Random(0)
    scenes = [draw_scene(rng) for _ in range(3000)]
    texts = [vary(scene, rng) for scene in scenes] + [caption(scene) for scene in scenes]
    texts += [*STYLES, *_COMMON, *string.ascii_lowercase] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", behavior="removed"),
            pre_tokenizers.Split(",", behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - 2 - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    vocabulary: dict[str, int] = {}
    # Every byte exists inside and at the end of a word; what marks start and end comes last.
    for token in [*sorted(alphabet), *(f"{byte}</w>" for byte in sorted(alphabet))]:
        vocabulary[token] = len(vocabulary)
    for token in sorted(trained["vocab"], key=trained["vocab"].get):
        vocabulary.setdefault(token, len(vocabulary))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(pair) for pair in trained["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def kept_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in the folder; a new one is put there if it has none.

    A model trained on one vocabulary is useless with another.
    """
    if not (folder / "tokenizer.json").exists():
        new_tokenizer().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids of shape (texts, LENGTH), padded with the end token."""
    encoded = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True)
    return torch.tensor(encoded.input_ids)
