"""Requests for pictures: read strictly, checked, and completed with the adapter's settings.

The format is that of OpenAI's `POST /v1/images/generations`; the other settings of painting
(`seed`, `steps`, `adapters` and the like) are extra members.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_lora import lora_prompt
from llm_lora.adapter import Setting
from llm_lora.data.image import CELL
from llm_lora.errors import UserError
from llm_lora.files import Json
from llm_lora.lora_prompt import LARGEST, Pick
from llm_lora.recipe.image import ImageGenerate
from llm_lora.schema import excerpt, quote
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.text import read_object

_LARGER = 4
"""Limit on a picture's size: this multiple of the base's pixels, and of its side."""

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_SEEDS = 2**32
_LONGEST = 10_000
"""Most characters of a prompt; text encoders read a few hundred."""

_MOST_NAMES = 64
"""Most adapters that a request may name; each server has a lower limit."""

_MOST_STEPS = 1000
"""Most denoising steps of a request, over all its pictures: other requests wait meanwhile."""

_Seed = Annotated[int, Field(ge=0, lt=_SEEDS)]
_Strength = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=_LONGEST)]
_USUAL = ImageGenerate()

_URL = (
    "cannot be url: pictures are sent in the answer and kept nowhere; "
    'leave it out, or ask for "b64_json"'
)


class _Adapter(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    weight: _Strength = 1.0


class _Body(BaseModel):
    """The members of a request; null counts as absent."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    prompt: _Text
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    seed: _Seed | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    negative_prompt: _Text | None = None
    scheduler: Literal["ddim", "euler", "dpm++"] | None = None
    adapters: Annotated[list[_Adapter], Field(max_length=_MOST_NAMES)] | None = None
    # OpenAI's members, accepted with the only values that apply here.
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: Literal[False] | None = None
    user: str | None = None


@dataclass(frozen=True)
class PictureRequest:
    """A request as the client wrote it.

    Attributes:
        model: its `model`, whose recipe supplies what the request leaves out.
        text: the prompt without the adapters that it names.
        picks: the adapters to paint with, by the client's names for them; None where it named
            none, so `model` is used.
    """

    model: str
    prompt: str
    text: str
    picks: tuple[Pick, ...] | None
    body: _Body

    @property
    def names(self) -> list[str]:
        """Every name to look up, the model's first."""
        return list(dict.fromkeys([self.model, *(pick.name for pick in self.picks or ())]))


def read(body: bytes) -> PictureRequest:
    """Read a request.

    Raises:
        Refused: the request is invalid (400).
    """
    fields = read_object(body)
    if fields.get("response_format") == "url":
        raise wrong("response_format", _URL)
    try:
        found = _Body.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None
    try:
        text, named = lora_prompt.parse(found.prompt)
    except UserError as error:
        said = "; ".join(f"{problem.where}: {problem.what}" for problem in error.problems)
        raise Refused(400, excerpt(said, 400), param="prompt") from None
    given = [Pick(one.name, one.weight, one.weight) for one in found.adapters or ()]
    picks = [*named, *given]
    if len(picks) > _MOST_NAMES:
        raise wrong("prompt", f"names more than {_MOST_NAMES} adapters")
    for name, count in Counter(pick.name for pick in picks).items():
        if count > 1:
            raise wrong("adapters", f"names {quote(name)} twice (the prompt counts too)")
    return PictureRequest(found.model, found.prompt, text, tuple(picks) or None, found)


def settings(request: PictureRequest, defaults: Mapping[str, Setting], resolution: int) -> Json:
    """The settings to paint with: from the request, then `defaults`, then the usual ones.

    Args:
        request: the request.
        defaults: of the recipe of the adapter that `model` names; empty for the base.
        resolution: the resolution that the base was trained at (pixels a side).

    Returns:
        steps, guidance, negative_prompt, width, height and scheduler.

    Raises:
        Refused: an invalid size, or one too large for this base; too many steps (400).
    """
    body = request.body
    found: Json = {}
    for name in ("steps", "guidance", "negative_prompt", "scheduler"):
        asked = getattr(body, name)
        found[name] = asked if asked is not None else defaults.get(name, getattr(_USUAL, name))
    if found["steps"] * (body.n or 1) > _MOST_STEPS:
        usual = "" if body.steps else f"({found['steps']:,}, the adapter's default) "
        raise wrong("steps", f"{usual}times n is more than {_MOST_STEPS:,}, the limit of a request")
    if body.size in (None, "auto"):
        found["width"] = defaults.get("width") or resolution
        found["height"] = defaults.get("height") or resolution
        return found
    found["width"], found["height"] = _sides(str(body.size), resolution)
    return found


def seeds(request: PictureRequest) -> list[int]:
    """The seed of each picture: consecutive numbers from the requested or a random one."""
    asked = request.body.seed
    first = secrets.randbelow(_SEEDS) if asked is None else asked
    return [first + number for number in range(request.body.n or 1)]


def wrong(name: str, what: str) -> Refused:
    """The refusal of an invalid member."""
    return Refused(400, f"{quote(name)} {what}", param=name[:80])


def _sides(size: str, resolution: int) -> tuple[int, int]:
    match = _SIZE.fullmatch(size)
    if match is None:
        raise wrong("size", f'is not WIDTHxHEIGHT in pixels, such as "{resolution}x{resolution}"')
    width, height = int(match[1]), int(match[2])
    if width % CELL or height % CELL or not width or not height:
        raise wrong("size", f"has sides that are not multiples of {CELL} pixels")
    side = _LARGER * resolution
    if max(width, height) > side or width * height > side * resolution:
        raise wrong(
            "size",
            f"is too large for this base: at most {side} pixels a side, and {side * resolution:,} "
            f"in all; its own size is {resolution}x{resolution}",
        )
    return width, height


def _invalid(error: ValidationError) -> Refused:
    """The first mistake as a message, with the names of the others."""
    first, *others = error.errors(include_url=False, include_context=False)
    place = ".".join(str(part)[:60] for part in first["loc"])
    if first["type"] == "extra_forbidden":
        what = f"is unknown; the members are {', '.join(_Body.model_fields)}"
    elif first["type"] == "missing":
        what = "is missing"
    else:
        what = excerpt(first["msg"].removeprefix("Input "), 200)
    more = {".".join(map(str, one["loc"]))[:60] for one in others} - {place}
    also = f" (also wrong: {', '.join(sorted(more)[:5])})" if more else ""
    return wrong(place, f"{what[:1].lower()}{what[1:]}{also}")
