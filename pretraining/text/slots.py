"""Slots: the properties of a record, and the sentences that express them.

A slot is expressed by one sentence (or none), and yields one property of the answer. A rule has no
sentence; its value follows from the other properties.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from pretraining.text.values import MAKERS, Json, Value, expand

Told = tuple[str, Json]
"""A sentence, which may be empty, and the value it expresses."""

_MARK = re.compile(r"\{(\w+)\}")
_ARTICLES = ("the", "some", "a few", "my", "one", "another")


def join(rng: Random, items: list[str]) -> str:
    """Join items as people do: "a, b and c", "a; b; c" or lines with dashes."""
    if len(items) == 1:
        return items[0]
    first, last = ", ".join(items[:-1]), items[-1]
    chance = rng.random()
    if chance < 0.5:
        return f"{first} and {last}"
    if chance < 0.62:
        return ", ".join(items)
    if chance < 0.72:
        return f"{first}, and {last}"
    if chance < 0.79:
        return "; ".join(items)
    if chance < 0.84:
        return " and ".join(items)
    if chance < 0.94:
        return first + rng.choice((" plus ", " as well as ", " along with ", " and also ")) + last
    return "".join(f"\n- {item}" for item in items)


def with_article(rng: Random, item: str) -> str:
    """The item as a sentence shows it; the article is not part of the value."""
    if rng.random() < 0.55:
        article = "an" if item[0] in "aeiou" else "a"
    else:
        article = rng.choice(_ARTICLES)
    return f"{article} {item}"


@dataclass(frozen=True)
class Slot:
    """One property: its possible names, its kind and its sentences.

    `kind` is the name of a maker, or list, objects, flag, choice or rule. `telling` holds the
    sentences: plain ones, ones by value, or conditions of a rule. `absent` holds the sentences
    without a value ("" adds no sentence); a slot with such sentences can be null or empty.
    """

    names: tuple[str, ...]
    kind: str
    telling: tuple[tuple[str, str], ...]
    absent: tuple[str, ...] = ()
    item: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    forms: tuple[str, ...] = ()
    most: int = 4

    @property
    def needs(self) -> set[str]:
        """Names of the slots that a rule's texts are filled in from."""
        return {name for _, text in self.telling for name in _MARK.findall(text)}

    def tell(self, rng: Random) -> Told:
        """A random sentence with its value."""
        if self.kind in ("flag", "choice"):
            return self._tell_choice(rng)
        if self.absent and rng.random() < 0.3:
            empty: Json = [] if self.kind in ("list", "objects") else None
            return expand(rng, rng.choice(self.absent)), empty
        sentence = expand(rng, rng.choice(self.telling)[1])
        if self.kind == "list":
            shown, value = self._items(rng)
        elif self.kind == "objects":
            shown, value = self._objects(rng)
        else:
            shown, value = MAKERS[self.kind](rng)
        return sentence.replace("{}", shown), value

    def _tell_choice(self, rng: Random) -> Told:
        label = rng.choice(sorted({label for label, _ in self.telling}))
        sentence = rng.choice([s for other, s in self.telling if other == label])
        value: Json = label == "+" if self.kind == "flag" else label
        return expand(rng, sentence), value

    def _items(self, rng: Random) -> Value:
        count = min(self.most, rng.choice((1, 1, 2, 2, 3, 3, 4)))
        items = list(dict.fromkeys(str(MAKERS[self.item](rng)[1]) for _ in range(count)))
        bare = rng.random() < 0.6
        shown = [item if bare or rng.random() < 0.4 else with_article(rng, item) for item in items]
        values: list[Json] = [*items]
        return join(rng, shown), values

    def _objects(self, rng: Random) -> Value:
        form = rng.choice(self.forms)
        shown, values = [], list[Json]()
        for _ in range(min(self.most, rng.choice((1, 1, 1, 2, 2, 3)))):
            text, value = expand(rng, form), dict[str, Json]()
            for key, kind in self.fields:
                read, value[key] = MAKERS[kind](rng)
                text = text.replace("{" + key + "}", read)
            shown.append(text)
            values.append(value)
        return join(rng, shown), values

    def derive(self, record: dict[str, Json]) -> Json:
        """The value of a rule: of its first line whose condition holds and whose names exist."""
        for condition, text in self.telling:
            if condition and not _holds(condition, record):
                continue
            filled = _fill(text, record)
            if filled is not None:
                return filled
        return None


def _holds(condition: str, record: dict[str, Json]) -> bool:
    key, _, wanted = condition.partition("=")
    value = record.get(key)
    if isinstance(value, bool):
        return str(value).lower() == wanted
    if wanted == "none":
        return not value
    return value == wanted


def _fill(text: str, record: dict[str, Json]) -> str | None:
    """Replace `{name}` by the record's values; None if one is missing."""
    for key, value in record.items():
        mark = "{" + key + "}"
        if mark not in text:
            continue
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, dict):
            value = next(iter(value.values()))
        if value is None:
            return None
        text = text.replace(mark, str(value))
    return text
