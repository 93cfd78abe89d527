"""The playground, in a real browser: a question asked, the answer and its verdict seen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import browser
from support.adapter_folders import report_of, write_adapter
from support.browser import Page
from support.fake_vllm import FakeVllm, error
from support.layer_parts import config
from support.local_server import serving

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.serving.layer import playground
from llm_lora.serving.layer.layer import Layer
from llm_lora.store.store import Store
from llm_lora.task import TASKS

SCHEMA = {
    "type": "object",
    "properties": {
        "complaint": {"type": "string"},
        "urgent": {"type": "boolean"},
        "medications": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "dose_mg": {"type": "number"}},
                "required": ["name", "dose_mg"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["complaint", "urgent", "medications"],
    "additionalProperties": False,
}
QUESTION = "Headache since Monday — took ibuprofen 400 mg. What now?"
FIRST = (
    '{"complaint":"headache since Monday","urgent":false,'
    '"medications":[{"name":"ibuprofen","dose_mg":400.00}]}'
)
SECOND = FIRST.replace("false", "true").replace(
    "headache since Monday", "Kopfschmerz — seit Montag"
)
WRONG = '{"complaint":"headache","urgent":"no","medications":[{"name":"ibuprofen"}]}'
HOSTILE = '{"complaint":"<img src=x onerror=document.title=1><script>document.title=2</script>'


class Scripted(FakeVllm):
    """Each version says what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, str] = {}

    async def _answer(self, body: dict[str, Any], kind: str) -> Any:
        self.answer = self.lines.get(body["model"])
        return await super()._answer(body, kind)


@dataclass
class Served:
    """A server with two versions of an adapter, the first of them live."""

    url: str
    server: Scripted
    folder: Path
    keys: list[str] = field(default_factory=list)


def publish(store: Store, folder: Path, seed: int) -> str:
    """The next version of `medical-qa`: its served name."""
    made = write_adapter(folder / f"adapter-{seed}", seed=seed)
    files.write_json(made / adapters.SCHEMA, SCHEMA)
    manifest = json.loads((made / adapters.MANIFEST).read_text())
    manifest["schema_digest"] = files.sha256((made / adapters.SCHEMA).read_bytes())
    files.write_json(made / adapters.MANIFEST, manifest)
    report = report_of(made)
    return store.publish(made, "medical-qa", report=report, by="test").served_name


def make(folder: Path, **changes: Any) -> tuple[Scripted, Layer]:
    server = Scripted()
    layer = Layer(server, config(folder, **changes))
    store = Store(folder / "store")
    server.lines = {publish(store, folder, seed): text for seed, text in ((1, FIRST), (2, SECOND))}
    store.promote("medical-qa", 1, by="test")
    return server, layer


# ---- without a browser


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server, layer = make(tmp_path)
    with serving(layer) as url:
        yield Served(url, server, tmp_path)


def test_page_comes_with_a_policy_that_allows_itself_alone(served: Served) -> None:
    response = httpx.get(served.url)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    assert response.text == playground.page("text")


@pytest.mark.parametrize("task", TASKS)
def test_page_asks_no_other_host_and_never_writes_markup(task: str) -> None:
    page = playground.page(task)
    assert re.findall(r"https?://[^'\"\s]+", page) == ["http://www.w3.org/2000/svg"]
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "localStorage",
    ):
        assert word not in page
    assert not re.search(r"<[^>]+ (on\w+|style)=", page), (
        "the policy forbids inline handlers, styles"
    )


# ---- with one


@pytest.fixture
def page(tab: Page, served: Served) -> Iterator[Page]:
    with browser.playground(tab, served.url) as page:
        yield page


def ask(page: Page, question: str = QUESTION) -> None:
    page.write("#message", question)
    page.click("#send")
    page.wait(
        "!document.querySelector('#send').disabled && document.querySelector('.verdict').innerText"
    )


@browser.needed
def test_question_is_asked_and_its_verdict_seen(page: Page, served: Served) -> None:
    assert "1 adapter over tiny" in page.text("#about")
    ask(page)
    assert page.text(".verdict") == "✓ fits the schema"
    assert page.text(".who") == "medical-qa@1"
    assert "7 tokens" in page.text(".figures")
    shown = page.text(".answer")
    assert '"complaint": "headache since Monday"' in shown
    assert '"dose_mg": 400.00' in shown, "numbers stand as the model wrote them"
    assert '"medications"' in page.text(".schema pre")
    asked = served.server.asked[-1][1]
    assert asked["messages"][-1] == {"role": "user", "content": QUESTION}
    page.click(".form")
    assert page.text(".answer") == FIRST


@browser.needed
def test_answer_appears_while_it_is_written(page: Page, served: Served) -> None:
    served.server.piece_seconds = 0.1
    page.write("#message", QUESTION)
    page.click("#send")
    page.wait("document.querySelector('.verdict').innerText === 'answering …'")
    seen = [page.text(".answer")]
    while page.evaluate("document.querySelector('#send').disabled"):
        seen.append(page.text(".answer"))
    assert len(seen[0]) < len(FIRST)
    assert len({len(text) for text in seen if FIRST.startswith(text)}) > 5


@browser.needed
def test_stopping_ends_the_request(page: Page, served: Served) -> None:
    served.server.piece_seconds = 0.2
    page.write("#message", QUESTION)
    page.click("#send")
    page.wait("document.querySelector('.verdict').innerText === 'answering …'")
    page.click("#stop")
    page.wait("document.querySelector('.verdict').innerText === 'stopped'")
    page.wait("!document.querySelector('#send').disabled")
    for _ in range(100):
        if served.server.running == 0:
            break
        page.wait("new Promise(done => setTimeout(done, 50, true))")
    assert served.server.running == 0


@browser.needed
def test_invalid_answer_shows_where_and_why(page: Page, served: Served) -> None:
    served.server.lines = dict.fromkeys(served.server.lines, WRONG)
    ask(page)
    assert page.text(".verdict") == "✗ does not fit the schema"
    assert "urgent: expected a boolean" in page.text(".reasons")
    assert "medications[0].dose_mg: missing, but required" in page.text(".reasons")


@browser.needed
def test_markup_in_an_answer_stays_text(page: Page, served: Served) -> None:
    served.server.lines = dict.fromkeys(served.server.lines, HOSTILE)
    ask(page)
    assert page.text(".verdict") == "✗ not JSON"
    assert page.text(".answer").rstrip() == HOSTILE
    assert page.text(".answer mark").strip() == ""
    assert page.evaluate("document.title") == "llm-lora playground"


@browser.needed
def test_two_versions_are_compared_line_by_line(page: Page) -> None:
    page.click("#compare")
    first, second = ".pick:first-child .version", ".pick:last-child .version"
    assert page.evaluate(f"document.querySelector('{first}').value") == "medical-qa"
    assert page.evaluate(f"document.querySelector('{second}').value") == "medical-qa@2"
    ask(page)
    assert page.evaluate("[...document.querySelectorAll('.who')].map(one => one.innerText)") == [
        "medical-qa@1",
        "medical-qa@2",
    ]
    apart = page.evaluate(
        "[...document.querySelectorAll('.line.apart')].map(one => one.innerText.trim())"
    )
    assert apart == [
        '"complaint": "headache since Monday",',
        '"urgent": false,',
        '"complaint": "Kopfschmerz — seit Montag",',
        '"urgent": true,',
    ]
    page.click("#compare")
    assert page.evaluate("document.querySelectorAll('.lane').length") == 1


@browser.needed
def test_schema_can_be_switched_off_and_the_base_be_asked(page: Page) -> None:
    page.click("#enforce")
    ask(page)
    assert page.text(".verdict") == "not judged"
    page.choose(".adapter", "")
    assert page.evaluate("document.querySelector('.schema').hidden")
    ask(page)
    assert page.text(".who") == "tiny"


@browser.needed
def test_trouble_is_told_in_the_servers_words(page: Page, served: Served) -> None:
    async def broken(body: dict[str, Any], kind: str) -> Any:
        return error(400, "the prompt is too long")

    ask(page)
    served.server._answer = broken  # type: ignore[method-assign]
    ask(page)
    assert page.text(".verdict") == "✗ failed"
    assert page.text(".reasons") == "the prompt is too long"
    # The browser notes every refused request; that one is meant to be there.
    page.errors[:] = [text for text in page.errors if "400" not in text]


@browser.needed
@pytest.mark.parametrize("two", [False, True])
def test_page_fits_a_phone_and_the_dark(page: Page, served: Served, two: bool) -> None:
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    if two:
        page.click("#compare")
    page.show(360, 740, dark=True)
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


@browser.needed
def test_key_is_asked_for_and_kept_in_the_tab_alone(
    tab: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LORA_API_KEYS", "a-good-long-key-for-tests")
    _, layer = make(tmp_path)
    with serving(layer) as url:
        tab.show()
        tab.open(url)
        tab.wait("!document.querySelector('#key-card').hidden")
        assert "needs an API key" in tab.text("#key-note")
        tab.write("#key", "a-wrong-key")
        tab.click("#key-form .main")
        tab.wait("document.querySelector('#key-note').innerText.includes('does not know')")
        tab.write("#key", "a-good-long-key-for-tests")
        tab.click("#key-form .main")
        tab.wait("!document.querySelector('#send').disabled")
        ask(tab)
        assert tab.text(".verdict") == "✓ fits the schema"
        assert tab.evaluate("Object.values(sessionStorage)") == ["a-good-long-key-for-tests"]
        assert tab.evaluate("localStorage.length + document.cookie.length") == 0
        assert "a-good-long-key" not in tab.evaluate("document.documentElement.outerHTML")
        tab.evaluate("sessionStorage.clear()")
