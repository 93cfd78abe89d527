"""Invented domains: random names, random wordings, never the same twice.

They prevent the model from memorising domains: it has to match the wanted names against the
text (plain domains), or the texts of a conversation against each other (cued domains, whose
sentences do not name the property).
"""

from __future__ import annotations

from random import Random

from pretraining.text.domains import Domain
from pretraining.text.slots import Slot
from pretraining.text.values import invented
from pretraining.text.words import capital, pools

_STATED = (
    "The {k} is {}.",
    "[The|Its|My|Our] {k}: {}.",
    "{K}: {}.",
    "{K} {}.",
    "{K} = {}.",
    "{} is the {k}.",
    "It has {} as its {k}.",
    "With a {k} of {}.",
    "As {k} they chose {}.",
    "The {k} was given as {}.",
    "[I|We] [noted|chose|saw|took|gave] {} as the {k}.",
    "Regarding the {k}, it is {}.",
    "There we have {} ({k}).",
    "The {k} reads {}.",
    "[My|Our|Its|Their] {k} is {}.",
    "Put down {} for the {k}.",
    "They say the {k} is {}.",
    "For {k} I would say {}.",
    "{} was named as {k}.",
    "When asked about the {k} they said {}.",
    "Set the {k} to {}.",
    "Concerning {k}: {}.",
)
_LISTED = (
    "The {k} [has|holds|shows|includes] {}.",
    "For the {k} we have {}.",
    "{} belong to the {k}.",
    "There is {} in the {k}.",
    "{K}: {}.",
    "{K} includes {}.",
    "Under {k} [I|they] list {}.",
    "[I|We|They] count {} as {k}.",
    "Among the {k} are {}.",
    "My {k}: {}.",
)
_NOT_STATED = (
    "The {k} is [unknown|open|not given].",
    "There is no {k}.",
    "No {k}.",
    "Without {k}.",
    "",
)
_YES = (
    "There is a {k}.",
    "It has a {k}.",
    "With {k}.",
    "{K}: yes.",
    "The {k} is there.",
    "They found the {k}.",
    "[I|We] saw the {k}.",
    "The {k} is included.",
)
_NO = (
    "There is no {k}.",
    "It has no {k}.",
    "Without {k}.",
    "{K}: no.",
    "No {k}.",
    "[I|We] never saw the {k}.",
    "Nobody found a {k}.",
    "It lacks the {k}.",
    "",
)
_LEADS = (
    "today ", "so far ", "as always ", "by the way ", "at the moment ", "in short, ", "well, ",
    "first of all, ", "as you know, ", "again ", "of course ", "to be exact, ", "to my surprise ",
)  # fmt: skip
_TAILS = (
    ", as you know", ", I think", ", at least", ", as always", " right now", " already",
    ", for now", ", I am afraid", ", if I may say so", " so far", ", which is new", " again",
)  # fmt: skip
_SUBJECTS = ("I", "We", "They", "He", "She", "People", "The others", "Everybody", "My boss")
_CUE_PREPOSITIONS = ("with", "for", "about", "from", "of", "at", "by", "near", "to", "against")
_NOTES = (
    "Thank you for the {k}.", "We got {k}.", "Please check {k} again.", "{k} is on its way.",
    "Bring {k} tomorrow.", "Note: {k}", "We will look at {k} soon.", "Tell them about {k}.",
    "Sorry about {k}.", "Nice to hear of {k}!", "More about {k} next week.",
)  # fmt: skip
_KINDS = (
    ("finding", 5), ("thing", 4), ("person", 2), ("full", 2), ("amount", 3), ("span", 3),
    ("rhythm", 3), ("code", 2), ("place", 2), ("integer", 2), ("years", 2), ("decimal", 2),
    ("date", 1), ("clock", 1), ("words", 2), ("phrase", 2), ("brand", 3), ("count", 2),
    ("money", 1), ("activity", 1),
)  # fmt: skip
_FIELD_NAMES = (
    "label", "what", "who", "title", "item", "part", "amount", "size", "how_much", "weight",
    "when", "rhythm", "how_often", "interval", "value", "kind", "place", "code", "note", "made_of",
)  # fmt: skip
_NAME_KINDS = ("brand", "thing", "invented", "full", "tool", "food")
_FIELD_KINDS = (
    "amount", "amount", "integer", "rhythm", "rhythm", "code", "decimal", "span", "place",
)  # fmt: skip


def _name_words(rng: Random) -> str:
    word = pools().word
    shape = rng.random()
    if shape < 0.45:
        text = word(rng, "common")
    elif shape < 0.6:
        text = word(rng, "noun")
    elif shape < 0.75:
        text = f"{word(rng, 'common')} {word(rng, 'common')}"
    elif shape < 0.88:
        text = f"{word(rng, 'adjective')} {word(rng, 'common')}"
    else:
        text = invented(rng)
    return text


def _dress(rng: Random, sentence: str) -> str:
    """Something before or after what a sentence says."""
    if rng.random() < 0.12 and sentence and not sentence.startswith(("{", "[")):
        sentence = rng.choice(_LEADS) + sentence[0].lower() + sentence[1:]
    if rng.random() < 0.12 and sentence.endswith("."):
        sentence = sentence[:-1] + rng.choice(_TAILS) + "."
    return sentence


def _cue(rng: Random, gap: str = "{}") -> str:
    """A sentence around a gap whose words say nothing about the property."""
    word = pools().word
    verb = word(rng, "verb")
    noun = word(rng, rng.choice(("common", "noun")))
    preposition = rng.choice(_CUE_PREPOSITIONS)
    subject = rng.choice(_SUBJECTS)
    return rng.choice(
        (
            f"{subject} {verb} {gap}.",
            f"{subject} {verb} {gap} {preposition} the {noun}.",
            f"{subject} {verb} {preposition} {gap}.",
            f"{capital(noun)} {preposition} {gap}.",
            f"{capital(noun)} {gap}.",
            f"{capital(verb)} {preposition} {gap}, please.",
            f"The {noun} {verb} {gap}.",
            f"{gap} {verb} the {noun}.",
            f"It is {word(rng, 'adjective')} {preposition} {gap}.",
            f"{capital(invented(rng))} {gap}.",
            f"There was {gap} {preposition} the {noun}.",
        )
    )


def _frames(rng: Random, templates: tuple[str, ...], key: str, *, cued: bool) -> list[str]:
    count = rng.randint(1, 3)
    if cued:
        return [_cue(rng) for _ in range(count)]
    chosen = [_dress(rng, rng.choice(templates)) for _ in range(count)]
    return [t.replace("{k}", key).replace("{K}", capital(key)) for t in chosen]


def _plain(text: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple(("", line) for line in text)


def _absent(rng: Random, key: str, *, cued: bool) -> tuple[str, ...]:
    if rng.random() < 0.6:
        return ()
    if cued:
        return ("", _cue(rng, "nothing"))
    return tuple(t.replace("{k}", key) for t in rng.sample(_NOT_STATED, 2))


def _flag(rng: Random, name: str, key: str, *, cued: bool) -> Slot:
    if cued:
        noun = pools().word(rng, "common")
        yes, no = (noun, pools().word(rng, "adjective")) if rng.random() < 0.5 else (noun, noun)
        telling = [("+", _cue(rng, yes)), ("-", _cue(rng, f"no {no}")), ("-", "")]
    else:
        telling = [("+", t) for t in rng.sample(_YES, 3)] + [("-", t) for t in rng.sample(_NO, 3)]
    lines = tuple((v, t.replace("{k}", key).replace("{K}", capital(key))) for v, t in telling)
    return Slot((name,), "flag", lines)


def _choice(rng: Random, name: str, key: str, *, cued: bool) -> Slot:
    """Two to four adjectives, told by themselves or by words that mean the same."""
    adjectives = pools().by_kind["adjective"]
    options = rng.sample(adjectives, rng.randint(2, 4))
    telling: list[tuple[str, str]] = []
    for option in options:
        if cued:
            telling.append((option, _cue(rng, pools().word(rng, "adjective"))))
            continue
        same = [w for w in pools().synonyms.get(option, ()) if w not in options]
        for frame in _frames(rng, _STATED, key, cued=False):
            shown = rng.choice(same) if same and rng.random() < 0.4 else option
            telling.append((option, frame.replace("{}", shown)))
    return Slot((name,), "choice", tuple(telling))


def _objects(rng: Random, name: str, key: str, *, cued: bool) -> Slot:
    names = rng.sample(_FIELD_NAMES, rng.randint(1, 2))
    kinds = [rng.choice(_NAME_KINDS), *(rng.choice(_FIELD_KINDS) for _ in names)]
    keys = [rng.choice(("name", "name", "title", "what", "item")), *names]
    if len(set(keys)) < len(keys):
        keys[0] = "entry"
    marks = ["{" + k + "}" for k in keys]
    links = (" ", " ", ", ", " with ", " at ", ": ", " - ", " / ")
    forms = [marks[0] + "".join(rng.choice(links) + mark for mark in marks[1:])]
    forms.append(f"{marks[0]} ({', '.join(marks[1:])})")
    forms.append(f"{marks[1]} of {marks[0]}" + "".join(f" {mark}" for mark in marks[2:]))
    telling = _frames(rng, _LISTED, key, cued=cued)
    return Slot(
        (name,), "objects", _plain(telling), _absent(rng, key, cued=cued),
        fields=tuple(zip(keys, kinds, strict=True)),
        forms=tuple(rng.sample(forms, rng.randint(1, 2))), most=3,
    )  # fmt: skip


def _slot(rng: Random, *, cued: bool) -> Slot:
    key = _name_words(rng)
    name = key.replace(" ", "_")
    chance = rng.random()
    if chance < 0.1:
        return _flag(rng, f"has_{name}" if rng.random() < 0.3 else name, key, cued=cued)
    if chance < 0.2:
        return _choice(rng, name, key, cued=cued)
    absent = _absent(rng, key, cued=cued)
    kinds, weights = zip(*_KINDS, strict=True)
    kind = rng.choices(kinds, weights)[0]
    if chance < 0.33:
        return _objects(rng, name, key, cued=cued)
    if chance < 0.53:
        item = rng.choice(("finding", "finding", "thing", "brand", "full", "place", "phrase"))
        telling = _frames(rng, _LISTED, key, cued=cued)
        return Slot((name,), "list", _plain(telling), absent, item=item)
    return Slot((name,), kind, _plain(_frames(rng, _STATED, key, cued=cued)), absent)


def invent_domain(rng: Random, *, cued: bool) -> Domain:
    """A domain of three to eight slots.

    Args:
        rng: determines everything.
        cued: sentences do not name the property; only examples show which value belongs to it.
    """
    slots = {
        slot.names[0]: slot for slot in (_slot(rng, cued=cued) for _ in range(rng.randint(3, 8)))
    }
    texts = [s for s in slots.values() if s.kind not in ("flag", "choice") and not s.absent]
    if texts and rng.random() < 0.4:
        about = rng.choice(texts).names[0]
        note = rng.choice(_NOTES).replace("{k}", "{" + about + "}")
        name = rng.choice(("message", "summary", "notice", "remark", "closing_line"))
        slots[name] = Slot((name,), "rule", (("", note),))
    titles = ("text", "note", "message", "record", "paragraph", "entry", "letter")
    return Domain((rng.choice(titles),), tuple(slots.values()))
