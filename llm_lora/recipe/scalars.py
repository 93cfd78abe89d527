"""The types of a recipe's settings, and the base class of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
)

Profile = Literal["cpu", "gpu-8gb", "gpu-12gb", "gpu-16gb", "gpu-24gb", "gpu-48gb", "gpu-80gb"]
PROFILES: tuple[str, ...] = get_args(Profile)
"""Hardware classes, smallest first; the number is the nominal GPU memory in GB."""


def _not_empty(path: Path) -> Path:
    if path == Path():
        raise ValueError("empty path")
    return path


def _one_as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


# The written type chooses the branch of a union, so that a mistake is reported for one branch only.
_by_point = Discriminator(lambda value: "share" if isinstance(value, float) else "other")
_by_text = Discriminator(lambda value: "text" if isinstance(value, str) else "other")

Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
NotEmpty = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
OnePath = Annotated[Path, AfterValidator(_not_empty)]
Paths = Annotated[
    tuple[OnePath, ...],
    BeforeValidator(_one_as_list, json_schema_input_type=Path | tuple[Path, ...]),
    Field(min_length=1),
]
_SplitShare = Annotated[Number, Field(gt=0, le=0.5), Tag("share")]
HeldOut = Annotated[_SplitShare | Annotated[Paths, Tag("other")], _by_point]
FolderOrShare = Annotated[_SplitShare | Annotated[OnePath, Tag("other")], _by_point]
Every = Annotated[
    Annotated[Number, Field(gt=0, le=1), Tag("share")]
    | Annotated[Whole, Field(ge=1), Tag("other")],
    _by_point,
]
_Modules = Annotated[tuple[NotEmpty, ...], Field(min_length=1), Tag("other")]
Targets = Annotated[Annotated[Literal["all-linear"], Tag("text")] | _Modules, _by_text]
ImageTargets = Annotated[
    Annotated[Literal["attention", "attention+ff"], Tag("text")] | _Modules, _by_text
]
Strengths = Annotated[
    tuple[Annotated[Number, Field(ge=0, le=2)], ...], Field(min_length=1, max_length=32)
]


class Block(BaseModel):
    # Validators are built on first use: it takes longer than the imports, and most commands need
    # none.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
