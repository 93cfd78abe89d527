"""The image server's playground in a real browser, which must show the painted pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support import browser, picture_adapters, picture_serving
from support.browser import Page
from support.local_server import serving
from support.picture_serving import Held, painted

from llm_lora.serving.layer import playground
from llm_lora.serving.painter import PictureServer
from llm_lora.store.store import Store

pytestmark = browser.needed
PROMPT = "a red circle on a blue background"


@dataclass
class Served:
    url: str
    folder: Path
    painter: Held


@pytest.fixture
def served(picture_server: PictureServer, tmp_path: Path) -> Iterator[Served]:
    """Two versions of a style, the second one live."""
    store = Store(tmp_path / "store")
    for seed in (1, 2):
        picture_adapters.publish(store, tmp_path, "style", seed=seed)
    with (
        picture_serving.holding(picture_server) as painter,
        serving(picture_serving.layer(picture_server, store)) as url,
    ):
        yield Served(url, tmp_path, painter)


@pytest.fixture
def page(tab: Page, served: Served) -> Iterator[Page]:
    with browser.playground(tab, served.url) as page:
        yield page


def paint(page: Page, prompt: str = PROMPT, **fields: str) -> None:
    page.write("#message", prompt)
    for name, text in fields.items():
        page.write(f"#{name}", text)
    page.click("#send")
    page.wait("!document.querySelector('#send').disabled", seconds=60)


def seen(page: Page) -> list[np.ndarray[Any, Any]]:
    """The pixels of all pictures on the page, once they have loaded."""
    page.wait("[...document.querySelectorAll('.shots img')].every(one => !one.hidden)")
    sources = page.evaluate("[...document.querySelectorAll('.shots img')].map(one => one.src)")
    data = [base64.b64decode(one.removeprefix("data:image/png;base64,")) for one in sources]
    return [np.asarray(Image.open(io.BytesIO(one))) for one in data]


def told(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('figcaption .told')].map(one => one.innerText)"
    )
    return found


def slide(page: Page, strength: str) -> None:
    page.evaluate(
        f"(() => {{ const one = document.querySelector('#strength'); one.value = '{strength}';"
        "one.dispatchEvent(new Event('input')); })()"
    )


def test_a_picture_is_painted_and_can_be_kept(page: Page, served: Served) -> None:
    assert "1 adapter over tiny" in page.text("#about")
    slide(page, "0.6")
    assert page.text("#strength-told") == "0.6"
    paint(page, seed="3")
    (picture,) = seen(page)
    (wanted,) = painted(f"{PROMPT} <lora:s:0.6>", ("s", served.folder / "2"))
    assert np.array_equal(picture, wanted)
    assert page.text("#who") == "style@2"
    assert told(page)[0].startswith("strength 0.6 · seed 3 · ")
    assert page.text("#elsewhere") == f"{PROMPT} <lora:style:0.6>"
    assert page.evaluate("document.querySelector('figcaption a').download") == "style-3-0.6.png"
    assert page.evaluate("document.querySelector('.shots img').className") == "small-one"


def test_beside_the_bare_base_with_the_same_seed(page: Page, served: Served) -> None:
    page.choose("#shown", "bare")
    page.choose("#version", "style@1")
    paint(page)
    without, styled = seen(page)
    seeds = [int(text.split("seed ")[1].split(" ")[0]) for text in told(page)]
    assert len(set(seeds)) == 1, "chance chooses once"
    plain, wanted = (
        painted(f"{PROMPT} <lora:s:{strength}>", ("s", served.folder / "1"), seeds=seeds[:1])[0]
        for strength in (0, 0.8)
    )
    assert np.array_equal(without, plain) and np.array_equal(styled, wanted)
    assert not np.array_equal(plain, wanted)


def test_strengths_from_none_to_full_with_two_pictures_each(page: Page) -> None:
    page.choose("#shown", "all")
    paint(page, seed="5", count="2", steps="2", size="32x40", negative="a star")
    pictures = seen(page)
    assert [one.shape for one in pictures] == [(40, 32, 3)] * 12
    names = [text.split(" · ")[:2] for text in told(page)]
    assert names[:3] == [["without adapter", "seed 5"], ["without adapter", "seed 6"],
                         ["strength 0.2", "seed 5"]]  # fmt: skip
    assert names[-1] == ["strength 1", "seed 6"]
    assert len({one.tobytes() for one in pictures}) == 12


def test_the_base_alone(page: Page) -> None:
    page.choose("#adapter", "")
    assert page.evaluate("document.querySelector('#strength').disabled")
    paint(page, seed="3", steps="3")
    (picture,) = seen(page)
    assert np.array_equal(picture, painted(PROMPT)[0])
    assert page.text("#who") == "tiny" and told(page)[0].startswith("base alone")


def test_trouble_is_told_in_the_servers_words(page: Page) -> None:
    page.choose("#shown", "bare")
    paint(page, size="30x30")
    blanks = page.evaluate("[...document.querySelectorAll('.blank')].map(one => one.innerText)")
    assert blanks == ['"size" has sides that are not multiples of 8 pixels', "not painted"]
    # The browser notes every refused request; that one is meant to be there.
    page.errors[:] = [text for text in page.errors if "400" not in text]


def test_stopping_ends_the_request(page: Page, served: Served) -> None:
    served.painter.go.clear()
    page.choose("#shown", "all")
    page.write("#message", PROMPT)
    page.click("#send")
    page.wait("document.querySelector('.blank').innerText === 'painting …'")
    page.click("#stop")
    page.wait("!document.querySelector('#send').disabled")
    blanks = page.evaluate("[...document.querySelectorAll('.blank')].map(one => one.innerText)")
    assert blanks == ["stopped"] * 6
    served.painter.go.set()


def test_markup_in_a_prompt_stays_text(page: Page) -> None:
    hostile = "<img src=x onerror=document.title=1>"
    paint(page, hostile, seed="1")
    assert page.text("#elsewhere").startswith(hostile)
    assert page.evaluate("document.title") == "llm-lora playground"


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_a_phone_and_the_dark(page: Page, dark: bool) -> None:
    page.show(360, 740, dark=dark)
    page.choose("#shown", "bare")
    paint(page, "a very-long-word-" * 8)
    seen(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_policy_allows_the_page_alone(served: Served) -> None:
    response = httpx.get(served.url)
    assert response.text == playground.page("image")
    assert "img-src data:" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
