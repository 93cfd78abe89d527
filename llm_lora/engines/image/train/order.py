"""The order of image training: the content of every step, fixed before the first step.

Each showing of a picture (its caption, crop and noise) depends only on the seed, the picture and
how often it was shown before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llm_lora.chance import dice
from llm_lora.data.image import Bucket, Picture, PictureDataset, View, buckets, captions
from llm_lora.engines.image.latents import Cut
from llm_lora.recipe.image import ImageRecipe


@dataclass(frozen=True)
class Shown:
    """A picture in a batch: its crop, its caption, its loss weight.

    `key` is the picture's place in the epoch and the epoch: the seed of its noise.
    """

    cut: Cut
    caption: str
    counts: float
    key: tuple[int, int]


Batch = tuple[Shown, ...]


@dataclass(frozen=True)
class Order:
    """A whole run, step by step; a step has as many batches as the recipe accumulates.

    `shown` holds the number of pictures shown after 0, 1, 2, … steps.
    """

    steps: tuple[tuple[Batch, ...], ...]
    steps_per_epoch: float
    shown: tuple[int, ...]

    def captions(self) -> Iterator[str]:
        """Every caption of the run."""
        return (one.caption for step in self.steps for batch in step for one in batch)

    def cuts(self) -> Iterator[Cut]:
        """Every crop of the run."""
        return (one.cut for step in self.steps for batch in step for one in batch)


def plan(recipe: ImageRecipe, dataset: PictureDataset, resolution: int) -> Order:
    """Plan the order of a recipe's training.

    With regularisation pictures, every picture of an epoch is paired with one of them, in turn.
    They keep their captions: they represent what the base must not forget.
    """
    train = recipe.train
    # Counted in batches before they are grouped into steps: an epoch's last batches may share a
    # step with the next epoch's first ones.
    limit = None if train.max_steps is None else train.max_steps * train.accumulate
    batches: list[Batch] = []
    per_epoch = 0
    for epoch in range(math.ceil(train.epochs)):
        more = _epoch(recipe, dataset, resolution, epoch)
        per_epoch = per_epoch or len(more)
        if epoch + 1 > train.epochs:
            more = more[: max(1, round((train.epochs - epoch) * len(more)))]
        batches += more
        if limit is not None and len(batches) >= limit:
            break
    batches = batches[:limit]
    steps = tuple(
        tuple(batches[i : i + train.accumulate]) for i in range(0, len(batches), train.accumulate)
    )
    shown = [0]
    for step in steps:
        shown.append(shown[-1] + sum(map(len, step)))
    return Order(steps, per_epoch / train.accumulate, tuple(shown))


def _epoch(
    recipe: ImageRecipe, dataset: PictureDataset, resolution: int, epoch: int
) -> list[Batch]:
    train = recipe.train
    pictures = dataset.train * recipe.data.repeats
    everyone = pictures + _taking_turns(dataset.regularisation, len(pictures), epoch)
    plans = assign([one.size for one in everyone], recipe, resolution)

    def shown(view: View) -> Shown:
        how = _show if view.picture < len(pictures) else _keep
        return how(everyone[view.picture], plans[view.picture], view, recipe)

    views = buckets.batches(plans, train.batch_size, seed=train.seed, epoch=epoch)
    return [tuple(map(shown, batch)) for batch in views]


def held_out(recipe: ImageRecipe, dataset: PictureDataset, resolution: int) -> list[Shown]:
    """The held-out pictures as their loss is measured: centre crop, unchanged caption."""
    pictures = dataset.held_out
    plans = assign([one.size for one in pictures], recipe, resolution)
    return [
        Shown(_cut(one, bucket, (0.5, 0.5), flip=False), one.caption, 1.0, (i, 0))
        for i, (one, bucket) in enumerate(zip(pictures, plans, strict=True))
    ]


def assign(
    sizes: Sequence[tuple[int, int]], recipe: ImageRecipe, resolution: int
) -> tuple[Bucket, ...]:
    """The bucket of each picture."""
    if recipe.data.buckets:
        return buckets.plan(sizes, resolution, recipe.data.bucket_step)
    return (buckets.square(resolution, 8),) * len(sizes)


def _taking_turns(pictures: tuple[Picture, ...], count: int, epoch: int) -> tuple[Picture, ...]:
    if not pictures:
        return ()
    return tuple(pictures[i % len(pictures)] for i in range(epoch * count, (epoch + 1) * count))


def _show(picture: Picture, bucket: Bucket, view: View, recipe: ImageRecipe) -> Shown:
    data, seed = recipe.data, recipe.train.seed
    caption = captions.vary(
        picture.caption,
        dice("caption", seed, view.picture, view.turn),
        dropout=data.caption_dropout,
        shuffle=data.shuffle_tags,
        keep=data.keep_tags,
    )
    cut = _cut(
        picture,
        bucket,
        buckets.place(data.crop, seed, view),
        flip=data.flip and buckets.flipped(seed, view),
    )
    return Shown(cut, caption, 1.0, (view.picture, view.turn))


def _keep(picture: Picture, bucket: Bucket, view: View, recipe: ImageRecipe) -> Shown:
    at = buckets.place(recipe.data.crop, recipe.train.seed, view)
    cut = _cut(picture, bucket, at, flip=False)
    return Shown(cut, picture.caption, recipe.train.prior_weight, (view.picture, view.turn))


def _cut(picture: Picture, bucket: Bucket, at: tuple[float, float], *, flip: bool) -> Cut:
    return Cut(picture, bucket, buckets.crop(picture.size, bucket, at), flip)
