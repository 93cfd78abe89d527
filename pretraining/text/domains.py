"""Domains: everyday records with their slots, read from the text files in domains/.

A file looks like this (`#` starts a comment):

    [parcel order, shop order]                 possible names of the text
    customer, buyer = person                   names of a property, and its kind of value
        The order was placed by {}.            sentences; [one|other] and {1-9} are decided
    items = objects name:thing amount:amount   a list of objects (or: = list thing)
        * {amount} of {name}                   forms of one item
        They want {}.
        ~ Nothing was ordered yet.             no value: null, or an empty list
    fragile = flag
        + Handle with care.
        - The box is sturdy.
    priority = choice
        low: There is no hurry.
    note = rule                                follows from the other properties
        priority=low| We ship your order, {customer}.

A lone `~` or `-` stands for no sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pretraining.text.slots import Slot

_FOLDER = Path(__file__).parent / "domains"


@dataclass(frozen=True)
class Domain:
    """A kind of record: the possible names of its text, and its slots in order."""

    titles: tuple[str, ...]
    slots: tuple[Slot, ...]


@cache
def load(name: str) -> tuple[Domain, ...]:
    """The domains of one file: "trained" or "held_out"."""
    domains: list[Domain] = []
    titles: tuple[str, ...] = ()
    slots: list[Slot] = []
    head, body = "", list[str]()

    def end_slot() -> None:
        if head:
            slots.append(_slot(head, body))

    for line in (_FOLDER / f"{name}.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" "):
            body.append(line.strip())
            continue
        end_slot()
        head, body = line, []
        if line.startswith("["):
            if slots:
                domains.append(Domain(titles, tuple(slots)))
            titles, slots, head = _names(line.strip("[]")), [], ""
    end_slot()
    domains.append(Domain(titles, tuple(slots)))
    return tuple(domains)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _slot(head: str, body: list[str]) -> Slot:
    names, _, made = head.partition(" = ")
    kind, *details = made.split()
    telling, absent, forms = list[tuple[str, str]](), list[str](), list[str]()
    for line in body:
        mark, rest = line[:1], line[1:].strip()
        if mark == "~":
            absent.append(rest)
        elif mark == "*":
            forms.append(rest)
        elif kind == "flag":
            telling.append((mark, rest))
        elif kind == "choice":
            label, _, sentence = line.partition(":")
            telling.append((label, sentence.strip()))
        elif kind == "rule":
            condition, _, text = line.rpartition("|")
            telling.append((condition, text.strip()))
        else:
            telling.append(("", line))
    fields = tuple((key, value) for key, _, value in (d.partition(":") for d in details))
    return Slot(
        _names(names),
        kind,
        tuple(telling),
        tuple(absent),
        item=details[0] if kind == "list" else "",
        fields=fields if kind == "objects" else (),
        forms=tuple(forms),
    )
