"""The corpus: an endless mixture of document families, determined by a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from pretraining.text import drills, language, records, sorting
from pretraining.text.document import Document

Family = Callable[[Random], Document]

FAMILIES: dict[str, tuple[Family, float]] = {
    "known domains, properties named": (records.known, 0.13),
    "known domains, whole record": (records.whole, 0.13),
    "invented domains, properties named": (records.invented, 0.18),
    "invented domains, shown by examples": (records.shown, 0.12),
    "copying": (drills.copying, 0.14),
    "induction": (drills.induction, 0.09),
    "conversion": (drills.conversion, 0.06),
    "numbers": (drills.numbers, 0.04),
    "sorting": (sorting.sorting, 0.14),
    "definitions": (language.definition, 0.06),
    "prose": (language.prose, 0.05),
}
"""Every family with its share of the documents."""

UNTRAINED: dict[str, Family] = {
    "unknown domains, properties named": records.unknown,
    "unknown domains, shown by examples": records.unknown_shown,
}
"""Families used only in the evaluation."""


def documents(seed: str) -> Iterator[Document]:
    """Endless documents; the same for the same seed."""
    rng = Random(seed)
    families = [family for family, _ in FAMILIES.values()]
    shares = [share for _, share in FAMILIES.values()]
    while True:
        yield rng.choices(families, shares)[0](rng)


def text(document: Document) -> str:
    """A document without its weights."""
    return "".join(piece for piece, _ in document)
