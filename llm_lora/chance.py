"""Randomness that depends on what it is for alone, so that an interrupted run goes on exactly."""

from __future__ import annotations

import random

from llm_lora import files


def dice(*key: str | int) -> random.Random:
    """A generator that is the same wherever and whenever it is asked for with the same key.

    >>> dice("crop", 17, 3).random() == dice("crop", 17, 3).random()
    True
    """
    # Text seeds go through SHA-512, so keys that are alike give unlike numbers.
    return random.Random(" ".join(map(str, key)))


def unit(key: str) -> float:
    """A number from 0 to 1, evenly spread over keys; what has the same key always gets the same.

    >>> unit("held_out: a cat") == unit("held_out: a cat") != unit("held_out: a dog")
    True
    """
    return int(files.sha256(key)[:16], 16) / 2**64
