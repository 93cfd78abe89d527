"""Write the synthetic medical question-answer data of this folder.

``python generate.py`` rewrites ``train.jsonl`` and ``held_out.jsonl`` byte for byte;
``python generate.py FOLDER`` writes them elsewhere. Sentence patterns live in ``phrases_*.txt``,
words in ``medical_words.py``. No real patient, no medical advice.
"""

from __future__ import annotations

import json
import random
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import medical_words as words

HERE = Path(__file__).resolve().parent
SEED = 20
TRAIN_ROWS, SEEN_ROWS, UNSEEN_ROWS = 900, 150, 150

# Dealt like cards, so that every part has the same shares.
RED_FLAGS = [True] * 3 + [False] * 8
ALLERGIC = [True] * 4 + [False] * 7
REPLIES = {
    "emergency": "Go to emergency care now with the {symptom}.",
    "soon": "See {department} soon about the {symptom}.",
    "routine": "Book a visit with {department} for the {symptom}.",
}
# How each style lists things: the separator, and the one before the last item.
LISTS = {"message": [(", ", " and ")], "note": [(", ", " and "), (", ", ", "), ("; ", "; ")]}

T = TypeVar("T")
Frames = dict[str, list[str]]


@dataclass(frozen=True)
class Symptom:
    """One complaint, and the word in it that decides the specialty."""

    text: str
    decider: str
    specialty: str
    countable: bool


@dataclass
class Row:
    """One pair, with the facts about its making that the tests check."""

    prompt: str
    answer: dict[str, Any]
    frames: set[str]
    deciders: list[str]

    def as_json(self, part: str | None = None) -> str:
        """The line of the data file."""
        row = {"prompt": self.prompt, "response": compact(self.answer)}
        return compact(row | ({"part": part} if part else {}))


@dataclass
class Decks:
    """Deals every item of a pool once before any repeats, so that nothing is over-used."""

    rng: random.Random
    left: dict[str, list[Any]] = field(default_factory=dict)

    def draw(self, name: str, pool: Sequence[T]) -> T:
        """The next item of the pool called ``name``."""
        if not self.left.get(name):
            self.left[name] = self.rng.sample(pool, len(pool))
        item: T = self.left[name].pop()
        return item


def compact(value: Any) -> str:
    """Canonical JSON: given key order, no spaces, plain unicode."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def load_frames(path: Path) -> Frames:
    """Sentence patterns by ``style.slot``."""
    frames: Frames = {}
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line.startswith("["):
            current = frames.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return frames


def all_symptoms(new: bool) -> Iterator[Symptom]:
    """Every symptom the words allow; ``new`` ones use a quality word that training never shows."""
    for specialty, places in words.PLACES.items():
        for place in places:
            decider = place.split()[-1].replace("{side}", "")
            qualities = words.NEW_QUALITIES if new else words.FEELING_QUALITIES
            for feeling in words.FEELINGS[specialty]:
                forms = [f"{feeling} {spot}" for spot in sides(place)]
                if decider in words.COMPOUNDS:
                    # Repeated, so that the short form is twice as frequent as the long one.
                    short = f"{'lower ' if decider == 'back' else ''}{decider} {feeling}"
                    forms += [short] * 2 * len(forms)
                for quality in qualities:
                    for form in forms:
                        countable = feeling in words.COUNTABLE
                        yield Symptom(f"{quality} {form}", decider, specialty, countable)
    for specialty, nouns in words.NOUNS.items():
        for noun in nouns:
            known = words.NOUN_QUALITIES
            qualities = known.get(noun) or known.get(specialty) or known["default"]
            by_noun = words.NOUN_PLACES
            places = by_noun.get(noun) or by_noun.get(specialty) or [""]
            for quality in words.NEW_QUALITIES if new else qualities:
                for spot in [spot for place in places for spot in sides(place)]:
                    text = f"{quality} {noun} {spot}".strip()
                    yield Symptom(text, noun, specialty, noun in words.COUNTABLE)


def sides(place: str) -> list[str]:
    """The place with and without a side."""
    if "{side}" not in place:
        return [place]
    return [place.format(side=side) for side in ("left ", "right ", "")]


def symptom_pool(held_out: bool, new: bool = False) -> dict[str, dict[str, list[Symptom]]]:
    """Symptoms by specialty and deciding word: one combination in four is kept for held-out."""
    pool: dict[str, dict[str, list[Symptom]]] = {}
    for symptom in all_symptoms(new):
        if new or (zlib.crc32(symptom.text.encode()) % 4 == 0) == held_out:
            pool.setdefault(symptom.specialty, {}).setdefault(symptom.decider, []).append(symptom)
    return pool


def joined(items: Sequence[str], comma: str, last: str) -> str:
    """``a, b and c``, or ``a; b; c``."""
    return items[0] if len(items) == 1 else comma.join(items[:-1]) + last + items[-1]


class Writer:
    """Writes rows from one set of sentence patterns and one set of words."""

    def __init__(self, seed: int, frames: Frames, held_out: bool) -> None:
        self.rng = random.Random(seed)
        self.decks = Decks(self.rng)
        self.frames = frames
        self.held_out = held_out
        self.symptoms = symptom_pool(held_out)
        self.new_symptoms = symptom_pool(held_out, new=True)
        self.used: set[str] = set()

    def word(self, name: str) -> Any:
        """A word that is wholly new in held-out data, such as a person's or a drug's name."""
        name = f"NEW_{name}" if self.held_out else name
        return self.decks.draw(name, getattr(words, name))

    def number(self, name: str) -> Any:
        """A number that is new in half of the held-out cases."""
        new = self.held_out and self.rng.random() < 0.5
        name = f"NEW_{name}" if new else name
        return self.decks.draw(name, getattr(words, name))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def say(self, slot: str, **values: Any) -> str:
        """One sentence of the slot."""
        frame = self.decks.draw(slot, self.frames[slot])
        self.used.add(frame)
        return frame.format(**values)

    def draw_symptoms(self) -> list[Symptom]:
        """One to four symptoms with different deciding words; the first is the main one."""
        count = self.rng.choices((1, 2, 3, 4), (58, 29, 10, 3))[0]
        main = self.decks.draw("specialty", list(self.symptoms))
        chosen: list[Symptom] = []
        while len(chosen) < count:
            keep = not chosen or self.chance(0.5)
            specialty = main if keep else self.rng.choice(list(self.symptoms))
            decider = self.decks.draw(f"decider {specialty}", list(self.symptoms[specialty]))
            new = self.held_out and self.chance(0.1)
            pool = (self.new_symptoms if new else self.symptoms)[specialty][decider]
            if decider not in [symptom.decider for symptom in chosen]:
                chosen.append(self.rng.choice(pool))
        return chosen

    def spoken(self, symptom: Symptom) -> str:
        """The symptom as said in a message: ``a dull pain``."""
        if not symptom.countable:
            return symptom.text
        return f"{'an' if symptom.text[0] in 'aeiou' else 'a'} {symptom.text}"

    def draw_duration(self) -> str:
        if self.chance(0.12):
            return self.decks.draw("single duration", words.SINGLE_DURATIONS)
        return f"{self.number('COUNTS')} {self.decks.draw('unit', words.UNITS)}"

    def draw_medication(self) -> dict[str, str]:
        in_mg = self.chance(0.65)
        dose = f"{self.number('MILLIGRAMS')} mg" if in_mg else self.number("OTHER_DOSES")
        frequency = self.decks.draw("frequency", words.FREQUENCIES)
        return {"name": self.word("DRUGS"), "dose": dose, "frequency": frequency}

    def draw_answer(self, symptoms: list[Symptom]) -> dict[str, Any]:
        """The answer, in the property order of the schema."""
        count = self.rng.choices((0, 1, 2, 3), (54, 35, 9, 2))[0]
        red_flag = self.decks.draw("red flag", RED_FLAGS)
        severity = self.decks.draw("severity", ["mild", "moderate", "severe"])
        specialty = symptoms[0].specialty
        urgency = "emergency" if red_flag else "soon" if severity == "severe" else "routine"
        department = "the family doctor" if specialty == "general" else specialty
        return {
            "symptoms": [symptom.text for symptom in symptoms],
            "duration": self.draw_duration() if self.chance(0.66) else None,
            "age": self.number("AGES") if self.chance(0.72) else None,
            "temperature_c": self.number("TENTHS") / 10 if self.chance(0.42) else None,
            "medications": [self.draw_medication() for _ in range(count)],
            "allergic": self.decks.draw("allergic", ALLERGIC),
            "red_flag": red_flag,
            "severity": severity,
            "specialty": specialty,
            "urgency": urgency,
            "reply": REPLIES[urgency].format(department=department, symptom=symptoms[0].text),
        }

    def opening(self, style: str, age: int | None) -> list[str]:
        """The greeting with the patient's name; the age inside it or in a sentence of its own."""
        name = f"{self.word('FIRST')} {self.word('LAST')}"
        if age is None:
            return [self.say(f"{style}.hello", name=name)]
        if self.chance(0.6):
            return [self.say(f"{style}.who", name=name, age=age)]
        return [self.say(f"{style}.hello", name=name), self.say(f"{style}.age", age=age)]

    def severity_sentence(self, style: str, severity: str) -> str:
        if self.chance(0.65):
            return self.say(f"{style}.{severity}")
        scores = {"mild": (1, 2, 3), "moderate": (4, 5, 6), "severe": (7, 8, 9, 10)}[severity]
        return self.say(f"{style}.score", score=self.decks.draw(f"score {severity}", scores))

    def optional_sentences(self, style: str, answer: dict[str, Any]) -> Iterator[str]:
        """The sentences behind the fields that a text may leave out."""
        if answer["duration"]:
            yield self.say(f"{style}.duration", duration=answer["duration"])
        if answer["temperature_c"]:
            yield self.say(f"{style}.temperature", temperature=answer["temperature_c"])
        elif self.chance(0.2):
            yield self.say(f"{style}.no_fever")
        if answer["medications"]:
            # One pattern for the whole list, as a person would write it.
            item = self.decks.draw("item", self.frames["item"])
            self.used.add(item)
            items = [item.format(**medication) for medication in answer["medications"]]
            listed = joined(items, *self.rng.choice(LISTS[style]))
            yield self.say(f"{style}.medications", medications=listed)
        elif self.chance(0.5):
            yield self.say(f"{style}.no_medications")
        if answer["allergic"]:
            yield self.say(f"{style}.allergy", allergen=self.word("ALLERGENS"))
        elif self.chance(0.35):
            yield self.say(f"{style}.no_allergy")
        if answer["red_flag"]:
            yield self.say(f"{style}.red_flag")
        elif self.chance(0.35):
            yield self.say(f"{style}.no_red_flag")
        if self.chance(0.4):
            yield self.say(f"{style}.filler")
        if self.chance(0.06):
            number, small = self.rng.randint(11, 89), self.rng.randint(2, 14)
            yield self.say(f"{style}.distractor", number=number, small=small)

    def row(self) -> Row:
        """One pair; half of the texts name the symptoms first, the others anywhere."""
        self.used = set()
        style = "message" if self.chance(0.55) else "note"
        symptoms = self.draw_symptoms()
        answer = self.draw_answer(symptoms)
        texts = [self.spoken(s) if style == "message" else s.text for s in symptoms]
        listed = joined(texts, *self.rng.choice(LISTS[style]))
        complaint = self.say(f"{style}.symptoms", symptoms=listed)
        hello, *rest = self.opening(style, answer["age"])
        rest += [self.severity_sentence(style, answer["severity"])]
        rest += self.optional_sentences(style, answer)
        self.rng.shuffle(rest)
        rest.insert(0 if self.chance(0.5) else self.rng.randint(0, len(rest)), complaint)
        deciders = [symptom.decider for symptom in symptoms]
        return Row(" ".join([hello, *rest]), answer, self.used, deciders)

    def rows(self, count: int) -> list[Row]:
        """``count`` rows with different prompts."""
        rows: dict[str, Row] = {}
        while len(rows) < count:
            row = self.row()
            rows.setdefault(row.prompt, row)
        return list(rows.values())


def build() -> dict[str, list[Row]]:
    """All rows: ``train``, and the held-out parts ``seen`` and ``unseen``."""
    known = load_frames(HERE / "phrases_train.txt")
    unknown = load_frames(HERE / "phrases_unseen.txt")
    return {
        "train": Writer(SEED, known, held_out=False).rows(TRAIN_ROWS),
        "seen": Writer(SEED + 1, known, held_out=True).rows(SEEN_ROWS),
        "unseen": Writer(SEED + 2, unknown, held_out=True).rows(UNSEEN_ROWS),
    }


def write(folder: Path) -> None:
    """Write the two data files."""
    data = build()
    train = [row.as_json() for row in data["train"]]
    held_out = [row.as_json(part) for part in ("seen", "unseen") for row in data[part]]
    for name, lines in (("train.jsonl", train), ("held_out.jsonl", held_out)):
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
