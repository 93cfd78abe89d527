"""Training of the judge: a small CLIP model that recognises shapes, colours, places and styles.

Two things are learned at once: pictures and captions that belong together are close (CLIP's own
loss), and linear heads, thrown away later, read each property from both sides. The heads alone
would not align the sides; the contrastive loss alone would learn the properties far more slowly.

The judge learns all pairs of shape and colour, including those held out from the base: it has to
recognise whether the base has painted them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from pretraining.image.pictures import as_input, drawn, some_styles
from pretraining.image.scenes import (
    COLOURS,
    GROUNDS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    caption,
    draw_scene,
    vary,
)
from pretraining.image.styles import STYLES
from pretraining.image.tokenizer import LENGTH, kept_tokenizer, token_ids
from pretraining.image.training import Plan, command_line, train

log = logging.getLogger("pretraining")

WIDTH = 128  # of the text side, which is also the base's
_BATCH = 64
_FULL = 16  # captions of a batch that the heads of the text side read
_READING = 3.0  # weight of the heads beside the contrast
_HARD = {"shape": 4.0, "place": 2.0, "texture": 2.0}  # weights among the heads; others have 1
_PICTURES = 12_000
PROPERTIES: dict[str, Sequence[str]] = {
    "shape": SHAPES,
    "colour": list(COLOURS),
    "ground_colour": list(COLOURS),
    "size": list(SIZES),
    "place": list(PLACES),
    "texture": TEXTURES,
    "ground": GROUNDS,
    "style": list(STYLES),
}


def new_judge(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """The judge with random weights."""
    torch.manual_seed(seed)
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "projection_dim": WIDTH,
        **ends,
    }
    vision = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def styled_caption(scene: Scene, style: str, rng: random.Random | None = None) -> str:
    """The caption with the style's words; with a generator, in one of many forms."""
    words = vary(scene, rng) if rng else caption(scene)
    if not style:
        return words
    return f"{style}, {words}" if rng is None or rng.random() < 0.5 else f"{words}, {style}"


def labels(scenes: Sequence[Scene], styles: Sequence[str]) -> Tensor:
    """The number of each property's value, shaped (scenes, properties)."""
    rows = [
        [
            values.index(style if name == "style" else getattr(scene, name))
            for name, values in PROPERTIES.items()
        ]
        for scene, style in zip(scenes, styles, strict=True)
    ]
    return torch.tensor(rows)


class Lesson(nn.Module):
    """The judge with the heads that help it learn."""

    def __init__(self, judge: CLIPModel) -> None:
        super().__init__()
        self.judge = judge
        sizes = [len(values) for values in PROPERTIES.values()]
        self.heads = nn.ModuleList(nn.Linear(WIDTH, size) for size in sizes)
        self.text_heads = nn.ModuleList(nn.Linear(WIDTH, size) for size in sizes)

    def forward(self, pixels: Tensor, said: Tensor, full: Tensor, known: Tensor) -> Tensor:
        """The loss: `said` vary; `full`, for the first pictures, say all that `known` has."""
        image = self.judge.get_image_features(pixel_values=pixels).pooler_output
        count = len(pixels)
        texts = torch.cat([said, full])
        longest = int((texts != texts[0, -1]).sum(1).max()) + 1  # what follows is padding
        text = self.judge.get_text_features(input_ids=texts[:, :longest]).pooler_output
        scale = self.judge.logit_scale.exp().clamp(max=50)
        logits = scale * F.normalize(image, dim=-1) @ F.normalize(text[:count], dim=-1).T
        own = torch.arange(count)
        contrast = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        reading = torch.stack(
            [
                F.cross_entropy(head(image), column)
                + F.cross_entropy(other(text[count:]), column[: len(full)])
                for head, other, column in zip(self.heads, self.text_heads, known.T, strict=True)
            ]
        )
        weights = torch.tensor([_HARD.get(name, 1.0) for name in PROPERTIES])
        return contrast + _READING * (weights * reading).sum() / weights.sum()


@torch.no_grad()
def accuracy(
    judge: CLIPModel,
    tokenizer: CLIPTokenizer,
    pictures: Tensor,
    scenes: Sequence[Scene],
    styles: Sequence[str],
    name: str,
) -> float:
    """How often the right caption is the closest, among captions that differ in one property."""
    values = PROPERTIES[name]
    image = F.normalize(judge.get_image_features(pixel_values=as_input(pictures)).pooler_output)
    hits = 0
    for number, (scene, style) in enumerate(zip(scenes, styles, strict=True)):
        if name == "style":
            texts = [styled_caption(scene, value) for value in values]
            right = style
        else:
            texts = [
                styled_caption(Scene(**{**vars(scene), name: value}), style) for value in values
            ]
            right = getattr(scene, name)
        text = judge.get_text_features(input_ids=token_ids(tokenizer, texts)).pooler_output
        best = int((F.normalize(text) @ image[number]).argmax())
        hits += values[best] == right
    return hits / len(scenes)


def save(judge: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the judge in the layout that transformers reads, weights in half precision."""
    half = CLIPModel(judge.config)
    half.load_state_dict(judge.state_dict())
    half.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors keeps its files to the owner
    tokenizer.save_pretrained(folder)
    side = judge.config.vision_config.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    given = command_line(
        __doc__, "folder for the checkpoint and the trained judge", steps=4200, decay=1000
    )

    rng = random.Random(given.seed)
    tokenizer = kept_tokenizer(given.work / "tokenizer")
    scenes = [draw_scene(rng) for _ in range(_PICTURES)]
    styles = some_styles(_PICTURES, 0.4, rng)
    pictures = drawn(scenes, styles, given.seed)
    pairs = list(zip(scenes, styles, strict=True))
    said = token_ids(tokenizer, [styled_caption(*pair, rng) for pair in pairs])
    full = token_ids(tokenizer, [styled_caption(*pair) for pair in pairs])
    known = labels(scenes, styles)
    rng = random.Random(given.seed + 1)
    unseen_scenes = [draw_scene(rng) for _ in range(200)]
    unseen_styles = some_styles(200, 0.5, rng)
    unseen = drawn(unseen_scenes, unseen_styles, given.seed + 1)
    lesson = Lesson(new_judge(tokenizer, given.seed))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(0, _PICTURES, (_BATCH,), generator=generator)
        value: Tensor = lesson(
            as_input(pictures[chosen]), said[chosen], full[chosen[:_FULL]], known[chosen]
        )
        return value

    def look(step: int) -> None:
        lesson.judge.eval()
        right = {
            name: accuracy(lesson.judge, tokenizer, unseen, unseen_scenes, unseen_styles, name)
            for name in PROPERTIES
        }
        lesson.judge.train()
        log.info("step %d held out: %s", step, {k: round(v, 3) for k, v in right.items()})

    plan = Plan(
        given.work / "judge.safetensors", given.steps, 1e-3, given.decay,
        minutes=given.minutes, ema=0.995, seed=given.seed,
    )  # fmt: skip
    if train(lesson, plan, loss, look=look, look_every=400):
        save(lesson.judge, tokenizer, given.work / "judge")


if __name__ == "__main__":
    main()
