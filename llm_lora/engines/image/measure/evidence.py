"""What an adapter that paints is judged by: everything painted once, and put into an embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from llm_lora import lora_prompt
from llm_lora.data.image import Picture, PictureDataset, captions
from llm_lora.data.image import files as picture_files
from llm_lora.engines.image.painting import Painter, Settings
from llm_lora.engines.image.sheets import Pixels
from llm_lora.engines.vision import Clip
from llm_lora.progress import Listener, Progress
from llm_lora.recipe.image import ImageRecipe
from llm_lora.scores.image import Floats

T = TypeVar("T")

BARE, FULL = 0.0, 1.0
"""The strengths that every dimension needs."""

_CAPTIONS = {"train": 32, "held_out": 16}
"""How many captions of each side the bare base paints; the adapter paints the held-out ones."""
_OWN_TRAIN = 16
"""How many captions of training pictures the adapter paints, where memorising shows."""
_AT_ONCE = 32
_LARGEST = 1024
"""Side in pixels to which real pictures are scaled down: embedders see far less, and a face that
is well seen in the whole picture is still large enough.
"""
_THUMB = 32
"""Side in pixels of pictures that are compared pixel by pixel."""
_PROMPTS = 4
"""How many held-out captions stand in for prompts, where the recipe has none."""


@dataclass(frozen=True, eq=False)
class Painted:
    """Pictures that were painted, with their points."""

    pictures: tuple[Pixels, ...]
    points: Floats

    @property
    def thumbs(self) -> Floats:
        """Their small pixels."""
        return small([*self.images()])

    def __len__(self) -> int:
        return len(self.pictures)

    def images(self) -> Iterator[Image.Image]:
        """The pictures, for whatever looks at them."""
        return map(Image.fromarray, self.pictures)


@dataclass(frozen=True, eq=False)
class Real:
    """Pictures of the dataset, with their points and small pixels."""

    paths: tuple[Path, ...]
    points: Floats
    thumbs: Floats

    def __len__(self) -> int:
        return len(self.paths)

    def spread(self, most: int) -> Real:
        """At most so many of them, evenly from first to last."""
        which = _spread(range(len(self)), most)
        return Real(
            tuple(self.paths[number] for number in which),
            self.points[list(which)],
            self.thumbs[list(which)],
        )

    def images(self) -> Iterator[Image.Image]:
        """The pictures, for whatever looks at them, one at a time."""
        return map(_load, self.paths)

    def shown(self, number: int, like: Pixels) -> Pixels:
        """One of them, cut to the size of a painted picture."""
        height, width, _ = like.shape
        return np.asarray(ImageOps.fit(picture_files.load(self.paths[number]), (width, height)))


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that the six dimensions are measured on.

    `asked` holds, for each strength from 0 on, the pictures of all prompts with all seeds, prompt
    by prompt. `held_captions` are painted by the bare base and by the adapter at full strength;
    their real pictures are the first of `held_out`. `own_train` are the adapter's pictures of
    training captions. `other` are the prompts' pictures at full
    strength with a negative prompt where the usual ones have none, or without where they have one.
    `texts` are what prompts and captions say, without the trigger; `text_of` finds them.
    """

    prompts: tuple[str, ...]
    seeds: int
    asked: dict[float, Painted]
    train: Real
    held_out: Real
    bare_train: Painted
    bare_held_out: Painted
    own_held_out: Painted
    own_train: Painted
    negative: str
    negative_point: Floats
    usual_is_negative: bool
    other: Painted | None
    texts: Floats
    prompt_texts: tuple[int, ...]
    held_texts: tuple[int, ...]
    shown_in_training: tuple[str, ...]

    @property
    def bare(self) -> Painted:
        return self.asked[BARE]

    @property
    def full(self) -> Painted:
        return self.asked[FULL]

    def each_prompt(self) -> Iterator[tuple[int, slice]]:
        """Every prompt's number, and where its pictures are among the asked ones."""
        for number in range(len(self.prompts)):
            yield number, slice(number * self.seeds, (number + 1) * self.seeds)


def gather(
    recipe: ImageRecipe,
    dataset: PictureDataset,
    painter: Painter,
    clip: Clip,
    *,
    listener: Listener,
    tell: Callable[[str], None],
) -> Evidence:
    """Paint everything, once, and put it into the embedding.

    Raises:
        UserError: a picture of the dataset is gone, or memory ran out.
    """
    judge, generate = recipe.judge, recipe.generate
    settings = Settings.of(generate, recipe.data.resolution or painter.base.resolution)
    trained = _spread(dataset.train, _CAPTIONS["train"])
    learned = _spread(dataset.train, _OWN_TRAIN)
    # Those whose captions are painted come first.
    watched = _spread(dataset.held_out, _CAPTIONS["held_out"])
    held_out = (*watched, *(one for one in dataset.held_out if one not in watched))
    captions_of_watched = dict.fromkeys(lora_prompt.without(one.caption) for one in watched)
    prompts = judge.prompts or tuple(captions_of_watched)[:_PROMPTS]
    strengths = sorted({BARE, FULL, *judge.strengths})
    asked = [prompt for prompt in prompts for _ in range(judge.seeds)]
    seeds = [generate.seed + number for _ in prompts for number in range(judge.seeds)]
    negative = generate.negative_prompt or judge.negative_prompt
    total = len(asked) * (len(strengths) + bool(negative))
    total += len(trained) + len(learned) + 2 * len(watched)
    tell(
        f"{total} pictures to paint: {len(prompts)} prompts with {judge.seeds} seeds each at "
        f"{len(strengths)} strengths, {len(trained)} captions of training and {len(watched)} "
        "held-out ones"
    )
    done = 0

    def paint(
        texts: Sequence[str], numbers: Sequence[int], strength: float, how: Settings = settings
    ) -> Painted:
        nonlocal done
        pictures: list[Pixels] = []
        for start in range(0, len(texts), how.batch_size):
            some = slice(start, start + how.batch_size)
            (more,) = painter.strengths(texts[some], [strength], how, numbers[some])
            pictures += more
            done += len(more)
            listener(Progress("painting", done, total))
        return Painted(tuple(pictures), _points(clip, [Image.fromarray(one) for one in pictures]))

    def captioned(some: Sequence[Picture], strength: float) -> Painted:
        numbers = [generate.seed + number for number in range(len(some))]
        return paint([lora_prompt.without(one.caption) for one in some], numbers, strength)

    other = None
    if negative:
        opposite = "" if generate.negative_prompt else negative
        other = paint(asked, seeds, FULL, replace(settings, negative_prompt=opposite))
    said = [_said(text, recipe.data.trigger) for text in prompts]
    held_said = [_said(one.caption, recipe.data.trigger) for one in watched]
    texts = list(dict.fromkeys([*said, *held_said]))
    known = {_said(one.caption, recipe.data.trigger) for one in dataset.train}
    return Evidence(
        prompts=prompts,
        seeds=judge.seeds,
        asked={strength: paint(asked, seeds, strength) for strength in strengths},
        train=_real(clip, dataset.train),
        held_out=_real(clip, held_out),
        bare_train=captioned(trained, BARE),
        bare_held_out=captioned(watched, BARE),
        own_held_out=captioned(watched, FULL),
        own_train=captioned(learned, FULL),
        negative=negative,
        negative_point=clip.texts([negative]).double().numpy()[0],
        usual_is_negative=bool(generate.negative_prompt),
        other=other,
        texts=clip.texts(texts).double().numpy(),
        prompt_texts=tuple(texts.index(one) for one in said for _ in range(judge.seeds)),
        held_texts=tuple(texts.index(one) for one in held_said),
        shown_in_training=tuple(
            prompt for prompt, text in zip(prompts, said, strict=True) if text in known
        ),
    )


def _spread(pictures: Sequence[T], most: int) -> tuple[T, ...]:
    """At most so many, evenly from first to last."""
    if len(pictures) <= most:
        return tuple(pictures)
    return tuple(pictures[number * len(pictures) // most] for number in range(most))


def _said(text: str, trigger: str | None) -> str:
    """What a prompt says of the picture's content: without the trigger, and without adapters."""
    text = lora_prompt.without(text)
    rest = captions.without_trigger(text, trigger)
    return rest or text


def _real(clip: Clip, pictures: Sequence[Picture]) -> Real:
    points, thumbs = [], []
    for start in range(0, len(pictures), _AT_ONCE):
        some = [_load(one.path) for one in pictures[start : start + _AT_ONCE]]
        points.append(_points(clip, some))
        thumbs.append(small(some))
    paths = tuple(one.path for one in pictures)
    return Real(paths, np.concatenate(points), np.concatenate(thumbs))


def _load(path: Path) -> Image.Image:
    picture = picture_files.load(path)
    picture.thumbnail((_LARGEST, _LARGEST))
    return picture


def small(pictures: Sequence[Image.Image]) -> Floats:
    """Pictures as rows of few pixels, 0 to 1, to compare by root mean square; their middle square,
    as painted ones show it.
    """
    scaled = [ImageOps.fit(one, (_THUMB, _THUMB), Image.Resampling.BOX) for one in pictures]
    return np.stack([np.asarray(one, np.float64).ravel() / 255 for one in scaled])


def _points(clip: Clip, pictures: Sequence[Image.Image]) -> Floats:
    found: Floats = clip.images(pictures).double().numpy()
    return found
