"""A headless Chromium, driven over its own protocol, to act and see like a person."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
)


def installed() -> str | None:
    """The browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


needed = pytest.mark.skipif(
    installed() is None, reason=f"no browser: none of {', '.join(NAMES)} is here"
)


class Page:
    """One tab. `errors` collects console errors, `asked` the requested addresses."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._count = 0
        self.errors: list[str] = []
        self.asked: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        request = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps(request))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._count:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, event: str | None, facts: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(facts["exceptionDetails"]))
        elif event == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.asked.append(facts["request"]["url"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, f"{expression}: {found}"
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 15) -> Any:
        """The value of an expression as soon as it is truthy."""
        until = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            shown = self.evaluate("document.body.innerText")
            assert time.monotonic() < until, f"never true: {expression}\n{shown}"
            time.sleep(0.03)
        return value

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        box = self.evaluate(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2, box.width]; })()"
        )
        assert box[2] > 0, f"{selector} is not to be seen"
        where = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **where)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **where)

    def write(self, selector: str, text: str) -> None:
        """Click into a field, clear it, and type."""
        self.click(selector)
        self.evaluate("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Pick an entry of a list by script: the system, not the page, draws open lists."""
        one = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(
            f"{one}.value = {json.dumps(value)}; {one}.dispatchEvent(new Event('change'))"
        )
        assert self.evaluate(f"{one}.value") == value, f"{selector} has no {value}"

    def show(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Change the window size and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A tab of a new browser, which keeps its files in `folder`."""
    program = installed()
    assert program is not None
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    command = [program, *FLAGS, *sandbox, f"--user-data-dir={folder}", "about:blank"]
    with (folder / "browser.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = _address(folder / "DevToolsActivePort", process)
        with connect(address, max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(15)


@contextmanager
def playground(tab: Page, url: str) -> Iterator[Page]:
    """The open playground of a server; afterwards checks for errors and for other hosts."""
    tab.errors.clear()
    tab.asked.clear()
    tab.show()
    tab.open(url)
    tab.wait("!document.querySelector('#send').disabled")
    yield tab
    assert tab.errors == []
    asked = {one.split("/v1")[0].rstrip("/") for one in tab.asked if one[:5] != "data:"}
    assert asked == {url}


def _address(file: Path, process: subprocess.Popen[bytes], seconds: float = 40) -> str:
    """Where the browser's first tab listens."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, "the browser ended"
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as found:
                for tab in json.load(found):
                    if tab["type"] == "page":
                        return str(tab["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise AssertionError("the browser did not start in time")
