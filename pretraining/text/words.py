"""Word pools: WordNet without anything medical, the project's own names, and invented words.

WordNet comes from the Debian package ``wordnet-base``; it is needed to rebuild the base, never to
use it. The base must not know the task of the later demonstration, so every word with a medical
definition is left out.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

WORDNET = Path("/usr/share/wordnet")

# Words, and beginnings of words, that keep a WordNet entry out when its definition has them.
MEDICAL = re.compile(
    r"\b(drug|medic|diseas|symptom|patient|pain|ache|disorder|infect|inflam|illness|fever|clinic"
    r"|tumou?r|syndrome|therap|dose|dosage|vaccin|antibio|swelling|swollen|cough|nausea|vomit|rash"
    r"|allerg|surg|doctor|physician|nurse|hospital|pharma|prescri|blood|diagnos|treatment|remedy"
    r"|anesthe|anaesthe|sedat|narcotic|opiate|hormone|cardi|neuro|dermat|gastro|orthop|pill\b"
    r"|tablet|diarrh|itch|dizz|bleed|wound|injur|bacteri|virus|viral|cancer|skin\b|headache"
    r"|stomach|heart\b|organ\b|bodily|body part|muscle|nerve|gland|tissue|anatom|trade name"
    r"|trademark|antihist|used to treat|relieve|laxative|abortion|ailment|cramp|insomnia|faint"
    r"|penicill|insulin|aspirin|steroid)",
    re.IGNORECASE,
)
# Likewise for what nobody wants to read in generated text.
UNFIT = re.compile(
    r"\b(sex|genital|breast|penis|vagin|orgas|masturb|prostitut|vulgar|obscen|offensive|slang|slur"
    r"|derogat|disparag|racis|negro|ethnic|nazi|rape|incest|nude|naked|corpse|murder|suicid|tortur"
    r"|lesbian|homosex|whore|excre|feces|urin|buttock|sodom|porn)",
    re.IGNORECASE,
)

# Words of that task itself, which must become neither names of properties nor their values.
_TASK = frozenset(
    """symptom medication duration severity specialty urgency frequency age reply temperature
    emergency routine mild moderate severe""".split()
)

# WordNet's numbers for kinds of noun (lexnames): body parts and states are left out whole.
_BODY, _STATE = 8, 26
_ACT, _ANIMAL, _ARTIFACT, _FOOD, _PLACE, _PERSON, _PLANT, _SUBSTANCE = 4, 5, 6, 13, 15, 18, 20, 27

FIRST_NAMES = """
    Ada Agnes Alan Albert Alma Amir Ana Anders Anton Aria Arthur Astrid Bao Beatrice Ben
    Bianca Bodo Boris Carla Cecil Cem Chen Clemens Colin Cora Dana Della Diego Dora Edgar
    Edwin Elena Eli Ella Emil Enzo Esra Ezra Farah Fergus Fiona Floyd Gita Gloria Gustav Hana
    Harold Hedda Ida Igor Imani Ines Iris Jack Jana Joel Jonas Judith Kai Keiko Kira Lars Leo
    Levi Lina Lionel Luca Magda Maja Marco Marta Mei Milan Mina Moritz Nell Nico Noor Oleg
    Olga Orla Otto Paula Pavel Petra Piotr Priya Quentin Quinn Rafael Rana Rita Ruben Sabine
    Sam Sara Selim Sven Tara Theo Tilda Tom Uma Ursula Vera Viktor Vito Wanda Wei Willa Xenia
    Yara Yusuf Zelda
""".split()
LAST_NAMES = """
    Abbott Adler Almeida Andersson Bakker Bauer Beck Bennett Bianchi Brandt Byrne Carter
    Castro Chavez Conti Crane Dahl Diaz Doyle Duran Egger Eriksen Faber Ferrari Flores
    Fontaine Frost Garza Graf Gruber Haas Hansen Hofer Holt Hughes Ito Ivanov Jansen Kaya
    Klein Koch Kovac Kumar Lang Leclerc Lind Lowe Maier Marino Mendes Morris Nagy Nash Novotny
    Nunez Okafor Olson Osman Patel Pereira Pohl Popov Quade Ramos Reyes Richter Roth Sato
    Schmid Sharma Sorensen Stone Suzuki Takeda Thorne Toth Urban Vargas Vogel Wagner Walsh
    Weiss Winter Wolf Yang Yilmaz Zhang Zimmer
""".split()

_ONES = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen
""".split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ou", "y", "io", "ie"]
_CONSONANTS = """
    b c d f g h j k l m n p qu r s t v w x z br cl cr dr fl gr kl pl pr sc st str tr th sh ch
    sp zy xe
""".split()
_ENDS = ["", "", "n", "r", "s", "l", "x", "nd", "t", "m", "ck", "rg", "v", "z", "ph", "nt", "ne"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One meaning in WordNet: its words, its definition, an example, how often it is used."""

    part: str
    words: tuple[str, ...]
    definition: str
    example: str
    count: int


@dataclass(frozen=True)
class Pools:
    """Words by kind, WordNet's meanings, adjectives alike, and letters that follow two letters."""

    by_kind: dict[str, list[str]]
    entries: list[Entry]
    synonyms: dict[str, list[str]]
    followers: dict[str, list[str]] = field(repr=False)

    def word(self, rng: Random, kind: str) -> str:
        """Some word of a kind, such as "artifact" or "adjective"."""
        return rng.choice(self.by_kind[kind])

    def invented(self, rng: Random) -> str:
        """A word that does not exist: from WordNet's letter statistics, or from syllables."""
        if rng.random() < 0.5:
            for _ in range(9):
                word = self._from_letters(rng)
                if 4 <= len(word) <= 13 and not _unwanted(word):
                    return word
        while True:
            syllables = rng.choice((1, 2, 2, 3, 3, 4))
            word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
            word += rng.choice(_ENDS)
            if not _unwanted(word):
                return word

    def _from_letters(self, rng: Random) -> str:
        word = "^^"
        while len(word) < 16:
            letter = rng.choice(self.followers[word[-2:]])
            if letter == "$":
                break
            word += letter
        return word[2:]


def _unwanted(text: str) -> bool:
    return bool(MEDICAL.search(text) or UNFIT.search(text))


@cache
def pools() -> Pools:
    """Read WordNet.

    Raises:
        FileNotFoundError: the Debian package ``wordnet-base`` is not installed.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for line in (WORDNET / "cntlist.rev").read_text().splitlines():
        sense, _, count = line.split()
        lemma, numbers = sense.split("%")
        counts[lemma, numbers[0]] += int(count)
    entries: list[Entry] = []
    seen: dict[str, dict[str, int]] = {}
    unwanted = set(_TASK)
    for part, code in (("noun", "1"), ("verb", "2"), ("adj", "3"), ("adv", "4")):
        kinds = seen.setdefault(part, {})
        for line in (WORDNET / f"data.{part}").read_text(errors="ignore").splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, gloss = line.split("|", 1)
            fields = head.split()
            kind = int(fields[1])
            words = [
                re.sub(r"\(.*\)", "", fields[4 + 2 * i]).replace("_", " ")
                for i in range(int(fields[3], 16))
            ]
            text = " ".join((gloss, *words))
            if _unwanted(text) or (part == "noun" and kind in (_BODY, _STATE)):
                unwanted.update(words)
                continue
            for word in words:
                kinds.setdefault(word, kind)
            definition, *rest = gloss.strip().split("; ")
            example = next((r.strip('" ') for r in rest if r.startswith('"')), "")
            used = sum(counts[word.lower().replace(" ", "_"), code] for word in words)
            entries.append(Entry(part, tuple(words), definition.strip(), example, used))

    def pick(
        part: str, code: str, kinds: set[int] | None, least: int, *, two: bool = False
    ) -> list[str]:
        shape = re.compile(r"[a-z]{3,14}( [a-z]{3,10})?" if two else r"[a-z]{3,14}")
        return [
            word
            for word, kind in seen[part].items()
            if word not in unwanted
            and (kinds is None or kind in kinds)
            and shape.fullmatch(word)
            and counts[word.replace(" ", "_"), code] >= least
        ]

    by_kind = {
        "artifact": pick("noun", "1", {_ARTIFACT}, 0, two=True),
        "tool": pick("noun", "1", {_ARTIFACT}, 1),
        "food": pick("noun", "1", {_FOOD}, 0, two=True),
        "animal": pick("noun", "1", {_ANIMAL}, 0),
        "plant": pick("noun", "1", {_PLANT}, 0),
        "substance": pick("noun", "1", {_SUBSTANCE}, 0),
        "job": pick("noun", "1", {_PERSON}, 1),
        "activity": pick("noun", "1", {_ACT}, 1),
        **{
            f"known {name}": pick("noun", "1", {kind}, 1)
            for name, kind in (
                ("animal", _ANIMAL),
                ("plant", _PLANT),
                ("food", _FOOD),
                ("person", _PERSON),
                ("substance", _SUBSTANCE),
                ("activity", _ACT),
                ("tool", _ARTIFACT),
            )
        },
        "noun": pick("noun", "1", None, 2),
        "common": pick("noun", "1", None, 8),
        "any": pick("noun", "1", None, 0, two=True),
        "adjective": pick("adj", "3", None, 1),
        "verb": pick("verb", "2", None, 2),
        "adverb": pick("adv", "4", None, 1),
        "place": [
            word
            for word, kind in seen["noun"].items()
            if kind == _PLACE and word.isalpha() and word[0].isupper() and word not in unwanted
        ],
    }
    followers: dict[str, list[str]] = defaultdict(list)
    for word in by_kind["any"]:
        if word.isalpha():
            padded = f"^^{word}$"
            for i in range(len(padded) - 2):
                followers[padded[i : i + 2]].append(padded[i + 2])
    common = set(by_kind["adjective"])
    synonyms: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        same = [word for word in entry.words if word in common]
        if entry.part == "adj":
            for word in same:
                synonyms[word] += [other for other in same if other != word]
    return Pools(by_kind, entries, dict(synonyms), dict(followers))


def spell(number: int) -> str:
    """A whole number in words, as in "four hundred and twelve"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {spell(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    return f"{spell(thousands)} thousand" + (f" {spell(rest)}" if rest else "")


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
