"""Sorting tasks: the kind of the first thing named, where it goes, and how strong a wording is.

The kinds are WordNet's own (animal, plant, food, ...), so that a closed choice follows from what a
word means, not from its letters.
"""

from __future__ import annotations

from random import Random

from pretraining.text import values
from pretraining.text.document import Document, compact, some_system, turns
from pretraining.text.slots import join, with_article
from pretraining.text.values import Json, expand
from pretraining.text.words import capital, pools

_HOMES = {
    "animal": "barn", "plant": "garden", "food": "kitchen", "person": "office",
    "substance": "cellar", "activity": "calendar", "tool": "workshop",
}  # fmt: skip
_FOUND = (
    "We found {}.", "Here is {}.", "Somebody left {}.", "The box holds {}.", "{} arrived today.",
    "Please sort {}.", "On the table: {}.", "I wrote down {}.", "They asked about {}.",
    "Next comes {}.", "Nobody knows where {} belongs.", "Listed: {}.", "It is about {}.",
)  # fmt: skip
_WORDINGS = {
    "low": (
        "It can wait.", "There is no hurry.", "Take your time.", "Some day is fine.",
        "It hardly matters.", "Only if you have nothing else to do.", "Not pressing at all.",
        "Priority {1-3} of 10.", "It is a small matter.", "Nobody is waiting for it.",
    ),
    "normal": (
        "The usual pace is fine.", "Within a few days, please.", "It is of medium weight.",
        "Priority {4-6} of 10.", "As always.", "This week would be good.", "Nothing special.",
        "It matters somewhat.", "Some people wait for it.", "An ordinary case.",
    ),
    "high": (
        "It cannot wait.", "Please hurry!", "At once, please.", "Everybody is waiting for it.",
        "Priority {7-9} of 10.", "It is the most pressing thing.", "Drop everything else.",
        "This is a very big matter.", "Today, or it is too late.", "We stand still until then.",
    ),
}  # fmt: skip
_NAMES = (
    ("items", "kind", "weight", "place", "note"),
    ("things", "sort", "priority", "room", "message"),
    ("objects", "type", "level", "goes_to", "remark"),
    ("list", "class", "pressing", "destination", "line"),
)
_NOTES = {
    "low": "Put the {i} in the {h} some day.",
    "normal": "The {i} goes to the {h}.",
    "high": "Bring the {i} to the {h} now!",
}


def _item(rng: Random, kind: str) -> str:
    word = pools().word(rng, f"known {kind}")
    shape = rng.random()
    if shape < 0.3:
        return word
    if shape < 0.8:
        return f"{pools().word(rng, 'adjective')} {word}"
    return f"{word} {rng.choice(('near', 'from', 'behind'))} the {pools().word(rng, 'common')}"


def sorting(rng: Random) -> Document:
    """Things with a wording of how much they matter → the kind of the first, and what follows."""
    kinds = [rng.choice(tuple(_HOMES)) for _ in range(rng.choice((1, 1, 2, 3)))]
    items = list(dict.fromkeys(_item(rng, kind) for kind in kinds))
    level = rng.choice(tuple(_WORDINGS))
    shown = items if rng.random() < 0.6 else [with_article(rng, item) for item in items]
    found = rng.choice(_FOUND).replace("{}", join(rng, shown))
    sentences = [capital(found), expand(rng, rng.choice(_WORDINGS[level]))]
    span, when = values.MAKERS["span"](rng)
    if rng.random() < 0.4:
        sentences.append(f"It has been there for {span}.")
    else:
        when = None
    rng.shuffle(sentences)
    listed, kind, weight, home, note = rng.choice(_NAMES)
    room = _HOMES[kinds[0]]
    record: dict[str, Json] = {
        listed: [*items], "since": when, kind: kinds[0], weight: level, home: room,
        note: _NOTES[level].format(i=items[0], h=room),
    }  # fmt: skip
    keep = [name for name in record if rng.random() < 0.8] or [kind]
    answer = compact({name: record[name] for name in keep})
    text = " ".join(sentences)
    asked = text if rng.random() < 0.5 else f"{text}\n\n{', '.join(keep)}"
    if asked == text:
        answer = compact(record)
    return turns([(asked, answer)], system=some_system(rng, 0.3))
