"""Values: each maker returns a value as worded in a sentence, and as written in the answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from pretraining.text.words import FIRST_NAMES, LAST_NAMES, capital, pools, spell

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
Value = tuple[str, Json]
Maker = Callable[[Random], Value]

_ALTERNATIVES = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_NUMBER = re.compile(r"\{(\d+)-(\d+)\}")
_UNITS = """
    kg g mg ml cl l litres metres m cm mm km tons pieces packs bags boxes crates sets rolls
    sheets bottles cups spoons buckets units drops bars grams volts watts percent points cans
    jars handfuls barrels trays
""".split()
_PARTS = """
    left right upper lower front back inner outer main second third old new north south east
    west middle top bottom rear far side
""".split()
_MANNERS = """
    rattling squeaking dripping flickering humming leaking buzzing scraping grinding clicking
    whistling wobbling sticking blinking fading cracking peeling creaking knocking hissing
    sagging sinking drifting shaking slipping smoking glowing ringing rusting loose torn bent
    dull sharp dry wet stiff heavy slight strong weak slow sudden constant odd dark pale
    sticky hollow deep brown grey yellow dirty dusty cold hot soft hard uneven frequent daily
    stubborn light faint lasting recurring nightly growing
""".split()
_FAULTS = """
    noise crack leak stain smell dent hole gap scratch spot shake drip glow draught mark ring
    tear drop jam hum loss rust fog dust bend knock echo delay click drift gust heat pressure
    burn weight pull twist strain stop error lag
""".split()
_PREPOSITIONS = """
    in on under near behind above around inside below at along between across
""".split()
_TIMES = """in the morning|at noon|at night|in the evening|every morning|every evening|every night
|every day|every Monday|every Friday|every weekend|every other day|on Sundays|on weekdays|daily
|weekly|monthly|hourly|once|now and then|when needed|only when it rains|at sunrise|before lunch
|after lunch|with each shift|after closing|before opening|at the start of the month|every hour
|on market days|each spring|each autumn|around midnight|after work|before the first shift
|with breakfast|before dinner|with every load|at six o'clock|all day""".replace("\n", "").split("|")
_COUNTS = ["once", "twice", "three times", "four times", "five times", "six times"]
_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}


def expand(rng: Random, text: str) -> str:
    """Decide `[one|another]` and `{1-9}` in a sentence."""
    while match := _ALTERNATIVES.search(text):
        choice = rng.choice(match[1].split("|"))
        text = text[: match.start()] + choice + text[match.end() :]
    return _NUMBER.sub(lambda m: str(rng.randint(int(m[1]), int(m[2]))), text)


def _same(make: Callable[[Random], str]) -> Maker:
    def value(rng: Random) -> Value:
        text = make(rng)
        return text, text

    return value


def invented(rng: Random) -> str:
    """A word that does not exist."""
    return pools().invented(rng)


def _word(kind: str) -> Callable[[Random], str]:
    return lambda rng: pools().word(rng, kind)


def first_name(rng: Random) -> str:
    """A given name, half of them invented."""
    return rng.choice(FIRST_NAMES) if rng.random() < 0.5 else capital(invented(rng))


def full_name(rng: Random) -> str:
    """A given name and a family name."""
    last = rng.choice(LAST_NAMES) if rng.random() < 0.4 else capital(invented(rng))
    return f"{first_name(rng)} {last}"


def person(rng: Random) -> str:
    """A full name, a given name or a family name with a title."""
    chance = rng.random()
    if chance < 0.6:
        return full_name(rng)
    if chance < 0.85:
        return first_name(rng)
    return f"{rng.choice(('Mr', 'Mrs', 'Ms'))} {rng.choice(LAST_NAMES)}"


def place(rng: Random) -> str:
    """A place name, half of them invented."""
    if rng.random() < 0.5:
        return pools().word(rng, "place")
    return capital(invented(rng))


def thing(rng: Random) -> str:
    """A thing of one to three words: known, invented, or a mixture."""
    word = pools().word
    chance = rng.random()
    if chance < 0.3:
        return word(rng, "artifact")
    if chance < 0.42:
        return word(rng, "food")
    if chance < 0.52:
        return word(rng, rng.choice(("animal", "plant", "substance")))
    if chance < 0.72:
        return invented(rng)
    if chance < 0.84:
        return f"{word(rng, 'adjective')} {word(rng, 'noun')}"
    if chance < 0.93:
        return f"{invented(rng)} {word(rng, 'common')}"
    return f"{word(rng, 'adjective')} {invented(rng)} {word(rng, 'tool')}"


def brand(rng: Random) -> str:
    """An invented word, in upper or lower case."""
    word = invented(rng)
    return word if rng.random() < 0.65 else capital(word)


def finding(rng: Random) -> str:
    """Something noticed, of two to six words: "dull knock in the left pump"."""
    word = pools().word
    quality = rng.choice(_MANNERS) if rng.random() < 0.6 else word(rng, "adjective")
    what = rng.choice(_FAULTS) if rng.random() < 0.4 else word(rng, rng.choice(("tool", "common")))
    text = f"{quality} {what}"
    if rng.random() < 0.25:
        text = f"{what}" if rng.random() < 0.4 else f"{rng.choice(_MANNERS)} {text}"
    if rng.random() < 0.5:
        where = (
            word(rng, rng.choice(("tool", "common", "noun"))) if rng.random() < 0.8 else thing(rng)
        )
        part = f"{rng.choice(_PARTS)} " if rng.random() < 0.5 else ""
        text += f" {rng.choice(_PREPOSITIONS)} the {part}{where}"
    return text


def phrase(rng: Random) -> str:
    """A few words that belong together."""
    word = pools().word
    shape = rng.choice(("{a} {n}", "{n} of {m}", "{n} of the {m}", "{a} {n} for {m}"))
    return shape.format(a=word(rng, "adjective"), n=word(rng, "common"), m=word(rng, "noun"))


def words(rng: Random) -> str:
    """Two to four words that do not belong together."""
    makers = (invented, _word("noun"), _word("adjective"), _word("verb"))
    return " ".join(rng.choice(makers)(rng) for _ in range(rng.randint(2, 4)))


def code(rng: Random) -> str:
    """A code such as "KB-4107"."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVXZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}{rng.choice(('-', '', '/', ' '))}{rng.randint(10, 99999)}"


def date(rng: Random) -> str:
    """A calendar date."""
    return f"{rng.randint(2015, 2031)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def clock(rng: Random) -> str:
    """A time of day."""
    return f"{rng.randint(0, 23)}:{rng.randint(0, 11) * 5:02d}"


def integer(rng: Random) -> int:
    """A whole number; small and round ones more often."""
    chance = rng.random()
    if chance < 0.35:
        return rng.randint(1, 12)
    if chance < 0.65:
        return rng.randint(2, 99)
    if chance < 0.85:
        return rng.choice((5, 25, 75, 1, 2, 3, 4, 6, 8, 12, 15)) * rng.choice((10, 10, 100))
    return rng.randint(100, 9999)


def _count(rng: Random) -> Value:
    number = rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 24, 30))
    return (spell(number) if rng.random() < 0.4 else str(number)), number


def _integer(rng: Random) -> Value:
    number = integer(rng)
    return str(number), number


def _years(rng: Random) -> Value:
    number = rng.randint(1, 99)
    return (spell(number) if rng.random() < 0.15 else str(number)), number


def _decimal(rng: Random) -> Value:
    number = rng.randint(10, 999) / 10 if rng.random() < 0.8 else rng.randint(100, 9999) / 100
    return str(number), number


def _money(rng: Random) -> Value:
    number = rng.choice((rng.randint(1, 500), rng.randint(100, 9999) / 100))
    return str(number), number


def amount(rng: Random) -> str:
    """A number and a unit."""
    number = integer(rng) if rng.random() < 0.85 else rng.randint(1, 99) / 10
    return f"{number} {rng.choice(_UNITS)}"


def rhythm(rng: Random) -> str:
    """How often, or when."""
    chance = rng.random()
    if chance < 0.4:
        return rng.choice(_TIMES)
    if chance < 0.7:
        unit = rng.choice(("day", "week", "month", "hour", "shift", "year", "season"))
        times = rng.choice(_COUNTS) if rng.random() < 0.8 else f"{rng.randint(2, 9)} times"
        return f"{times} {rng.choice(('a', 'a', 'per', 'each'))} {unit}"
    number = rng.randint(2, 12)
    shown = spell(number) if rng.random() < 0.5 else str(number)
    return f"every {shown} {rng.choice(('hours', 'days', 'weeks', 'months', 'minutes'))}"


def _duration(rng: Random) -> tuple[str, int]:
    unit = rng.choice(("day", "day", "week", "week", "month", "year"))
    number = rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 20))
    if rng.random() < 0.03:
        return "a fortnight", 14
    if number == 1:
        return f"{rng.choice(('a', 'one', '1'))} {unit}", _DAYS[unit]
    shown = spell(number) if rng.random() < 0.5 else str(number)
    return f"{shown} {unit}s", number * _DAYS[unit]


def _span(rng: Random) -> Value:
    if rng.random() < 0.15:
        text = f"{rng.randint(2, 48)} {rng.choice(('hours', 'minutes', 'nights', 'seasons'))}"
    else:
        text = _duration(rng)[0]
    return text, text


MAKERS: dict[str, Maker] = {
    "person": _same(person),
    "full": _same(full_name),
    "place": _same(place),
    "thing": _same(thing),
    "brand": _same(brand),
    "finding": _same(finding),
    "phrase": _same(phrase),
    "words": _same(words),
    "code": _same(code),
    "date": _same(date),
    "clock": _same(clock),
    "amount": _same(amount),
    "rhythm": _same(rhythm),
    "unit": _same(lambda rng: rng.choice(_UNITS)),
    "count": _count,
    "integer": _integer,
    "years": _years,
    "decimal": _decimal,
    "money": _money,
    "span": _span,
    "days": _duration,
    "invented": _same(invented),
    **{
        kind: _same(_word(kind))
        for kind in ("artifact", "tool", "food", "animal", "plant", "substance", "job", "activity")
    },
}
"""Every kind of value by the name that domain files use."""
