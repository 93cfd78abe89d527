"""Shards: packed rows of tokens, made by a second process while the first one trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pretraining.text.corpus import documents
from pretraining.text.document import Document
from pretraining.text.tokenizer import END_OF_TEXT, PAD, special

ROW = 640
"""Tokens of a row: several documents, each ended by the end-of-text token."""
_BATCH = 200
_OPEN_ROWS = 32
_END_WEIGHT = 0.1

Shard = tuple[NDArray[np.int16], NDArray[np.float32]]
"""Token ids and weights, one row each."""

Encoded = tuple[list[int], list[float]]


def encode(tokenizer: Tokenizer, batch: list[Document]) -> Iterator[Encoded]:
    """Token ids and weights of documents."""
    pieces = [piece for document in batch for piece, _ in document]
    encodings = iter(tokenizer.encode_batch(pieces, add_special_tokens=False))
    for document in batch:
        ids: list[int] = []
        weights: list[float] = []
        for _, weight in document:
            new = next(encodings).ids
            ids += new
            weights += [weight] * len(new)
        yield ids, weights


def make(tokenizer_file: Path, seed: str, rows: int) -> Shard:
    """Pack documents into rows: each goes where it leaves the least room."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    end, pad = special(tokenizer, END_OF_TEXT), special(tokenizer, PAD)
    endless = documents(seed)
    full: list[Encoded] = []
    filling: list[Encoded] = []
    while len(full) < rows:
        for ids, weights in encode(tokenizer, list(islice(endless, _BATCH))):
            document = ([*ids[: ROW - 1], end], [*weights[: ROW - 1], _END_WEIGHT])
            fits = [row for row in filling if len(row[0]) + len(document[0]) <= ROW]
            if fits:
                row = max(fits, key=lambda row: len(row[0]))
                row[0].extend(document[0])
                row[1].extend(document[1])
                continue
            if len(filling) == _OPEN_ROWS:
                fullest = max(range(_OPEN_ROWS), key=lambda i: len(filling[i][0]))
                full.append(filling.pop(fullest))
            filling.append(document)
    all_ids = np.full((rows, ROW), pad, np.int16)
    all_weights = np.zeros((rows, ROW), np.float32)
    for number, (ids, weights) in enumerate(full[:rows]):
        all_ids[number, : len(ids)] = ids
        all_weights[number, : len(weights)] = weights
    return all_ids, all_weights


def stream(tokenizer_file: Path, seed: int, first: int, rows: int) -> Iterator[Shard]:
    """Shards from number `first` on, one made ahead."""
    with ProcessPoolExecutor(1, get_context("spawn"), _step_back) as pool:

        def start(number: int) -> Future[Shard]:
            return pool.submit(make, tokenizer_file, f"{seed} shard {number}", rows)

        number, ahead = first, start(first)
        while True:
            shard = ahead.result()
            number += 1
            ahead = start(number)
            yield shard


def _step_back() -> None:
    """Leave the processor to training."""
    os.nice(10)
