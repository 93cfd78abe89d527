"""The base's tokenizer: byte-level BPE whose words look alike in a text and in JSON.

Letters, single digits, line ends and runs of everything else are kept apart, so that a word is
the same tokens after a space, after a bracket and inside quotes. Copying a span is then copying
its tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pretraining.text.corpus import documents, text
from pretraining.text.words import pools

VOCABULARY = 4096
CONTEXT = 2048
END_OF_TEXT, TURN_START, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
_PIECES = r"\p{L}+|\p{N}|\n|[^\p{L}\p{N}\n]+"
_DOCUMENTS = 25_000

TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}"
    "{{- message['content'] + '<|im_end|>' }}"
    "{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _sample(seed: int) -> Iterator[str]:
    for document in islice(documents(f"{seed} tokenizer"), _DOCUMENTS):
        yield text(document).replace(TURN_START, "").replace(TURN_END, "")
    rng = Random(seed)
    for entry in pools().entries:
        if rng.random() < 0.4:
            yield f"{', '.join(entry.words)}: {entry.definition}"


def train(seed: int) -> Tokenizer:
    """Learn the vocabulary from a sample of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        max_token_length=16,
    )
    tokenizer.train_from_iterator(_sample(seed), trainer)
    return tokenizer


def special(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token."""
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that transformers, vLLM and the toolkit read."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, END_OF_TEXT],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)


def main() -> None:
    """Train the tokenizer and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save(train(arguments.seed), arguments.folder)


if __name__ == "__main__":
    main()
