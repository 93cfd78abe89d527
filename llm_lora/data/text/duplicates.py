"""Near-duplicate detection: records that say the same in nearly the same words.

Two records belong together if their prompts have the same words, or if prompts and answers both
overlap: the Jaccard similarity of their word trigrams reaches a threshold. Requiring both keeps
apart records that share a sentence pattern but not their facts. Trigrams that occur in very many
prompts (an instruction, a pattern) say nothing about a record and are ignored, so that a long
common instruction does not make all records similar.

The search is exact, not sampled. Similar sets share one of their rarest members (prefix filtering,
Bayardo, Ma and Srikant 2007, "Scaling up all pairs similarity search"), so only records that do are
compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Words = NDArray[np.uint64]

# Scripts written without spaces: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)

# A trigram is common, and says nothing about a record, if more than a tenth of all prompts have it;
# but never if fewer than 10 have it, and always if more than 1,000 do.
_COMMON_SHARE, _COMMON_LEAST, _COMMON_MOST = 10, 10, 1000

_PAIRS_AT_ONCE = 2_000_000
_MEMBERS_AT_ONCE = 20_000_000
_SKETCH_WORDS = 4


class _Sets(NamedTuple):
    """Sets of shingles, one per record: `members[offsets[i]:offsets[i + 1]]`, sorted."""

    members: Ints
    offsets: Ints

    @property
    def sizes(self) -> Ints:
        import numpy as np

        return np.diff(self.offsets)


def words(text: str) -> list[str]:
    """The words of a text, normalised for case, punctuation and Unicode form."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def clusters(records: Sequence[tuple[str, str]], threshold: float) -> list[int]:
    """Cluster records that are near-duplicates, directly or through others.

    Args:
        records: prompt and answer of each.
        threshold: the minimum Jaccard similarity (0 to 1) of both prompts and answers.

    Returns:
        for each record, the smallest index in its cluster (its own if it has no near-duplicate).
    """
    prompts = [words(prompt) for prompt, _ in records]
    forest = _Forest(len(records))
    first: dict[tuple[str, ...], int] = {}
    for index, prompt in enumerate(prompts):
        forest.join(index, first.setdefault(tuple(prompt), index))
    if len(first) > 1:
        answers = _shingles([words(answer) for _, answer in records])
        for pairs in _similar(_without_common(_shingles(prompts), len(records)), threshold, forest):
            for a, b in pairs[_overlap(answers, pairs, threshold)].tolist():
                forest.join(a, b)
    return [forest.root(index) for index in range(len(records))]


class _Forest:
    """Union-find whose roots are the smallest members."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def root(self, index: int) -> int:
        parents = self._parents
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def join(self, a: int, b: int) -> None:
        low, high = sorted((self.root(a), self.root(b)))
        self._parents[high] = low

    def roots(self) -> Ints:
        import numpy as np

        return np.array([self.root(index) for index in range(len(self._parents))])


def _shingles(texts: Sequence[list[str]]) -> _Sets:
    """Hashed word trigrams; a text of fewer than three words is one shingle."""
    import numpy as np

    vocabulary: dict[str, int] = {}
    flat: list[int] = []
    lengths = []
    for text in texts:
        flat += [vocabulary.setdefault(word, len(vocabulary) + 1) for word in text]
        padding = max(0, 3 - len(text))
        flat += [0] * padding
        lengths.append(len(text) + padding)
    ids = np.array([*flat, 0, 0], dtype=np.uint64)
    hashes = sum(
        (ids[i : len(ids) - 2 + i] * np.uint64(mix) for i, mix in enumerate(_MIX)),
        start=np.zeros(len(flat), dtype=np.uint64),
    )
    record = np.repeat(np.arange(len(texts)), lengths)
    inside = np.append(record, [-1, -1])[2:] == record
    return _pack(record[inside], np.unique(hashes[inside], return_inverse=True)[1], len(texts))


def _pack(record: Ints, shingle: Ints, n: int) -> _Sets:
    """Sets from (record, shingle) pairs, with shingles renumbered from rarest to most common."""
    import numpy as np

    width = int(shingle.max(initial=0)) + 1
    keys = np.unique(record * width + shingle)
    record, shingle = keys // width, keys % width
    counts = np.bincount(shingle, minlength=width)
    rank = np.empty(width, dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(width)
    keys = np.sort(record * width + rank[shingle])
    return _Sets(keys % width, np.searchsorted(keys // width, np.arange(n + 1)))


def _without_common(sets: _Sets, n: int) -> _Sets:
    import numpy as np

    limit = min(max(_COMMON_LEAST, n // _COMMON_SHARE), _COMMON_MOST)
    rare = np.bincount(sets.members)[sets.members] <= limit
    kept = np.concatenate([[0], np.cumsum(rare)])
    return _Sets(sets.members[rare], kept[sets.offsets])


def _similar(sets: _Sets, threshold: float, forest: _Forest) -> Iterator[Ints]:
    """Pairs (rows of two indices) of similar sets that are not in one cluster already."""
    import numpy as np

    sketches = _sketches(sets)
    sizes = sets.sizes
    for pairs in _candidates(sets, threshold):
        roots = forest.roots()
        pairs = pairs[roots[pairs[:, 0]] != roots[pairs[:, 1]]]
        a, b = pairs[:, 0], pairs[:, 1]
        # Each differing bit of two sketches means at least one differing shingle, so pairs with
        # too many can be dropped before the exact comparison.
        apart = np.bitwise_count(sketches[a] ^ sketches[b]).sum(axis=1, dtype=np.int64)
        allowed = (1 - threshold) / (1 + threshold) * (sizes[a] + sizes[b]) + 1e-9
        pairs = np.unique(pairs[apart <= allowed], axis=0)
        yield pairs[_overlap(sets, pairs, threshold)]


def _candidates(sets: _Sets, threshold: float) -> Iterator[Ints]:
    """Pairs that share one of their rarest shingles and are of similar size, in batches."""
    import numpy as np

    sizes = sets.sizes
    # Sets with this similarity share at least one of this many rarest members of each.
    prefix = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    record = np.repeat(np.arange(len(sizes)), sizes)
    position = np.arange(len(record)) - sets.offsets[:-1][record]
    chosen = position < prefix[record]
    record, shingle = record[chosen], sets.members[chosen]
    # Sorted by size within a shingle, the partners of a set follow it until they are too large.
    span = int(sizes.max(initial=0)) + 2
    order = np.argsort(shingle * span + sizes[record], kind="stable")
    record, shingle = record[order], shingle[order]
    largest = np.minimum(np.floor(sizes[record] / threshold + 1e-9).astype(np.int64), span - 1)
    keys = shingle * span + sizes[record]
    ends = np.searchsorted(keys, shingle * span + largest, side="right")
    partners = ends - np.arange(len(ends)) - 1
    total = np.cumsum(partners)
    start = 0
    while start < len(record):
        done = total[start] - partners[start]
        stop = int(np.searchsorted(total, done + _PAIRS_AT_ONCE, side="right"))
        stop = max(stop, start + 1)
        counts = partners[start:stop]
        left = np.repeat(np.arange(start, stop), counts)
        ahead = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        pairs = np.stack([record[left], record[left + ahead]], axis=1)
        yield np.sort(pairs, axis=1)
        start = stop


def _sketches(sets: _Sets) -> Words:
    """A bitmap per set, in which each member sets one bit."""
    import numpy as np

    record = np.repeat(np.arange(len(sets.sizes)), sets.sizes)
    mixed = sets.members.astype(np.uint64) * np.uint64(_MIX[0]) >> np.uint64(32)
    place = mixed % np.uint64(64 * _SKETCH_WORDS)
    sketches = np.zeros((len(sets.sizes), _SKETCH_WORDS), dtype=np.uint64)
    bits = np.uint64(1) << place % np.uint64(64)
    np.bitwise_or.at(sketches, (record, place // np.uint64(64)), bits)
    return sketches


def _overlap(sets: _Sets, pairs: Ints, threshold: float) -> NDArray[np.bool_]:
    """Flags of the pairs whose Jaccard similarity reaches the threshold; empty sets match none."""
    import numpy as np

    sizes = sets.sizes[pairs].sum(axis=1)
    width = int(sets.members.max(initial=0)) + 1
    shared = np.zeros(len(pairs), dtype=np.int64)
    total = np.cumsum(sizes)
    start = 0
    while start < len(pairs):
        done = total[start] - sizes[start]
        stop = int(np.searchsorted(total, done + _MEMBERS_AT_ONCE, side="right"))
        stop = max(stop, start + 1)
        part = pairs[start:stop].ravel()
        lengths = sets.sizes[part]
        begins = sets.offsets[part] - (np.cumsum(lengths) - lengths)
        members = sets.members[np.repeat(begins, lengths) + np.arange(lengths.sum())]
        pair = np.repeat(np.arange(len(part)) // 2, lengths)
        keys = np.sort(pair * width + members)
        twice = keys[1:][keys[1:] == keys[:-1]]
        shared[start:stop] = np.bincount(twice // width, minlength=stop - start)
        start = stop
    enough: NDArray[np.bool_] = shared >= threshold * (sizes - shared) - 1e-9
    return enough & (shared > 0)
