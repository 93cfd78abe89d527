"""The report of an image adapter: its figures, and its page in a real browser."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support import browser, drawn

from llm_lora import files
from llm_lora import recipe as recipes
from llm_lora.cli import commands, shelves
from llm_lora.data.image import dataset as pictures
from llm_lora.data.image.dataset import PictureDataset
from llm_lora.engines.image.sheets import sheet, write_picture
from llm_lora.errors import UserError
from llm_lora.progress import Fit
from llm_lora.recipe.image.recipe import ImageRecipe
from llm_lora.report.document import RecipeIdentity
from llm_lora.report.image import building as picture_report
from llm_lora.report.image import embed as picture_embed
from llm_lora.report.image import page as picture_page
from llm_lora.report.image.document import AdapterIdentity, BaseIdentity, ImageReport
from llm_lora.run import Run
from llm_lora.schema.answer import AnswerSchema
from llm_lora.scores.image.gates import DIMENSIONS, Measurements
from llm_lora.store.listing import Listed, Standing, StoredRow
from llm_lora.tasks import steps

HOSTILE = '<img src=x onerror="alert(1)">'
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RECIPE = """
task: image
name: sketch
base: tiny
data: {train: ./data, held_out: 0.2, bucket_step: 8, min_size: 16, blur: 0, trigger: ink sketch}
train:
  samples: ["ink sketch, a red circle", 'ink sketch, <img src=x onerror="alert(1)">']
generate: {seed: 7}
"""


def dataset(folder: Path) -> tuple[ImageRecipe, PictureDataset]:
    """Twelve drawn pictures, one of them broken, one with a hostile name, and their recipe."""
    drawn.folder(folder / "data", 10, (48, 40))
    drawn.scene("b", (40, 56)).save(folder / "data" / "tall.png")
    drawn.scene("c", (48, 40)).save(folder / "data" / "<b>.png")
    (folder / "data" / "broken<i>.png").write_bytes(b"\x89PNG")
    with (folder / "data" / "metadata.csv").open("a") as file:
        file.write(f'tall.png,tall\n<b>.png,"{HOSTILE.replace(chr(34), "")}"\nbroken<i>.png,x\n')
    path = folder / "sketch.yaml"
    path.write_text(RECIPE)
    recipe = recipes.load(path)
    assert isinstance(recipe, ImageRecipe)
    return recipe, pictures.prepare(recipe, 64)


def grid(path: Path, columns: int, side: int = 64) -> None:
    """A sheet of scenes, as the engine writes it."""
    scenes = [[np.asarray(drawn.scene((x, y), (side, side))) for y in range(3)]
              for x in range(columns)]  # fmt: skip
    write_picture(path, sheet(scenes, [f"{x:g}" for x in range(columns)]))


def measured(folder: Path, *, side: int = 64) -> dict[str, Any]:
    """All possible measurements, with pictures in the folder."""
    told = []
    for number, name in enumerate(DIMENSIONS):
        grid(folder / "pictures" / f"{name}.png", 4 if name != "strength" else 6, side)
        told.append(
            {
                "name": name,
                "value": 0.9 - number / 20,
                "method": "Mean cosine of all pairs of pictures of a prompt, less that of the base",
                "source": "DreamBooth, arXiv 2208.12242, section 4",
                "picture": f"pictures/{name}.png",
                "shows": "A row for each prompt, a column for each seed.",
                "facts": [
                    ["pictures", 16],
                    ["of the base", 0.412],
                    ["nearest", HOSTILE],
                    ["chance that a painted one lies closer than a held-out one", 0.5],
                ],
                "findings": ["The third prompt varies more than the others."] * (number % 2),
            }
        )
    return {
        "scores": {name: 0.9 - number / 20 for number, name in enumerate(DIMENSIONS)},
        "reasons": {},
        "dimensions": told,
        "strengths": [
            {
                "strength": strength,
                "change": 40 * strength**0.7,
                "style": 1 / (1 + math.exp(6 - 12 * strength)),
                "alignment": 0.9 - 0.1 * strength**2,
            }
            for strength in STRENGTHS
        ],
        "embedder": {"name": "tiny"},
        "prompts": [f"ink sketch, {HOSTILE}", *(f"ink sketch, scene {i}" for i in range(9))],
    }


def fit(**changes: Any) -> Fit:
    """The training log of 200 steps."""
    curve: list[dict[str, Any]] = [
        {"step": step, "loss": 0.5 + math.exp(-step / 60) + 0.1 * math.sin(step)}
        for step in range(5, 201, 5)
    ]
    curve += [
        {"step": step, "validation_loss": 0.7 + math.exp(-step / 40) + (step / 400) ** 2}
        for step in range(0, 201, 50)
    ]
    values: dict[str, Any] = {
        "steps": 200, "planned_steps": 300, "tokens": 0, "seconds": 62.0, "cpu_seconds": 60.0,
        "best_step": 150, "best_validation_loss": 0.86, "stopped_early": True,
        "trainable_parameters": 311_296, "base_parameters": 7_000_000,
        "peak_memory_bytes": 2**30, "decisions": ("out of memory: <checkpointing> is on",),
        "curve": tuple(curve), "pictures": 2400,
    }  # fmt: skip
    return Fit(**values | changes)


def measurements(told: dict[str, Any]) -> Measurements:
    """The measurements told; everything else was not measured."""
    empty = {"scores": {}, "reasons": {}, "dimensions": [], "strengths": [], "embedder": None,
             "prompts": []}  # fmt: skip
    basis = {"value": None, "method": "", "source": "", "picture": None, "shows": "", "facts": [],
             "findings": []}  # fmt: skip
    whole = empty | told
    whole["dimensions"] = [basis | one for one in whole["dimensions"]]
    whole["strengths"] = [{"style": None, "alignment": None} | one for one in whole["strengths"]]
    return Measurements.from_json(whole, "test", "")


def document(
    told: dict[str, Any],
    gates: dict[str, float],
    schema: AnswerSchema | None = None,
    alpha: float = 16,
) -> ImageReport:
    return picture_report.build(
        recipe=RecipeIdentity("sketch", "d1" * 32, "cpu"),
        base=BaseIdentity("/home/ann/models/sd15", "d2" * 32, "sd1"),
        adapter=AdapterIdentity(
            digest="d3" * 32, rank=8, alpha=alpha, modules=192, bytes=1_260_000,
            trigger="ink sketch",
        ),
        held_out={"all": 2},
        measured=measurements(told),
        gates=gates,
        seconds=92.04,
        peak_memory_bytes=2**30,
        schema=schema,
    )  # fmt: skip


def paint_samples(folder: Path, steps: int, side: int = 64) -> None:
    for number in range(steps):
        for prompt in range(2):
            path = folder / "samples" / f"step-{number * 20}" / f"{prompt:02}.png"
            write_picture(path, np.asarray(drawn.scene((prompt, number), (side, side))))


def write(
    folder: Path,
    told: dict[str, Any] | None = None,
    gates: dict[str, float] | None = None,
    **changes: Any,
) -> str:
    """Write a run in `folder` and return its page."""
    recipe, found = dataset(folder)
    run = Run(folder / "runs" / "sketch" / "one")
    run.folder.mkdir(parents=True, exist_ok=True)
    paint_samples(run.folder, 11)
    told = measured(run.folder) if told is None else told
    gates = {"fidelity": 0.9, "strength": 0.5} if gates is None else gates
    files.write_text(run.recipe, recipe.to_yaml(run.folder))
    found.write(run.dataset)
    picture_report.write(
        run.folder,
        document(told, gates, alpha=changes.get("alpha", 16)),
        recipe=recipe,
        dataset=found,
        fit=changes.get("fit", fit()),
        samples=run.samples,
    )
    return run.page.read_text(encoding="utf-8")


def text(html: str, part: str = "main") -> str:
    """The text of a page without tags, of one section by its heading or of the whole page."""
    if part != "main":
        assert f"<h2>{part}" in html, part
        html = html.partition(f"<h2>{part}")[2].partition("</section>")[0]
    body = html.partition("</style>")[2] or html
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def embedded(html: str) -> list[tuple[str, bytes]]:
    """Every picture in a page: its type and its bytes."""
    found = re.findall(r'src="data:image/(png|jpeg);base64,([^"]+)"', html)
    assert len(found) == html.count("<img")
    return [(kind, base64.b64decode(data)) for kind, data in found]


# --- report.json ----------------------------------------------------------------------------------


def test_every_dimension_has_its_place_and_every_gate_its_outcome() -> None:
    told = {
        "scores": {"strength": 1.0, "alignment": 0.4},
        "reasons": {"fidelity": "no held-out pictures"},
        "strengths": [{"strength": 0.0, "change": 0.0, "style": None, "alignment": None}],
    }
    gates = {"strength": 1.0, "alignment": 0.5, "fidelity": 0.1, "learning": 0.1}
    found = document(told, gates).to_json()
    assert tuple(found["scores"]) == DIMENSIONS
    assert [gate["passed"] for gate in found["gates"]] == [True, False, False, False]
    assert found["gates"][0] == {
        "name": "strength", "threshold": 1.0, "value": 1.0, "passed": True,
    }  # fmt: skip
    assert found["gates"][2]["reason"] == "no held-out pictures"
    assert found["gates"][3]["reason"] == "not measured"
    assert not found["passed"] and document(told, {}).passed
    assert found["strengths"] == told["strengths"]
    assert found["reasons"] == told["reasons"]
    assert json.loads(json.dumps(found)) == found


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has all measurements."""
    folder = tmp_path_factory.mktemp("page")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def page(home: Path) -> str:
    return (home / "runs" / "sketch" / "one" / "report.html").read_text(encoding="utf-8")


def test_an_alpha_that_is_not_whole_is_shown_short(tmp_path: Path) -> None:
    page = write(tmp_path, alpha=math.sqrt(2048))
    assert "Rank 8, alpha 45.2548 " in text(page, "Adapter")


def test_the_page_has_its_sections_in_order(page: str) -> None:
    assert re.findall(r"<h2>([A-Za-z ]+)", page) == [
        "Gates", "Prompts", *DIMENSIONS, "Loss", "Samples during training", "Pictures", "Adapter",
        "This run", "Next steps",
    ]  # fmt: skip
    expected = {
        "Gates": ["fidelity check", "failed 0.850 ≥ 0.900", "strength", "passed 0.700 ≥ 0.500"],
        "Prompts": ["ink sketch, scene 6", "And 2 more"],
        "fidelity": ["0.850", "wanted ≥ 0.900", "of the base 0.412", "third prompt varies",
                     "Source: DreamBooth", "A row for each prompt"],
        "strength": ["style alignment", "change of the picture", "style: 0.9975 at strength 1"],
        "Loss": ["kept: step 150", "stopped at step 200 of 300", "weights of step 150"],
        "Samples during training": ["before", "step 200", "seed 7", "seed 8", "5 more steps"],
        "Pictures": ["Trained on 9", "Held out 3", "Set aside 1", "data/broken", "its header"],
        "Adapter": ["Rank 8, alpha 16", "311,296", "1.3 MB", "Trigger ink sketch"],
        "Next steps": ["--webui", "runs/sketch/one", "--grid strength=0..1:0.2",
                      "llm-lora publish", "&lt;lora:sketch:0.8&gt;"],
        "This run": ["Training 1 min 2 s", "Whole command 1 min 32 s", "200 of 300", "1.00 GiB"],
    }  # fmt: skip
    for part, sentences in expected.items():
        for sentence in sentences:
            assert sentence in text(page, part), f"{part}: {sentence} not in {text(page, part)}"
    assert "1 of 2 gates failed" in text(page)


def test_bounds_of_a_schema_are_told_as_such(tmp_path: Path) -> None:
    schema = AnswerSchema.from_text(
        json.dumps({"type": "object", "properties": {"fidelity": {"minimum": 0.9}}})
    )
    recipe, found = dataset(tmp_path)
    told = document(measured(tmp_path), {"strength": 0.5}, schema=schema)
    html = picture_page.render(
        tmp_path, told, recipe=recipe, dataset=found, fit=fit(), samples=tmp_path
    )
    gates = text(html, "Gates")
    assert "fidelity data.schema" in gates and "strength check" in gates
    assert "all measurements data.schema" in gates and "they do not fit fit the schema" in gates
    assert "wanted ≥ 0.900 by data.schema" in text(html, "fidelity")
    assert "2 of 3 gates failed" in text(html)


def test_what_people_wrote_is_text_and_nothing_is_fetched(page: str) -> None:
    for tag in ("<img src=x", "<i>", "<b>", "<checkpointing>", "<script", "<link", "@import"):
        assert tag not in page, tag
    assert "&lt;img src=x onerror=" in page and "broken&lt;i&gt;.png" in page
    assert "&lt;checkpointing&gt;" in page
    places = {place.partition(",")[0] for place in re.findall(r'(?:src|href)="([^"]+)', page)}
    assert places == {"data:image/png;base64", *(f"#{name}" for name in DIMENSIONS)}
    assert "default-src 'none'; img-src data:" in page


def test_small_pictures_are_enlarged_without_loss_and_large_ones_reduced(tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    grid(small, 4)
    grid(large, 4, side=512)
    one = picture_embed.embed(small, side=1600, most_bytes=600_000)
    assert one is not None and (one.times(560), one.times(300)) == (2, 1)
    kind, data = embedded(f'<img src="{one.url}">')[0]
    assert kind == "png"
    with Image.open(BytesIO(data)) as shown, Image.open(small) as drawn_one:
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(drawn_one))
        assert not shown.info  # It contains no metadata such as prompts or paths.
    two = picture_embed.embed(large, side=1600, most_bytes=600_000)
    assert two is not None and (two.width, two.times(1036)) == (1600, 1)


def test_no_picture_takes_more_than_its_share(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (700, 900, 3), np.uint8)
    write_picture(tmp_path / "noise.png", noise)
    for most in (200_000, 20_000, 2_000):
        found = picture_embed.embed(tmp_path / "noise.png", side=800, most_bytes=most)
        assert found is not None
        ((_, data),) = embedded(f'<img src="{found.url}">')
        assert len(data) <= most
        with Image.open(BytesIO(data)) as shown:
            assert shown.size == (found.width, found.height)
    assert picture_embed.embed(tmp_path / "none.png", side=8, most_bytes=9) is None
    (tmp_path / "bad.png").write_bytes(b"\x89PNG....")
    assert picture_embed.embed(tmp_path / "bad.png", side=8, most_bytes=9) is None


def test_the_limits_keep_a_page_mailable() -> None:
    judged = len(DIMENSIONS) * picture_page._JUDGED["most_bytes"]
    samples = picture_page.STEPS * picture_page.PROMPTS * picture_page._SAMPLE["most_bytes"]
    learned = picture_page.LEARNED * picture_page._LEARNED["most_bytes"]
    assert (judged + samples + learned) * 4 / 3 < 8e6


def test_little_was_measured(tmp_path: Path) -> None:
    told = {
        "scores": {"strength": 1.0},
        "reasons": {"fidelity": "the embedder is not at hand"},
        "strengths": [{"strength": 0.0, "change": 0.0}, {"strength": 1.0, "change": 9.0}],
        "dimensions": [{"name": "strength", "picture": "pictures/gone.png"},
                       {"name": "learning", "picture": "../../../../sketch.yaml"}],
    }  # fmt: skip
    curve = ({"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.5})
    done = fit(curve=curve, steps=10, planned_steps=10, best_step=10, stopped_early=False)
    html = write(tmp_path, told, {}, fit=done)
    assert "no gates set" in text(html) and "sets no bounds" in text(html)
    missing = text(html, "Not measured")
    assert "fidelity" in missing and "the embedder is not at hand" in missing
    assert "strength" not in missing
    assert "All 10 steps were completed" in text(html, "Loss")
    assert "No validation loss was measured" in text(html, "Loss")
    assert "change of the picture" in text(html, "strength") and "compared with" not in text(html)


def test_a_run_without_samples_or_curve_or_pictures_of_its_data(tmp_path: Path) -> None:
    recipe, found = dataset(tmp_path)
    for picture in found.train:
        picture.path.unlink()
    html = picture_page.render(
        tmp_path,
        document({"scores": {}}, {}),
        recipe=recipe,
        dataset=found,
        fit=fit(curve=(), pictures=0, seconds=0.0),
        samples=tmp_path / "samples",
    )
    assert embedded(html) == []
    assert re.findall(r"<h2>([A-Za-z ]+)", html) == [
        "Not measured", "Pictures", "Adapter", "This run", "Next steps",
    ]  # fmt: skip


def test_samples_that_were_cut_off_leave_a_gap(tmp_path: Path) -> None:
    recipe, found = dataset(tmp_path)
    paint_samples(tmp_path, 2)
    (tmp_path / "samples" / "step-20" / "01.png").unlink()
    (tmp_path / "samples" / "step-x").mkdir()
    html = picture_page.render(
        tmp_path, document({"scores": {}}, {}), recipe=recipe, dataset=found, fit=fit(),
        samples=tmp_path / "samples",
    )  # fmt: skip
    assert "no picture" in text(html, "Samples during training")


def test_paths_of_the_machine_stay_here(page: str, home: Path) -> None:
    assert str(home.parent) not in page and str(Path.home()) not in page
    assert "models/sd15" in page and "/home/ann" not in page


@browser.needed
def test_the_page_fits_a_phone_in_light_and_dark(tmp_path: Path) -> None:
    write(tmp_path / "run", measured_large(tmp_path / "run" / "runs" / "sketch" / "one"))
    seen = {}
    with browser.browsing(tmp_path) as tab:
        tab.open((tmp_path / "run" / "runs" / "sketch" / "one" / "report.html").as_uri())
        for dark in (False, True):
            for width in (390, 800, 1200):
                tab.show(width, dark=dark)
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                wide = tab.evaluate(
                    "[...document.querySelectorAll('.card')].filter(one => one.scrollWidth >"
                    " one.clientWidth + 1).map(one => one.innerText.slice(0, 40))"
                )
                assert wide == [], width
            seen[dark] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        drawn_all = "[...document.images].every(one => one.complete && one.naturalWidth > 0)"
        assert tab.evaluate(drawn_all)
        squares = "getComputedStyle(document.querySelector('#consistency img')).imageRendering"
        assert tab.evaluate(squares) == "pixelated"
        assert tab.errors == []
        assert [url for url in tab.asked if not url.startswith("data:")][1:] == []
    assert seen[False] != seen[True]


def measured_large(folder: Path) -> dict[str, Any]:
    """A run with all measurements, and one large and wide picture."""
    told = measured(folder)
    grid(folder / "pictures" / "strength.png", 6, side=256)
    return told


# --- what commands say of it ----------------------------------------------------------------------


def said(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and output of a command."""
    done = CliRunner().invoke(commands.app, list(map(str, arguments)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_the_figures_are_printed_with_what_was_noticed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "sketch" / "one"
    told = measured(run) | {"reasons": {"learning": "the log is too short"}}
    told["scores"]["learning"] = None
    write(tmp_path, told)
    code, output = said("report", run)
    assert code == 0
    output = " ".join(output.split())
    for part in ("fidelity 0.850 The third prompt varies", "learning not measured",
                 "the log is too short", "gate failed fidelity: 0.850 (required: 0.900)",
                 "gate passed strength", "samples", "pictures", "report.html"):  # fmt: skip
        assert part in output, f"{part} not in {output}"
    assert json.loads(said("report", run, "--json")[1])["scores"]["learning"] is None
    listed = json.loads(said("runs", "--runs", tmp_path / "runs", "--json")[1])
    assert [(row["fidelity"], row["passed"]) for row in listed] == [(0.85, False)]


def test_two_runs_are_compared_dimension_by_dimension(home: Path, tmp_path: Path) -> None:
    ours, theirs = (folder / "runs" / "sketch" / "one" for folder in (home, tmp_path))
    told = measured(theirs)
    told["scores"] |= {"fidelity": 0.8, "learning": None}
    write(tmp_path, told | {"prompts": ["another"]})
    found = json.loads(said("report", ours, "--against", theirs, "--json")[1])
    assert found["scores"]["fidelity"] == {"ours": 0.85, "theirs": 0.8, "difference": 0.05}
    assert found["scores"]["learning"]["difference"] is None
    assert found["unlike"] == ["the prompts"]
    code, output = said("report", ours, "--against", theirs)
    assert code == 0 and "+0.050" in output and "evaluated differently (the prompts" in output
    assert "evaluated differently" not in said("report", ours, "--against", ours)[1]


def test_runs_of_two_tasks_are_not_compared(tmp_path: Path) -> None:
    ours, theirs = Run(tmp_path / "image"), Run(tmp_path / "text")
    for run in (ours, theirs):
        run.folder.mkdir()
        run.recipe.write_text(f"task: {run.folder.name}\n")
    with pytest.raises(UserError, match="the runs have different tasks: image and text"):
        steps.compare(ours, theirs)


def shelf(task: str, scores: dict[str, Any]) -> Listed:
    """A published adapter as `llm-lora adapters` reports it."""
    row = StoredRow(
        number=1, id=f"{task}@1", served=f"{task}@f", task=task, base="tiny", rank=8, passed=True,
        published="", age_seconds=60, refused=None, scores=scores, field_f1=None, schema_valid=None,
    )  # fmt: skip
    return Listed(Standing(task, 1, None, None, None), None, [row])


def test_published_adapters_are_listed_with_the_figures_of_their_task(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures_only = shelf("image", {"fidelity": 0.71, "strength": 1.0, "alignment": None})
    shelves.adapters([pictures_only], "store")
    out = capsys.readouterr().out
    assert "fidelity" in out and "0.710" in out and "field F1" not in out
    shelves.adapters([pictures_only, shelf("text", {})], "store")
    out = capsys.readouterr().out
    assert "for" in out.split() and "pictures" in out and "0.710" not in out
    shelves.adapters([replace(pictures_only, versions=[])], "store")
    assert "0.710" not in capsys.readouterr().out
