"""Check of a style adapter: present at strength 0.8, absent at 0, rising between; prompt kept.

The classifier is independent of any base or adapter: softmax regression on the embeddings of the
embedded judge, trained on pictures drawn plainly and in each of the five styles of
`pretraining/image`, and tested on pictures with unseen pairs of shape and colour. Then the adapter
of a run of `recipes/style_lora.yaml` generates scenes with shapes that its training never showed,
one for each strength, and the classifier measures the style in them.

    llm-lora train recipes/style_lora.yaml --profile cpu
    python -m benchmarks.style_strength runs/style_lora/latest

Figures are printed, as JSON with --json. The exit code is 1 if one misses its bound.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pretraining.image.scenes import Scene, caption, draw_scene, held_out_scene, training_scene
from pretraining.image.styles import STYLES
from pretraining.image.template import STYLE, UNSEEN_SHAPES

if TYPE_CHECKING:
    from llm_lora.engines.vision.clip import Clip

    Floats = np.ndarray[Any, np.dtype[np.float64]]

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NAMES = tuple(STYLES)
"""The classes: "" is plain."""

ACCURACY = 0.95
"""Lowest accuracy of the classifier on held-out drawings."""
PRESENT = 0.5
"""Lowest share of pictures classified as the style at 0.8; one in six would be chance."""
ABSENT = 0.05
"""Highest such share at 0."""
LEVEL = 0.01
"""Smaller falls are ignored: without the style, the classifier's probability for it varies by a few
thousandths around 0.007."""
KEPT = 0.7
"""Lowest share of the bare base's prompt alignment at 0.8."""
DECAY = 1e-5
"""Weight penalty of the classifier: of 1e-3, 1e-4 and 1e-5 the one with the lowest loss on held-out
drawings, 0.03."""


@dataclass(frozen=True)
class Classifier:
    """Softmax regression: `weights` of shape (dimensions, classes), `offsets` (classes)."""

    weights: Floats
    offsets: Floats

    def shares(self, points: Floats) -> Floats:
        """The probability of each class: (pictures, classes)."""
        scores = points @ self.weights + self.offsets
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def drawn(count: int, seed: int, *, unseen: bool) -> tuple[list[Image.Image], list[int]]:
    """A number of scenes of each class, and their class numbers."""
    rng = random.Random(seed)
    pictures, labels = [], []
    for label, name in enumerate(NAMES):
        for _ in range(count):
            scene = held_out_scene(rng) if unseen else training_scene(rng)
            pictures.append(STYLES[name](scene, rng))
            labels.append(label)
    return pictures, labels


def learn(points: Floats, labels: list[int]) -> Classifier:
    """Fit it with L-BFGS, which torch provides."""
    import torch

    given, wanted = torch.from_numpy(points), torch.tensor(labels)
    weights = torch.zeros(points.shape[1], len(NAMES), dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(len(NAMES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(given @ weights + offsets, wanted)
        loss = loss + DECAY * (weights**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Classifier(weights.detach().numpy(), offsets.detach().numpy())


def asked(count: int, seed: int) -> list[Scene]:
    """Plain scenes with the shapes that the adapter's training did not show."""
    rng = random.Random(seed)
    return [
        replace(draw_scene(rng, plain=1.0), shape=rng.choice(UNSEEN_SHAPES)) for _ in range(count)
    ]


def points_of(clip: Clip, pictures: list[Image.Image]) -> Floats:
    return np.asarray(clip.images(pictures).double().numpy())


def measure(run: Path, count: int) -> dict[str, Any]:
    """Train the classifier, generate pictures, classify them."""
    from llm_lora import pipeline
    from llm_lora import run as runs
    from llm_lora.engines.image.painting import Painter, Settings
    from llm_lora.engines.vision.clip import Clip
    from llm_lora.scores.image import figures as picture_figures
    from llm_lora.tasks.image.prepared import Prepared
    from llm_lora.vision import models as vision_models

    here = runs.find(run)
    prepared = pipeline.reopen(here)
    assert isinstance(prepared, Prepared)
    clip = Clip(vision_models.resolve("tiny", "clip"))
    pictures, labels = drawn(120, 1, unseen=False)
    classifier = learn(points_of(clip, pictures), labels)
    pictures, labels = drawn(60, 2, unseen=True)
    told = classifier.shares(points_of(clip, pictures)).argmax(axis=1)
    right = told == np.array(labels)

    painter = Painter(prepared.base, [(here.adapter, 1.0)], prepared.recipe.train.precision)
    settings = Settings.of(prepared.recipe.generate, prepared.resolution)
    captions = [caption(scene) for scene in asked(count, 3)]
    prompts = [f"{prepared.recipe.data.trigger}, {text}" for text in captions]
    painted = painter.strengths(prompts, STRENGTHS, settings, range(count))
    texts = np.asarray(clip.texts(captions).double().numpy())
    rows, bare = [], 0.0
    for strength, column in zip(STRENGTHS, painted, strict=True):
        points = points_of(clip, [Image.fromarray(one) for one in column])
        shares = classifier.shares(points)
        margin = float(picture_figures.margins(points, texts, range(count)).mean())
        bare = bare or margin
        rows.append(
            {
                "strength": strength,
                "style": float(shares[:, NAMES.index(STYLE)].mean()),
                "taken": float((shares.argmax(axis=1) == NAMES.index(STYLE)).mean()),
                "plain": float((shares.argmax(axis=1) == NAMES.index("")).mean()),
                "alignment": margin / bare,
            }
        )
    return {
        "accuracy": float(right.mean()),
        "accuracy_by_class": {
            name or "plain": float(right[np.array(labels) == label].mean())
            for label, name in enumerate(NAMES)
        },
        "pictures": count,
        "strengths": rows,
    }


def missed(found: dict[str, Any]) -> list[str]:
    """The missed bounds, as sentences."""
    rows = {row["strength"]: row for row in found["strengths"]}
    styles = [row["style"] for row in found["strengths"]]
    bounds = {
        f"the classifier is right in {found['accuracy']:.1%}, not in {ACCURACY:.0%}": (
            found["accuracy"] >= ACCURACY
        ),
        f"at 0.8 {rows[0.8]['taken']:.0%} are taken for the style, not {PRESENT:.0%}": (
            rows[0.8]["taken"] >= PRESENT
        ),
        f"at 0 {rows[0.0]['taken']:.0%} are taken for the style, above {ABSENT:.0%}": (
            rows[0.0]["taken"] <= ABSENT
        ),
        f"the style falls on the way: {', '.join(f'{one:.3f}' for one in styles)}": (
            all(later > earlier - LEVEL for earlier, later in pairwise(styles))
        ),
        f"{rows[0.8]['alignment']:.0%} of the prompt alignment is kept at 0.8, not {KEPT:.0%}": (
            rows[0.8]["alignment"] >= KEPT
        ),
    }
    return [sentence for sentence, holds in bounds.items() if not holds]


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/style_lora/latest"))
    parser.add_argument("--pictures", type=int, default=24, help="at each strength")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args()
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    found = measure(given.run, given.pictures)
    if given.as_json:
        print(json.dumps(found, indent=1))
    else:
        classes = ", ".join(
            f"{name} {share:.0%}" for name, share in found["accuracy_by_class"].items()
        )
        print(f"classifier: {found['accuracy']:.1%} of held-out drawings right ({classes})")
        print("strength  style  taken for it  taken for plain  prompt alignment kept")
        for row in found["strengths"]:
            print(
                f"{row['strength']:8g}  {row['style']:5.3f}  {row['taken']:12.0%}  "
                f"{row['plain']:15.0%}  {row['alignment']:21.0%}"
            )
    if problems := missed(found):
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
