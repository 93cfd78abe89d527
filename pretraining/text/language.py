"""General English: definitions from WordNet, and plain sentences made from its words."""

from __future__ import annotations

from random import Random

from pretraining.text import values
from pretraining.text.document import PROMPT, Document, turns
from pretraining.text.words import Entry, capital, pools, spell

_SENTENCES = (
    "The {a} {n} stood near the {m}.",
    "{p} saw a {a} {n} in {c}.",
    "In {c}, {p} and {q} talked about {n} and {m}.",
    "A {n} is not a {m}.",
    "When the {n} was {a}, {p} wanted to {v}.",
    "{p} will {v} the {n} because it is {a}.",
    "There are {k} things on the {m}.",
    "The {n} of {c} is {a}.",
    "{p} asked {q} whether the {m} was {a}.",
    "Nobody could {v} without the {n}.",
    "First {p} went to {c}, then {q} followed.",
    "It was a {a} day and the {n} stood by the {m}.",
    "{p} is {k} years old and {q} is {j}.",
    "If you {v} the {n}, the {m} becomes {a}.",
    '"{V} the {n}", said {p}.',
    "They have waited for the {n} for {k} weeks.",
    "She took the {n} twice a day and did not {v} any more.",
    "We have to {v} before the {a} {n} arrives.",
    "Since Monday the {n} has been {a}.",
    "I do not know why the {m} is so {a}.",
)
_PROSE = 0.5


def sentence(rng: Random) -> str:
    """A sentence that is right in grammar, if not in sense."""
    word = pools().word
    verb = word(rng, "verb")
    return rng.choice(_SENTENCES).format(
        a=word(rng, "adjective"), n=word(rng, "common"), m=word(rng, "noun"), v=verb,
        V=capital(verb), p=values.person(rng), q=values.first_name(rng), c=values.place(rng),
        k=spell(rng.randint(2, 30)), j=rng.randint(2, 90),
    )  # fmt: skip


def prose(rng: Random) -> Document:
    """A few sentences; sometimes with a question about who did something."""
    lines = [sentence(rng) for _ in range(rng.randint(2, 6))]
    if rng.random() < 0.7:
        return [(" ".join(lines) + "\n", _PROSE)]
    deed = rng.choice(
        ("left early", "won the prize", "paid the bill", "told a joke", "fell asleep")
    )
    who = values.person(rng)
    lines.insert(rng.randint(0, len(lines)), f"{who} {deed}.")
    return turns([(f"{' '.join(lines)}\n\nWho {deed}?", who)])


def definition(rng: Random) -> Document:
    """What a word means, as a question or as plain text."""
    entries = pools().entries
    entry = rng.choice(entries)
    for _ in range(9):
        if entry.count or rng.random() < 0.2:
            break
        entry = rng.choice(entries)
    question, answer = _question(rng, entry)
    if entry.example and rng.random() < 0.5:
        answer += f" {rng.choice(('For example', 'Example'))}: {entry.example}."
    if rng.random() < 0.5:
        return [(f"{question} {answer}\n", _PROSE)]
    if len(entry.words) > 1 and rng.random() < 0.2:
        return turns([(f"Give another word for {entry.words[0]}.", entry.words[1])], prompt=_PROSE)
    # A definition cannot be known from its question: it weighs no more than prose.
    return turns([(question, answer)], prompt=PROMPT, first_answer=_PROSE)


def _question(rng: Random, entry: Entry) -> tuple[str, str]:
    word = entry.words[0]
    article = "an" if word[0] in "aeiou" else "a"
    if entry.part == "verb":
        question = rng.choice((f"What does it mean to {word}?", f"Define the verb {word}."))
        return question, f"To {word} means to {entry.definition}."
    if entry.part == "noun":
        question = rng.choice((f"What is {article} {word}?", f"Define {word}."))
    else:
        question = rng.choice((f"What does {word} mean?", f"Explain {word}."))
    return question, rng.choice(("{w} means {d}.", "{w}: {d}.", "{w} is {d}.")).format(
        w=capital(word), d=entry.definition
    )
