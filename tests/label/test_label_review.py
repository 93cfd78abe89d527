"""The review sheet in a real browser: captions are found, corrected, downloaded, and kept."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import browser
from support.browser import Page
from support.drawn import folder
from test_labelling import Machine, edit, run, texts

from llm_lora.label import review as label_review
from llm_lora.label.labelling import Order

pytestmark = [pytest.mark.slow, browser.needed]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    home = tmp_path / "browser"
    home.mkdir()
    with browser.browsing(home) as page:
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.show()
        yield page


def downloaded(path: Path) -> Path:
    until = time.monotonic() + 15
    while not path.exists():
        assert time.monotonic() < until, "nothing was downloaded"
        time.sleep(0.05)
    return path


def test_captions_are_mended_in_the_sheet_and_stay(page: Page, tmp_path: Path) -> None:
    home = folder(tmp_path / "pictures", 6, (48, 48))
    (home / "metadata.csv").write_text(
        'artist,file_name,prompt\n"me, ""I""",001.png,by hand\nyou,gone.png,of a lost one\n'
    )
    (home / "003.txt").write_text("beside")
    run(home, Machine("</script> seen"))
    sheet = tmp_path / "review.html"
    label_review.write(sheet, home, (), ())
    page.open(sheet.as_uri())
    assert page.evaluate("document.querySelectorAll('article').length") == 6
    area = '[data-name="{}"] textarea'
    page.write(area.format("000.png"), 'a "red", white\nand blue one')
    page.write("#search", "003.png")
    assert page.text("#count") == "1 of 6 pictures"
    page.write(area.format("003.png"), "no longer beside")
    page.write("#search", "")
    page.click("#save")
    listed = downloaded(tmp_path / "metadata.csv")
    with listed.open(newline="") as file:
        found = {row["file_name"]: row for row in csv.DictReader(file)}
    before = texts_of(home)
    assert found["001.png"] == {"artist": 'me, "I"', "file_name": "001.png", "prompt": "by hand"}
    assert found["gone.png"]["prompt"] == "of a lost one"
    assert found["000.png"]["prompt"] == 'a "red", white and blue one'
    assert found["003.png"] == {"artist": "", "file_name": "003.png", "prompt": "no longer beside"}
    assert found["002.png"]["prompt"] == before["002.png"]
    shutil.copy(listed, home / "metadata.csv")
    outcome = run(home, Machine("anew"), Order("blip", "b", redo=True))
    assert (outcome.written, outcome.people) == (3, 3)
    after = texts_of(home)
    assert after["000.png"] == 'a "red", white and blue one'
    assert after["003.png"] == "no longer beside"
    elsewhere = [url for url in page.asked if not url.startswith(("data:", "blob:"))]
    assert page.errors == [] and elsewhere == [sheet.as_uri()]


def texts_of(home: Path) -> dict[str, str]:
    with (home / "metadata.csv").open(newline="") as file:
        return {row["file_name"]: row["prompt"] for row in csv.DictReader(file)}


def test_only_what_needs_a_look(page: Page, tmp_path: Path) -> None:
    home = folder(tmp_path / "pictures", 4, (48, 48))
    (home / "metadata.csv").unlink()
    run(home, Machine())
    edit(home, "002.png", "")
    label_review.write(tmp_path / "review.html", home, (), ())
    page.open((tmp_path / "review.html").as_uri())
    page.click("#unsure")
    assert page.text("#count") == "1 of 4 pictures"
    assert (
        page.evaluate("document.querySelector('article:not([hidden])').dataset.name") == "002.png"
    )
    assert len(texts(home)) == 4 and page.errors == []
