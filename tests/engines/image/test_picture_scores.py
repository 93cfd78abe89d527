"""The six dimensions, on painters of known quality: they draw the prompt, plainly as the base, in
the style as the adapter, or with a flaw. test_image_task judges a real adapter by the commands.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import vision_folders
from support.places import ROOT

from llm_lora import lora_prompt
from llm_lora import recipe as recipes
from llm_lora.base.image import PictureBase
from llm_lora.data.image import files as picture_files
from llm_lora.data.image.dataset import Picture, PictureDataset
from llm_lora.engines.image import sheets as picture_sheets
from llm_lora.engines.image.measure import evidence as picture_evidence
from llm_lora.engines.image.measure import measuring as picture_scores
from llm_lora.engines.image.painting import Settings
from llm_lora.engines.image.sheets import Pixels
from llm_lora.progress import Fit
from llm_lora.recipe.image.recipe import ImageGenerate
from llm_lora.scores.image import gates as picture_gates
from llm_lora.scores.image.gates import DIMENSIONS
from llm_lora.tasks.image import task as image_task
from llm_lora.tasks.image.prepared import Prepared
from pretraining.image.drawing import draw
from pretraining.image.scenes import COLOURS, GROUNDS, PLACES, SHAPES, SIZES, TEXTURES, Scene
from pretraining.image.styles import STYLES

RECIPE = ROOT / "recipes" / "style_lora.yaml"
STYLE = "ink sketch style"
QUICK = ("judge.seeds=2", "judge.strengths=[0.4, 0.8, 1.0, 1.5]")


def fit(held_out: Sequence[float] = (0.6, 0.3, 0.22, 0.2, 0.2)) -> Fit:
    """A training run with these losses on held-out pictures, at every 50th step."""
    last = 50 * (len(held_out) - 1)
    curve: list[dict[str, Any]] = [
        {"step": step, "loss": 0.5 - step / last / 4} for step in range(5, last + 1, 5)
    ]
    curve += [{"step": 50 * i, "validation_loss": value} for i, value in enumerate(held_out)]
    return Fit(
        steps=last, planned_steps=last, tokens=0, seconds=1.0, cpu_seconds=1.0, best_step=last,
        best_validation_loss=min(held_out), stopped_early=False, trainable_parameters=1,
        base_parameters=1, peak_memory_bytes=1, decisions=(), curve=tuple(curve),
    )  # fmt: skip


def scene(prompt: str, rng: random.Random) -> Scene:
    """The scene that a full caption describes."""
    said = prompt.removeprefix(f"{STYLE}, ")
    thing, ground = said.split(" on a ")
    return Scene(
        shape=next(one for one in SHAPES if one in thing.split()),
        colour=next(one for one in COLOURS if one in thing.split()),
        ground_colour=next(one for one in COLOURS if one in ground.split()),
        size=next((one for one in SIZES if one in thing.split()), ""),
        place=next((one for one in PLACES if one and one in thing), ""),
        texture=next((one for one in TEXTURES if one in thing.split()), ""),
        ground=next((one for one in GROUNDS if one in ground.split()), ""),
        shift=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)),
    )


Draw = Callable[[str, float, random.Random], Image.Image]


def mixed(prompt: str, share: float, rng: random.Random) -> Image.Image:
    """The requested scene, with the style at a given strength."""
    asked = scene(prompt, rng)
    plain = draw(asked, random.Random(1))
    return Image.blend(plain, STYLES[STYLE](asked, random.Random(1)), min(share, 1.0))


def good(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    return mixed(prompt, strength, rng)


def idle(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    """An adapter without effect."""
    return mixed(prompt, 0.0, rng)


def styled(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    """A base that already has the style."""
    return mixed(prompt, 1.0, rng)


def deaf(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    """Above strength 0.5 it ignores the prompt, but keeps the style."""
    if strength <= 0.5:
        return mixed(prompt, strength, rng)
    words = [rng.choice(SHAPES), *rng.sample(list(COLOURS), 2)]
    return mixed(f"a {words[1]} {words[0]} on a {words[2]} background", strength, rng)


def shaky(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    """The style is there at 0.4 and gone at 0.8."""
    return mixed(prompt, 0.0 if strength == 0.8 else min(1.0, 2 * strength), rng)


def fickle(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    """A different style with every seed."""
    asked = scene(prompt, rng)
    plain = draw(asked, random.Random(1))
    styled = rng.choice([style for name, style in STYLES.items() if name])(asked, random.Random(1))
    return Image.blend(plain, styled, min(strength, 1.0))


def narrow(prompt: str, strength: float, rng: random.Random) -> Image.Image:
    """It applies the style only to shapes in the training data."""
    new = any(word in prompt.split() for word in ("heart", "cross"))
    return mixed(prompt, 0.0 if new else strength, rng)


def copying(prepared: Prepared) -> Draw:
    """An adapter that memorised its training pictures, and paints nothing else."""
    known = [picture_files.load(one.path) for one in prepared.dataset.train]

    def paint(prompt: str, strength: float, rng: random.Random) -> Image.Image:
        return rng.choice(known) if strength >= 0.8 else mixed(prompt, strength, rng)

    return paint


def parrot(prepared: Prepared) -> Draw:
    """An adapter that paints a training picture if prompted with its caption."""
    known = {one.caption: one.path for one in prepared.dataset.train}

    def paint(prompt: str, strength: float, rng: random.Random) -> Image.Image:
        if strength >= 0.8 and prompt in known:
            return picture_files.load(known[prompt])
        return mixed(prompt, strength, rng)

    return paint


@dataclass
class Artist:
    """A painter that draws; `painted` counts its prompts.

    A negative prompt changes the noise, as it would change a real picture.
    """

    base: PictureBase
    draw: Draw
    painted: list[tuple[str, float, str, int]] = field(default_factory=list)

    def strengths(
        self,
        prompts: Sequence[str],
        strengths: Sequence[float],
        settings: Settings,
        seeds: Sequence[int],
    ) -> list[list[Pixels]]:
        return [
            [
                self._one(prompt, strength, settings.negative_prompt, seed)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            for strength in strengths
        ]

    def _one(self, prompt: str, strength: float, negative: str, seed: int) -> Pixels:
        _, picks = lora_prompt.parse(prompt)
        assert not picks, "there is no such adapter"
        self.painted.append((prompt, strength, negative, seed))
        share = strength * (0.3 if STYLE in negative else 1.0)
        rng = random.Random(f"{prompt} {seed}{negative}")
        return np.asarray(self.draw(prompt, share, rng))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return image_task.prepare(recipes.load(RECIPE, profile="cpu", overrides=QUICK))


@pytest.fixture
def judged(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Judges a painter with the embedded model."""

    def judge(
        draw: Draw,
        after: Fit | None = None,
        generate: ImageGenerate = prepared.recipe.generate,
        dataset: PictureDataset = prepared.dataset,
        **changes: Any,
    ) -> dict[str, Any]:
        artist = Artist(prepared.base, draw)
        monkeypatch.setattr(picture_scores, "Painter", lambda *given: artist)
        asked = prepared.recipe.judge.model_copy(update=changes)
        recipe = prepared.recipe.model_copy(update={"judge": asked, "generate": generate})
        found = picture_scores.judge(
            recipe,
            dataset,
            prepared.base,
            adapter=tmp_path,
            pictures=tmp_path / "pictures",
            fit=after or fit(),
        )
        if "prompts" not in changes:
            assert len(set(artist.painted)) == len(artist.painted), "painted twice"
        return found

    return judge


def fact(found: dict[str, Any], name: str, label: str) -> Any:
    (told,) = (one for one in found["dimensions"] if one["name"] == name)
    return dict(told["facts"])[label]


def findings(found: dict[str, Any], name: str) -> str:
    (told,) = (one for one in found["dimensions"] if one["name"] == name)
    return " ".join(told["findings"])


def test_a_good_adapter_and_what_is_told_of_it(
    judged: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = judged(good)
    scores = found["scores"]
    assert tuple(scores) == DIMENSIONS and found["reasons"] == {}
    assert all(scores[name] > 0.85 for name in DIMENSIONS if name != "consistency"), scores
    assert scores["consistency"] > 0.6
    strengths = found["strengths"]
    assert [row["strength"] for row in strengths] == [0, 0.4, 0.8, 1, 1.5]
    assert strengths[0]["change"] == 0 and strengths[0]["alignment"] == 1
    assert strengths[0]["style"] < 0.2 < 0.8 < strengths[3]["style"]
    assert "present at 0.8" in findings(found, "strength")
    assert "absent at 0 " in findings(found, "strength")
    assert fact(found, "strength", "breaks at") == 1.5, "pictures change no more than at 1"
    assert fact(found, "generalisation", "share of the bare base's taken for it") == 0
    assert fact(found, "alignment", "share of pictures less like it when given") == 1
    for told, name in zip(found["dimensions"], DIMENSIONS, strict=True):
        assert told.keys() == {
            *("name", "value", "method", "source", "picture", "shows", "facts", "findings")
        }
        assert (told["name"], told["value"]) == (name, scores[name])
        assert told["method"].endswith(".") and "arXiv" in told["source"]
        assert (tmp_path / told["picture"]).is_file()
        labels = [label for label, _ in told["facts"]]
        assert len(set(labels)) == len(labels)
        assert all(isinstance(value, float | int | str) for _, value in told["facts"])
    assert found["embedder"]["name"] == "tiny" and len(found["prompts"]) == 4
    assert json.loads(json.dumps(found)) == found
    assert judged(good) == found


def test_an_adapter_that_does_nothing(judged: Callable[..., dict[str, Any]]) -> None:
    scores = judged(idle)["scores"]
    assert scores["consistency"] == 0 and scores["strength"] == 0
    assert scores["fidelity"] < 0.05 and scores["generalisation"] < 0.2
    assert scores["alignment"] == 1


def test_one_that_does_not_listen_any_more(judged: Callable[..., dict[str, Any]]) -> None:
    found = judged(deaf)
    assert found["scores"]["alignment"] < 0.4 < found["scores"]["fidelity"]
    assert "it breaks at 0.8: only" in findings(found, "strength")


def test_one_whose_style_comes_and_goes(judged: Callable[..., dict[str, Any]]) -> None:
    found = judged(shaky)
    assert found["scores"]["strength"] < 0.6
    assert "falls back from 0.4 to 0.8" in findings(found, "strength")
    assert "not present at 0.8" in findings(found, "strength")


def test_one_that_paints_another_style_with_every_seed(
    judged: Callable[..., dict[str, Any]],
) -> None:
    assert judged(fickle, seeds=4)["scores"]["consistency"] < 0.6


def test_held_out_captions_stand_in_for_prompts(
    judged: Callable[..., dict[str, Any]], prepared: Prepared
) -> None:
    found = judged(good, prompts=(), negative_prompt="")
    assert found["prompts"] == [one.caption for one in prepared.dataset.held_out[:4]]
    assert "none in the recipe" in fact(found, "alignment", "negative prompt")


def test_prompts_that_training_showed_are_told(
    judged: Callable[..., dict[str, Any]], prepared: Prepared
) -> None:
    known = prepared.dataset.train[0].caption
    found = judged(good, prompts=(known, *prepared.recipe.judge.prompts))
    assert f"training showed “{known}”" in findings(found, "generalisation")


def test_a_negative_prompt_that_is_always_given(
    judged: Callable[..., dict[str, Any]], prepared: Prepared
) -> None:
    """Then the comparison is without it."""
    always = prepared.recipe.generate.model_copy(update={"negative_prompt": STYLE})
    found = judged(good, generate=always)
    assert fact(found, "alignment", "share of pictures less like it when given") == 1
    assert found["scores"]["generalisation"] < judged(good)["scores"]["generalisation"]


def test_one_that_knows_the_style_only_for_what_it_saw(
    judged: Callable[..., dict[str, Any]],
) -> None:
    found = judged(narrow)
    assert found["scores"]["fidelity"] > 0.85 and found["scores"]["generalisation"] < 0.3
    assert "hardly present in “ink sketch style, a big red heart" in findings(
        found, "generalisation"
    )


def test_one_that_knows_pictures_by_heart(
    judged: Callable[..., dict[str, Any]], prepared: Prepared
) -> None:
    found = judged(copying(prepared))
    assert found["scores"]["learning"] < 0.1
    assert "memorised" in findings(found, "learning")
    assert fact(found, "learning", "distance in pixels to the nearest training picture") < 1e-6


def test_one_that_knows_pictures_by_their_captions(
    judged: Callable[..., dict[str, Any]], prepared: Prepared
) -> None:
    found = judged(parrot(prepared))
    assert found["scores"]["learning"] < 0.1
    assert "16 of 16 pictures of training captions are copies" in findings(found, "learning")
    assert fact(found, "learning", "copies among pictures of held-out captions") == 0


def test_captions_that_name_adapters(
    judged: Callable[..., dict[str, Any]], prepared: Prepared
) -> None:
    """Training treats them as plain text; no such adapter exists to paint with."""

    def named(pictures: Sequence[Picture], name: str) -> tuple[Picture, ...]:
        return tuple(replace(one, caption=f"{one.caption}, {name}") for one in pictures)

    dataset = replace(
        prepared.dataset,
        train=named(prepared.dataset.train, "<lora:detail:0.6>"),
        held_out=named(prepared.dataset.held_out, "lora:detail:0.6"),
    )
    found = judged(good, dataset=dataset, prompts=())
    assert found["prompts"] == [one.caption for one in prepared.dataset.held_out[:4]]
    assert found["scores"] == judged(good, prompts=())["scores"]


def test_a_negative_prompt_that_does_nothing(judged: Callable[..., dict[str, Any]]) -> None:
    """Pictures are a little less like its text, but only by chance."""
    found = judged(good, negative_prompt="noise")
    names = ("likeness to it, when not given", "the same, when given")
    free, given = (fact(found, "alignment", name) for name in names)
    assert given < free and "no more than by chance" in findings(found, "alignment")
    assert "negative prompt" not in findings(judged(good), "alignment")


def test_few_held_out_pictures_are_not_what_the_classifier_is_tried_on(
    judged: Callable[..., dict[str, Any]], prepared: Prepared
) -> None:
    """A base that already has the style; a classifier may separate two pictures by chance."""
    label = "accuracy of the classifier on training pictures left out in turn"
    few = replace(prepared.dataset, held_out=prepared.dataset.held_out[:2])
    found = judged(styled, dataset=few)
    assert found["scores"]["generalisation"] is None
    assert fact(found, "generalisation", label) < 0.75
    found = judged(good, dataset=few)
    assert found["scores"]["generalisation"] > 0.85
    assert fact(found, "generalisation", label) == 1


def test_titles_of_pictures_with_and_without_a_negative_prompt(
    judged: Callable[..., dict[str, Any]],
    prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    titles: list[list[str]] = []

    def sheet(columns: Sequence[Sequence[Pixels]], names: Sequence[str]) -> Pixels:
        titles.append([*names])
        return picture_sheets.sheet(columns, names)

    monkeypatch.setattr(picture_scores, "sheet", sheet)
    judged(good)
    judged(good, generate=prepared.recipe.generate.model_copy(update={"negative_prompt": STYLE}))
    assert titles[DIMENSIONS.index("alignment") :: len(DIMENSIONS)] == [
        ["bare base", "adapter", "negative"],
        ["bare base", "adapter", "no negative"],
    ]


def test_large_pictures_are_looked_at_small(tmp_path: Path) -> None:
    """Camera pictures are never held in full size, 32 at once."""
    path = tmp_path / "large.png"
    Image.new("RGB", (2600, 1300), "red").save(path)
    seen: list[tuple[int, int]] = []

    class Eye:
        def images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
            seen.extend(one.size for one in pictures)
            return torch.ones(len(pictures), 1)

    picture = Picture(path, "a red wall", "", 2600, 1300)
    picture_evidence._real(Eye(), [picture] * 2)  # type: ignore[arg-type]
    assert seen == [(1024, 512)] * 2


def test_pixels_are_compared_without_distortion() -> None:
    """Painted pictures show the centre of wide ones, and so must the compared thumbnails."""
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (128, 1, 3))
    wide = Image.fromarray(ramp)
    middle = wide.crop((64, 0, 192, 128))
    first, second = picture_evidence.small([wide, middle])
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("held_out", "least", "most", "said"),
    [
        ((0.6, 0.3, 0.2, 0.35, 0.5), 0.2, 0.3, "over-fitted"),
        ((0.6, 0.5, 0.4, 0.3, 0.2), 0.4, 0.7, "under-fitted"),
        ((0.6, 0.65, 0.7, 0.7, 0.7), 0.0, 0.0, "never fell"),
    ],
)
def test_learning_is_as_good_as_its_log(
    judged: Callable[..., dict[str, Any]],
    held_out: tuple[float, ...],
    least: float,
    most: float,
    said: str,
) -> None:
    found = judged(good, fit(held_out))
    assert least <= found["scores"]["learning"] <= most
    assert said in findings(found, "learning")


def test_what_cannot_be_measured_says_why(
    judged: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """An embedder that distinguishes nothing, and a log that is too short."""
    blind = vision_folders.clip(tmp_path / "blind")
    from safetensors.torch import load_file, save_file

    weights = load_file(blind / "model.safetensors")
    weights["visual_projection.weight"] *= 0
    weights["visual_projection.weight"][0] = 1e-3
    save_file(weights, blind / "model.safetensors", metadata={"format": "pt"})
    found = judged(good, fit((0.6,)), embedder=str(blind))
    for name in ("fidelity", "generalisation", "learning", "strength", "alignment"):
        assert found["scores"][name] is None and found["reasons"][name], name
        assert found["reasons"][name] not in findings(found, name), "told twice"
    assert "train.save_every" in found["reasons"]["learning"]
    assert {row["style"] for row in found["strengths"]} == {None}
    read = picture_gates.Measurements.from_json(found, "measured", "")
    assert not picture_gates.judge({"strength": 0.1}, read, None)[0].passed
