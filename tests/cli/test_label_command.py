"""`llm-lora label` as it is used: three methods, a power failure, mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support import vision_folders
from support.commands import Command
from support.drawn import folder, scene
from support.local_server import Application, said, serving
from test_architecture import run_light


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures without captions."""
    home = folder(tmp_path / "pictures", 12, (48, 48))
    (home / "metadata.csv").unlink()
    return home


def texts(home: Path) -> dict[str, str]:
    with (home / "metadata.csv").open(newline="") as file:
        return {row["file_name"]: row["text"] for row in csv.DictReader(file)}


def label(*arguments: object) -> tuple[int, str]:
    return Command("label", *arguments).finish()


@pytest.mark.slow
def test_clip_with_the_embedded_model_and_a_review_sheet(pictures: Path, tmp_path: Path) -> None:
    choices, review = tmp_path / "c.txt", tmp_path / "review.html"
    choices.write_text("[what]\na circle\na square\n[how]\nin red\nin blue\n")
    clip = (pictures, "--method", "clip", "--model", "tiny", "--candidates", choices)
    code, output = label(*clip, "--trigger", "ohwx", "--review", review)
    assert code == 0, output
    assert f"12 captions written to {pictures}/metadata.csv" in output
    assert f"review page: {review}" in output
    found = texts(pictures)
    assert len(found) == 12
    assert all(text.startswith(("ohwx, a circle", "ohwx, a square")) for text in found.values())
    assert review.read_text().count("data:image/jpeg") == 12
    code, output = label(*clip, "--trigger", "ohwx", "--json")
    document = json.loads(output)
    assert code == 0 and document["written"] == 0
    assert document["kept"] == {"people": 0, "machine": 12}
    assert document["captions"] == found
    assert "low_variety_captions" in [finding["kind"] for finding in document["findings"]]


@pytest.mark.slow
def test_blip_from_a_folder_goes_on_over_a_broken_picture(pictures: Path, tmp_path: Path) -> None:
    model = vision_folders.blip(tmp_path / "blip")
    (pictures / "003.png").write_bytes(b"\x89PNG")
    code, output = label(pictures, "--method", "blip", "--model", model, "--batch-size", 5)
    assert code == 0, output
    assert "11 captions written" in output and "003.png: broken: " in output
    assert len(texts(pictures)) == 11 and "Traceback" not in output


def test_a_killed_labelling_goes_on_where_it_stopped(pictures: Path) -> None:
    for seed in range(12, 40):
        scene(seed, (48, 48)).save(pictures / f"{seed:03}.png")
    here = Application({("POST", "/v1/chat/completions"): lambda _: said("a tower")}, pause=0.3)
    with serving(here) as url:
        vlm = ("--method", "vlm", "--model", "m", "--url", url, "--batch-size", 2, "--jobs", 2)
        first = Command("label", pictures, *vlm)
        first.wait_until(lambda: (pictures / "metadata.csv").exists())
        first.kill()
        kept = texts(pictures)
        assert 0 < len(kept) < 40
        asked = len(here.asked)
        name = sorted(kept)[0]
        edited = (pictures / "metadata.csv").read_text().replace(f"{name},a tower", f"{name},mine")
        (pictures / "metadata.csv").write_text(edited)
        here.pause = 0.0
        code, output = label(pictures, *vlm)
    assert code == 0, output
    assert len(here.asked) - asked == 40 - len(kept)
    assert "1 by people" in output and f"{len(kept) - 1} by machines" in output
    found = texts(pictures)
    assert len(found) == 40 and found.pop(name) == "mine"
    assert set(found.values()) == {"a tower"}


def test_trouble_with_the_server_keeps_what_was_done(pictures: Path) -> None:
    answers: list[Any] = [said("a tower")] * 4 + [(401, {"error": "no more credit"})]
    here = Application(
        {("POST", "/v1/chat/completions"): lambda _: answers.pop(0) if answers[1:] else answers[0]}
    )
    with serving(here) as url:
        code, output = label(
            pictures, "--method", "vlm", "--model", "m", "--url", url, "--batch-size", 2
        )
    assert code == 2
    assert "error: " in output and "no more credit" in output and "LLM_LORA_VISION_KEY" in output
    assert len(texts(pictures)) == 4


def test_the_built_in_candidates_can_be_taken_and_edited() -> None:
    code, output = label("--list-candidates")
    assert code == 0 and "[subject]" in output and "--candidates" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "vlm"), "--method vlm needs --url and --model"),
        (("--method", "blip", "--url", "http://x"), "--url is for --method vlm"),
        (("--method", "vlm", "--candidates", "x"), "--candidates is for --method clip"),
        (("--method", "clip", "--candidates", "nope.txt"), "no such file"),
        (("--method", "clip", "--model", "./nope"), "no such folder"),
        (("--method", "blip", "--model", "tiny"), "this is a model of type clip, not blip"),
        (("--method", "vlm", "--model", "m", "--url", "x"), "not a server address"),
    ],
)
def test_mistakes_are_told_before_anything_heavy_is_loaded(
    pictures: Path, arguments: tuple[str, ...], message: str, surroundings: dict[str, str]
) -> None:
    code, _, heavy = run_light(surroundings, "label", str(pictures), *arguments)
    assert (code, heavy) == (2, "[]")
    code, output = label(pictures, *arguments)
    assert "error: " in output and message in output
    assert not (pictures / "metadata.csv").exists()


def test_help_is_light(surroundings: dict[str, str]) -> None:
    code, _, heavy = run_light(surroundings, "label", "--help")
    assert (code, heavy) == (0, "[]")
