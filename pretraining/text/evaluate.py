"""Evaluation of the base on unseen cases: share of exact answers, family by family.

Run as `python -m pretraining.text.evaluate FOLDER`. A case counts when every token of every
certain answer is the likeliest one given the right tokens before it, which for a single answer
is the same as generating it greedily without an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from pretraining.text.corpus import FAMILIES, UNTRAINED
from pretraining.text.document import ANSWER
from pretraining.text.shards import ROW, Encoded, encode
from pretraining.text.tokenizer import PAD, special

_BATCH = 16
# Definitions and prose have no certain answers.
_UNCERTAIN = ("definitions", "prose")


class Examination:
    """Unseen cases of every family."""

    def __init__(self, tokenizer_file: Path, cases: int) -> None:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._pad = special(tokenizer, PAD)
        makers = {name: family for name, (family, _) in FAMILIES.items()} | UNTRAINED
        self._cases: dict[str, list[Encoded]] = {}
        for name, family in makers.items():
            if name in _UNCERTAIN:
                continue
            rng = Random(f"examination {name}")
            batch = [family(rng) for _ in range(cases)]
            encoded = [case for case in encode(tokenizer, batch) if len(case[0]) <= ROW]
            self._cases[name] = sorted(encoded, key=lambda case: len(case[0]))

    @torch.no_grad()
    def exact(self, model: Qwen3ForCausalLM) -> Iterator[tuple[str, float]]:
        """Each family with its share of cases without an error."""
        for name, cases in self._cases.items():
            right = 0
            for start in range(0, len(cases), _BATCH):
                right += self._right(model, cases[start : start + _BATCH])
            yield name, right / len(cases)

    def short_report(self, model: Qwen3ForCausalLM) -> str:
        """All shares in one line."""
        return ", ".join(f"{name} {share:.2f}" for name, share in self.exact(model))

    def _right(self, model: Qwen3ForCausalLM, cases: list[Encoded]) -> int:
        longest = max(len(ids) for ids, _ in cases)
        ids = torch.full((len(cases), longest), self._pad)
        asked = torch.zeros(len(cases), longest, dtype=torch.bool)
        for row, (case_ids, weights) in enumerate(cases):
            ids[row, : len(case_ids)] = torch.tensor(case_ids)
            asked[row, : len(weights)] = torch.tensor(weights) == ANSWER
        with torch.autocast("cpu", torch.bfloat16):
            guesses = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
        right = (guesses == ids[:, 1:]) | ~asked[:, 1:]
        return int(right.all(1).sum())


def main() -> None:
    """Print the share of exact answers of every family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--cases", type=int, default=200)
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32)
    for name, share in Examination(given.base / "tokenizer.json", given.cases).exact(model):
        print(f"{name:40} {share:.1%}")


if __name__ == "__main__":
    main()
