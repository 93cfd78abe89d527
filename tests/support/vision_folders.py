"""Very small CLIP and BLIP models with random weights, as folders for transformers."""

from __future__ import annotations

from pathlib import Path

WORDS = "a the red blue green circle square star on of with big small and house tree".split()


def clip(folder: Path, seed: int = 0) -> Path:
    """CLIP for pictures of 32 x 32, with byte-level tokens and no merges."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"
    vocabulary = {token: i for i, token in enumerate([*letters, *(f"{x}</w>" for x in letters)])}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    end = vocabulary["<|endoftext|>"]
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    text = {
        **size,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 24,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    torch.manual_seed(seed)
    model = CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config={**size, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    # Random towers tell inputs hardly apart; larger weights make choices differ.
    model.visual_projection.weight.data.normal_(std=2.0)
    model.text_projection.weight.data.normal_(std=2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def blip(folder: Path, seed: int = 0) -> Path:
    """BLIP for captioning pictures of 32 x 32, with whole words as tokens."""
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
    )

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        **size,
        "vocab_size": len(tokens),
        "encoder_hidden_size": 32,
        "max_position_embeddings": 64,
        "bos_token_id": tokens.index("[DEC]"),
        "eos_token_id": tokens.index("[CLS]"),
        "sep_token_id": tokens.index("[SEP]"),
        "pad_token_id": tokens.index("[PAD]"),
        "initializer_range": 0.6,
    }
    vision = {**size, "image_size": 32, "patch_size": 8, "initializer_range": 0.6}
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
