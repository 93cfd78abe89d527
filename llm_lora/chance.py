"""Random numbers that depend only on a key, so that an interrupted run continues exactly."""

from __future__ import annotations

import random

from llm_lora import files


def dice(*key: str | int) -> random.Random:
    """A random generator; equal keys give equal generators, anywhere and at any time.

    >>> dice("crop", 17, 3).random() == dice("crop", 17, 3).random()
    True
    """
    # String seeds go through SHA-512, so similar keys give independent numbers.
    return random.Random(" ".join(map(str, key)))


def unit(key: str) -> float:
    """A number from 0 to 1, uniform over keys; equal keys give equal numbers.

    >>> unit("held_out: a cat") == unit("held_out: a cat") != unit("held_out: a dog")
    True
    """
    return int(files.sha256(key)[:16], 16) / 2**64
