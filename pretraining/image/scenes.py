"""Scenes: the content of drawn pictures, and their captions.

A scene is one shape on a background. Everything random comes from a `random.Random` that the caller
seeds, so a seed names a set of pictures.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
# Names and RGB values, apart from each other in hue or in lightness.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 135, 25),
    "yellow": (248, 218, 50),
    "green": (35, 155, 65),
    "blue": (35, 80, 215),
    "purple": (125, 45, 170),
    "pink": (250, 150, 195),
    "white": (247, 247, 247),
    "black": (22, 22, 24),
}
# Half the extent of a shape, as a share of the picture's side. "" is not spoken of.
SIZES = {"small": 0.17, "": 0.26, "big": 0.35}
# Where the middle of a shape is, from the picture's middle, as a share of its side.
PLACES = {
    "": (0.0, 0.0),
    "at the left": (-0.19, 0.0),
    "at the right": (0.19, 0.0),
    "at the top": (0.0, -0.19),
    "at the bottom": (0.0, 0.19),
}
TEXTURES = ("", "striped", "dotted", "checkered")
GROUNDS = ("", "striped", "dotted", "gradient")
_BIG_STEP = 0.5  # a big shape moves only so far, or it would leave the picture


@dataclass(frozen=True)
class Scene:
    """One shape on one background; all words are keys of the tables above."""

    shape: str
    colour: str
    ground_colour: str
    size: str = ""
    place: str = ""
    texture: str = ""
    ground: str = ""
    shift: tuple[float, float] = (0.0, 0.0)  # of the shape, as a share of the side
    turn: float = 0.0  # of the shape, in degrees

    @property
    def middle(self) -> tuple[float, float]:
        """The middle of the shape as shares of the side, from the upper left corner."""
        step = _BIG_STEP if self.size == "big" else 1.0
        x, y = PLACES[self.place]
        return 0.5 + step * x + self.shift[0], 0.5 + step * y + self.shift[1]


def is_held_out(scene: Scene) -> bool:
    """Whether shape and colour are one of the six pairs that nothing is trained on."""
    pair = SHAPES.index(scene.shape) * len(COLOURS) + list(COLOURS).index(scene.colour)
    return pair % 12 == 5


def draw_scene(rng: random.Random, *, plain: float = 0.5) -> Scene:
    """A random scene; with the chance `plain` each it has no texture and no patterned ground."""
    colour, ground_colour = rng.sample(list(COLOURS), 2)
    size = rng.choice(list(SIZES))
    return Scene(
        shape=rng.choice(SHAPES),
        colour=colour,
        ground_colour=ground_colour,
        size=size,
        place="" if rng.random() < 0.5 else rng.choice(list(PLACES)[1:]),
        texture="" if rng.random() < plain else rng.choice(TEXTURES[1:]),
        ground="" if rng.random() < plain else rng.choice(GROUNDS[1:]),
        shift=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)),
        turn=rng.uniform(-10, 10),
    )


def training_scene(rng: random.Random, *, plain: float = 0.5) -> Scene:
    """A random scene that is not held out."""
    while is_held_out(scene := draw_scene(rng, plain=plain)):
        pass
    return scene


def held_out_scene(rng: random.Random) -> Scene:
    """A random scene whose shape and colour were never trained together."""
    while not is_held_out(scene := draw_scene(rng)):
        pass
    return scene


def caption(scene: Scene) -> str:
    """The plain caption, with every word that the scene has."""
    thing = _words("a", scene.size, scene.texture, scene.colour, scene.shape, scene.place)
    return f"{thing} on a {_words(scene.ground, scene.ground_colour)} background"


def vary(scene: Scene, rng: random.Random) -> str:
    """A caption in one of several forms; it may leave size, place and patterns unsaid."""
    said = replace(
        scene,
        size=_maybe(scene.size, rng),
        place=_maybe(scene.place, rng),
        texture=_maybe(scene.texture, rng),
        ground=_maybe(scene.ground, rng),
    )
    thing = _words(said.size, said.texture, said.colour, said.shape)
    ground = _words(said.ground, said.ground_colour, "background")
    form = rng.random()
    if form < 0.6:
        return caption(said)
    if form < 0.75:
        tags = [ground, *filter(None, [said.place])]
        rng.shuffle(tags)
        return ", ".join([thing, *tags])
    if form < 0.85:
        return _words("a picture of a", thing, said.place, "on", said.ground, said.ground_colour)
    if form < 0.95:
        return _words("a", ground, "with a", thing, said.place)
    return _words("a", thing, said.place)


def _maybe(word: str, rng: random.Random) -> str:
    return word if rng.random() < 0.85 else ""


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)
