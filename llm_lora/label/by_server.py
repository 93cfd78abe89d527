"""Captions from a vision model behind an OpenAI-compatible endpoint: vLLM, Ollama, a provider.

The key comes from the environment, never from arguments, and appears in no message. Pictures
are sent as data URLs, scaled down.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from llm_lora.data.image import files as picture_files
from llm_lora.data.image import one_line
from llm_lora.errors import UserError
from llm_lora.label.labelling import Failure, Label
from llm_lora.machine import is_loopback

if TYPE_CHECKING:
    from PIL import Image

KEY = "LLM_LORA_VISION_KEY"

ASK = (
    "Describe this picture for training an image model: in one line, as short phrases separated by "
    "commas; the subject first, then what it does and wears, the setting, colours, light and "
    "composition. At most 40 words, no introduction, no opinion."
)

_SIDE = 768
_MOST_TOKENS = 200
_TRIES = 5
_LONGEST_WAIT = 60.0
_BUSY = (408, 409, 425, 429)
_FATAL = (401, 402, 403, 404)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_PREFIX = re.compile(r"^(?:here(?: is|'s)[^:]{0,40}|caption|description|prompt)\s*:\s*", re.I)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint and how to use it: `ask` is the instruction, `jobs` the requests at a time,
    `pause` the seconds before a second try, doubled before each further one.
    """

    url: str
    model: str
    ask: str = ASK
    jobs: int = 4
    timeout: float = 120.0
    pause: float = 1.0


class Describer:
    """Asks for a caption of each picture; a `labelling.Labeller`."""

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep) -> None:
        """Open no connection yet.

        Raises:
            UserError: the URL is not a server address.
        """
        self._endpoint, self._sleep = endpoint, sleep
        self._key = os.environ.get(KEY, "")
        base = endpoint.url.rstrip("/").removesuffix("/chat/completions")
        try:
            address = httpx.URL(base)
        except httpx.InvalidURL:
            address = httpx.URL("")
        if address.scheme not in ("http", "https") or not address.host:
            raise UserError(
                "not a server address",
                where=endpoint.url,
                fix="write it as http://127.0.0.1:8000/v1",
            )
        self._path = base if base.endswith("/v1") or address.path.strip("/") else f"{base}/v1"
        self._options: dict[str, object] = {"temperature": 0, "max_tokens": _MOST_TOKENS}
        self._http = httpx.Client(
            timeout=httpx.Timeout(endpoint.timeout, connect=10.0),
            # A proxy set in the environment must not see local traffic.
            trust_env=not is_loopback(address.host),
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[Label | Failure]:
        """A caption for each picture, or why there is none.

        Raises:
            UserError: the endpoint does not answer, or refuses every request.
        """
        with ThreadPoolExecutor(self._endpoint.jobs) as pool:
            waiting = [pool.submit(self._describe, image) for image in images]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _describe(self, image: Image.Image) -> Label | Failure:
        url = picture_files.data_url(image, _SIDE)
        content = [
            {"type": "text", "text": self._endpoint.ask},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        response = self._ask([{"role": "user", "content": content}])
        if not response.is_success:
            return Failure(f"the server refused it: {self._said(response)}")
        try:
            text = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise UserError(
                "the reply does not come from an OpenAI-compatible server",
                where=self._path,
                fix="check the address; it usually ends with /v1",
            ) from None
        caption = tidy(text) if isinstance(text, str) else ""
        return Label(caption) if caption else Failure("the model returned no caption")

    def _ask(self, messages: Sequence[Mapping[str, object]]) -> httpx.Response:
        """A response, after retries of temporary failures.

        Raises:
            UserError: every try failed, or the server denies access.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        trouble, wait = "", 0.0
        for attempt in range(_TRIES):
            if wait:
                self._sleep(min(wait, _LONGEST_WAIT))
            wait = self._endpoint.pause * 2**attempt
            options = dict(self._options)
            body = {"model": self._endpoint.model, "messages": messages, **options}
            try:
                response = self._http.post(
                    f"{self._path}/chat/completions", json=body, headers=headers
                )
            except httpx.TimeoutException:
                trouble = f"no answer within {self._endpoint.timeout:g} s"
                continue
            except httpx.TransportError as error:
                trouble = f"cannot reach the server: {self._hidden(str(error))}"
                continue
            status = response.status_code
            if status in _FATAL:
                raise self._refused(response)
            if status in _BUSY or status >= 500:
                trouble = f"the server failed ({status}): {self._said(response)}"
                wait = max(wait, _seconds(response.headers.get("Retry-After")))
                continue
            if status == 400 and (unknown := [o for o in options if o in response.text]):
                # Some models take no temperature, or count tokens under another name.
                for option in unknown:
                    self._options.pop(option, None)
                trouble = f"the server refuses {', '.join(unknown)}"
                wait = 0.0
                continue
            return response
        raise UserError(
            f"{trouble}; tried {_TRIES} times",
            where=self._path,
            fix="check the server, then run the command again: it continues where it stopped",
        )

    def _refused(self, response: httpx.Response) -> UserError:
        fixes = {
            401: f"set {KEY} to the server's key",
            402: "check the account at the provider",
            403: f"set {KEY} to a key with this permission",
            404: "check the address, which usually ends with /v1, and --model",
        }
        status = response.status_code
        return UserError(
            f"the server refused ({status}): {self._said(response)}",
            where=self._path,
            fix=fixes[status],
        )

    def _said(self, response: httpx.Response) -> str:
        """The reason that the server gives: OpenAI's error message, or the raw text."""
        try:
            error = response.json()["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            text = response.text or response.reason_phrase
        return self._hidden(one_line(text)[:200])

    def _hidden(self, text: str) -> str:
        """A text with the key removed, which some servers echo."""
        return text.replace(self._key, "…") if self._key else text


def tidy(text: str) -> str:
    """A model's answer as a caption: without reasoning, introductions, quotes and markup.

    >>> tidy('Caption: "A red fox, in snow."')
    'A red fox, in snow'
    """
    line = one_line(_THOUGHTS.sub(" ", text))
    line = _PREFIX.sub("", line.strip('"*` '))
    return line.strip('"*` ').rstrip(".")


def _seconds(header: str | None) -> float:
    """The seconds of a Retry-After header; 0 where it gives none."""
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0
