"""Extraction: a text goes in, a JSON record comes out.

The wanted properties are known in one of three ways, from narrow to general: from the kind of text
(as after fine-tuning), from their names in the prompt, or from earlier turns of the conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

from pretraining.text.document import Document, compact, some_system, turns
from pretraining.text.domains import Domain, load
from pretraining.text.inventing import invent_domain
from pretraining.text.slots import Slot
from pretraining.text.values import MAKERS, Json, expand, first_name, full_name
from pretraining.text.words import capital

Named = tuple[Slot, str]
"""A slot with the property name that was chosen for it."""

_TYPES = {
    "list": "list",
    "objects": "list of objects",
    "flag": "true or false",
    "count": "number",
    "integer": "number",
    "years": "number",
    "decimal": "number",
    "money": "number",
    "days": "number of days",
}


@cache
def _chatter() -> tuple[str, ...]:
    return tuple((Path(__file__).parent / "chatter.txt").read_text().splitlines())


def _aside(rng: Random) -> str:
    """A sentence without any requested value."""
    chance = rng.random()
    if chance < 0.7:
        return expand(rng, rng.choice(_chatter()))
    if chance < 0.8:
        return f"{full_name(rng)} {rng.choice(('knows', 'was there', 'says hello', 'asked me'))}."
    if chance < 0.9:
        return f"The neighbours wait for {MAKERS['span'](rng)[0]} already."
    return f"{first_name(rng)} is {rng.randint(5, 80)} years old."


def _tell(rng: Random, wanted: Sequence[Named], others: Sequence[Slot]) -> tuple[str, Json]:
    """A text that contains the wanted slots among other things, and its record."""
    record: dict[str, Json] = {}
    by_first_name: dict[str, Json] = {}
    sentences: list[str] = []
    for slot, name in wanted:
        if slot.kind == "rule":
            record[name] = slot.derive(by_first_name)
            by_first_name[slot.names[0]] = record[name]
            continue
        sentence, value = slot.tell(rng)
        record[name] = by_first_name[slot.names[0]] = value
        sentences.append(sentence)
    sentences += [slot.tell(rng)[0] for slot in others if slot.kind != "rule"]
    sentences += [_aside(rng) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
    if rng.random() < 0.75:
        rng.shuffle(sentences)
    return _layout(rng, [s for s in sentences if s]), record


def _layout(rng: Random, sentences: list[str]) -> str:
    """Sentences as a message, as lines, or as a note that drops its full stops."""
    chance = rng.random()
    if chance < 0.7:
        return " ".join(sentences)
    if chance < 0.82:
        return "\n".join(sentences)
    if chance < 0.88:
        return "\n".join(f"- {sentence}" for sentence in sentences)
    return rng.choice(("; ", " / ", "\n")).join(s.removesuffix(".") for s in sentences)


def _sample(rng: Random, slots: Sequence[Slot], least: int, most: int) -> list[Slot]:
    """Some slots, rules last, without rules that need a slot which was not drawn."""
    drawn = rng.sample(slots, rng.randint(min(least, len(slots)), min(most, len(slots))))
    names = {slot.names[0] for slot in drawn}
    told = [slot for slot in drawn if slot.kind != "rule"]
    return told + [s for s in drawn if s.kind == "rule" and s.needs <= names]


def _hint(rng: Random, slot: Slot, name: str) -> str:
    """A property's name with its possible values."""
    if slot.kind == "choice":
        options = sorted({label for label, _ in slot.telling})
        rng.shuffle(options)
        return f"{name} ({' or '.join(options)})"
    if slot.kind == "rule":
        return f'{name} ("{slot.telling[-1][1]}")'
    kind = _TYPES.get(slot.kind, "text")
    if slot.kind == "objects":
        kind += " with " + ", ".join(key for key, _ in slot.fields)
    if slot.absent and slot.kind not in ("list", "objects"):
        kind += " or null"
    return f"{name} ({kind})"


def _ask(rng: Random, text: str, title: str, hints: list[str]) -> tuple[str | None, str]:
    """A system text and a user text that name the properties."""
    keys = rng.choice((", ", ", ", "\n- ", "; ")).join(hints)
    if rng.random() < 0.4:
        system = rng.choice(
            (
                f"Extract from each {title}: {keys}",
                f"Answer with a JSON object with the properties {keys}.",
                f"You file every {title} as JSON with {keys}.",
                f"Properties: {keys}",
            )
        )
        return system, text
    user = rng.choice(
        (
            f"Extract {keys} from the {title}.\n\n{text}",
            f"Return a JSON object with the keys {keys}.\n\nText: {text}",
            f"{text}\n\nFill in: {keys}.",
            f"Keys: {keys}\nText: {text}",
            f"Read the {title} and give {keys} as JSON.\n{text}",
            f"{text}\n\nWrite JSON with {keys}.",
            f"JSON ({keys}): {text}",
        )
    )
    return some_system(rng, 0.2), user


def asked(rng: Random, domain: Domain, *, always_hint: bool) -> Document:
    """The prompt names some properties of a domain."""
    plain = [slot for slot in domain.slots if always_hint or slot.kind != "rule"]
    chosen = _sample(rng, plain, 2, 9)
    wanted = [(slot, rng.choice(slot.names)) for slot in chosen]
    others = [slot for slot in plain if slot not in chosen and rng.random() < 0.4]
    text, record = _tell(rng, wanted, others)
    # What a choice or a rule may say cannot be guessed: the prompt has to show it.
    hinted = always_hint or rng.random() < 0.4
    hints = [
        _hint(rng, slot, name) if hinted or slot.kind == "choice" else name for slot, name in wanted
    ]
    system, user = _ask(rng, text, rng.choice(domain.titles), hints)
    return turns([(user, compact(record))], system=system)


def known(rng: Random) -> Document:
    """A trained domain whose prompt names the properties."""
    return asked(rng, rng.choice(load("trained")), always_hint=False)


def whole(rng: Random) -> Document:
    """A trained domain whose whole record is wanted: nothing but its text says so."""
    domain = rng.choice(load("trained"))
    text, record = _tell(rng, [(slot, slot.names[0]) for slot in domain.slots], [])
    title = rng.choice(domain.titles)
    user = rng.choice(
        (text, text, text, f"{capital(title)}: {text}", f"{text}\n\nFile this {title}.")
    )
    return turns([(user, compact(record))], system=some_system(rng, 0.5))


def invented(rng: Random) -> Document:
    """An unknown domain: the prompt names the properties."""
    return asked(rng, invent_domain(rng, cued=False), always_hint=True)


def shown(rng: Random, domain: Domain | None = None) -> Document:
    """A domain that is explained only by earlier turns of the conversation."""
    domain = domain or invent_domain(rng, cued=True)
    wanted = [(slot, slot.names[0]) for slot in _sample(rng, domain.slots, 2, 5)]
    exchanges = []
    for _ in range(rng.randint(3, 4)):
        text, record = _tell(rng, wanted, [])
        exchanges.append((text, compact(record)))
    return turns(exchanges, system=some_system(rng, 0.3), first_answer=0.2)


def unknown(rng: Random) -> Document:
    """For the evaluation: a held-out domain whose prompt names the properties."""
    return asked(rng, rng.choice(load("held_out")), always_hint=True)


def unknown_shown(rng: Random) -> Document:
    """For the evaluation: a held-out domain explained by earlier turns."""
    return shown(rng, rng.choice(load("held_out")))
