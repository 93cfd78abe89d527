"""Drills: copying, recalling, converting and counting, mostly with words that do not exist.

Extraction depends on copying words of many tokens, so drills come in every form.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from pretraining.text import values
from pretraining.text.document import ANSWER, PROMPT, Document, compact, some_system, turns
from pretraining.text.slots import join, with_article
from pretraining.text.values import MAKERS, Json, invented
from pretraining.text.words import capital, pools, spell


def _item(rng: Random) -> str:
    make: Callable[[Random], str] = rng.choice(
        (invented, invented, values.brand, values.thing, values.finding, values.full_name,
         values.amount, values.rhythm, lambda r: pools().word(r, "noun"))
    )  # fmt: skip
    return make(rng)


def copying(rng: Random) -> Document:
    """Repeat words, list what a sentence enumerates, or pick one of several."""
    items = list(dict.fromkeys(_item(rng) for _ in range(rng.randint(2, 10))))
    chance = rng.random()
    if chance < 0.2:
        text = " ".join(items)
        order = rng.choice(("Repeat: ", "Copy this: ", "Say again: ", "Echo ", "Write down: "))
        return turns([(order + text, text)])
    if chance < 0.5:
        return turns([(_list_order(rng, items), compact([*items]))], system=some_system(rng, 0.2))
    if chance < 0.6:
        word, index = rng.choice((("first", 0), ("second", 1 % len(items)), ("last", -1)))
        return turns([(f"{', '.join(items)}\nWhat is the {word} item?", items[index])])
    if chance < 0.72:
        index = rng.randrange(max(1, len(items) - 1))
        after = items[min(index + 1, len(items) - 1)]
        return turns([(f"{', '.join(items)}\nWhat comes after {items[index]}?", after)])
    if chance < 0.86:
        return _amounts(rng)
    return _sentence_gap(rng)


def _list_order(rng: Random, items: list[str]) -> str:
    shown = items if rng.random() < 0.6 else [with_article(rng, item) for item in items]
    text = join(rng, shown)
    return rng.choice(
        (
            f"List the items as JSON: {text}",
            f"Make a JSON list of {text}",
            f"There is {text}.\n\nGive all items as a JSON array.",
            f"JSON array: {text}",
        )
    )


def _amounts(rng: Random) -> Document:
    """Take names, amounts and times apart."""
    rows, shown = list[Json](), []
    form = rng.choice(("{n} {a} {t}", "{a} of {n} {t}", "{n}, {a}, {t}", "{n} ({a} {t})"))
    for _ in range(rng.randint(1, 4)):
        name, amount, time = values.brand(rng), values.amount(rng), values.rhythm(rng)
        rows.append({"name": name, "amount": amount, "time": time})
        shown.append(form.format(n=name, a=amount, t=time))
    order = rng.choice(("Take apart: ", "Names, amounts and times as JSON: ", "Split into parts: "))
    return turns([(order + join(rng, shown), compact(rows))])


def _sentence_gap(rng: Random) -> Document:
    """Find the text between two known words."""
    before, after = pools().word(rng, "common"), pools().word(rng, "noun")
    item = _item(rng)
    around = [" ".join(invented(rng) for _ in range(rng.randint(1, 4))) for _ in range(2)]
    text = f"{around[0]} {before} {item} {after} {around[1]}"
    return turns([(f"{text}\nWhat stands between {before} and {after}?", item)])


def induction(rng: Random) -> Document:
    """Text that repeats itself, and pairs to be looked up, without any chat around them."""
    if rng.random() < 0.5:
        makers = (invented, lambda r: pools().word(r, "noun"), lambda r: str(values.integer(r)))
        text = " ".join(rng.choice(makers)(rng) for _ in range(rng.randint(3, 20)))
        gap = rng.choice(("\n", " | ", ". ", " ; "))
        again = [(gap, PROMPT), (text, ANSWER)] * rng.randint(1, 2)
        return [(text, PROMPT), *again, ("\n", PROMPT)]
    pairs = {
        invented(rng): rng.choice((invented(rng), str(values.integer(rng)), _item(rng)))
        for _ in range(rng.randint(3, 9))
    }
    link = rng.choice((" = ", ": ", " -> ", " is ", ' "'))
    gap = rng.choice((", ", "\n", "; "))
    pieces: Document = [(gap.join(k + link + v for k, v in pairs.items()) + "\n", PROMPT)]
    keys = rng.sample(list(pairs), min(5, len(pairs)))
    for key in keys:
        pieces += [(key + link, PROMPT), (pairs[key], ANSWER), ("\n", PROMPT)]
    return pieces


def _lines(record: dict[str, Json], link: str, lead: str = "") -> str:
    parts = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in record.items()
    }
    return "\n".join(f"{lead}{key}{link}{part}" for key, part in parts.items())


def _yaml(record: dict[str, Json]) -> str:
    lines = []
    for key, value in record.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"  - {item}" for item in value)]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines)


def conversion(rng: Random) -> Document:
    """JSON from and to YAML, Markdown and plain lines."""
    record: dict[str, Json] = {}
    for _ in range(rng.randint(1, 6)):
        key = pools().word(rng, rng.choice(("common", "noun")))
        if rng.random() < 0.3:
            record[key] = [_item(rng) for _ in range(rng.randint(1, 4))]
        else:
            kind = rng.choice(("thing", "brand", "integer", "full", "place", "finding", "code"))
            record[key] = MAKERS[kind](rng)[1]
    forms = {
        "JSON": compact(record),
        "YAML": _yaml(record),
        "Markdown": _lines(record, "**: ", "- **"),
        "lines": _lines(record, " = "),
        "indented JSON": json.dumps(record, ensure_ascii=False, indent=2),
    }
    if rng.random() < 0.6:
        source, goal = rng.choice([form for form in forms if form != "JSON"]), "JSON"
    else:
        source, goal = rng.sample(list(forms), 2)
    user = rng.choice(
        (
            f"Convert to {goal}:\n{forms[source]}",
            f"{forms[source]}\n\nWrite this as {goal}.",
            f"Turn this {source} into {goal}.\n{forms[source]}",
        )
    )
    return turns([(user, forms[goal])])


def numbers(rng: Random) -> Document:
    """Numbers in words and digits, time spans in days, numbers in sentences, and scales."""
    chance = rng.random()
    if chance < 0.35:
        number = rng.randint(0, 31) if rng.random() < 0.5 else rng.randint(0, 2000)
        if rng.random() < 0.5:
            return turns([(f"Write {spell(number)} in digits.", str(number))])
        return turns([(f"Write {number} in words.", spell(number))])
    if chance < 0.6:
        text, days = MAKERS["days"](rng)
        asked = rng.choice((f"How many days are {text}?", f"{capital(text)} in days:"))
        return turns([(asked, str(days))])
    if chance < 0.8:
        number = values.integer(rng)
        before, after = _item(rng), pools().word(rng, "noun")
        text = f"{invented(rng)} {number} {after} in {before}"
        return turns([(f"{text}\nWhich number?", str(number))])
    low, middle, high = (pools().word(rng, "adjective") for _ in range(3))
    exchanges = []
    for _ in range(4):
        score = rng.randint(1, 9)
        answer = low if score <= 3 else middle if score <= 6 else high
        exchanges.append((rng.choice(("", "score ", "it is ")) + str(score), answer))
    return turns(exchanges, system=f"1 to 3: {low}, 4 to 6: {middle}, 7 to 9: {high}")
